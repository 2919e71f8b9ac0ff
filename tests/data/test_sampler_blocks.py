"""What the blocked shuffle adds: few blocks are needed at a time."""

from itertools import islice, permutations
from math import factorial

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from ganray.data.sampler import DeterministicSampler, window_at, window_ids
from tests.data.test_sampler import ALPHA


@st.composite
def blocked(draw: st.DrawFn) -> DeterministicSampler:
    block, window = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    return DeterministicSampler(draw(st.integers(1, 150)), draw(st.integers(0, 99)), block, window)


def windows_of(order: DeterministicSampler, start: int, count: int) -> int:
    """How many windows a stretch touches."""
    places = [divmod(start + i, order.num_samples) for i in range(count)]
    return len({(epoch, window_at(order, epoch, position)[0]) for epoch, position in places})


@settings(max_examples=60, deadline=None)
@given(order=blocked(), start=st.integers(0, 10**4), count=st.integers(1, 60))
@example(
    order=DeterministicSampler(1000, 0, block=8, window=4), start=20, count=20
)  # straddles two windows
@example(
    order=DeterministicSampler(9, 0, block=4, window=2), start=7, count=4
)  # and here two epochs
def test_a_stretch_needs_the_blocks_of_its_windows_only(
    order: DeterministicSampler, start: int, count: int
):
    blocks = np.unique(order.indices(start, count) // order.block)
    assert len(blocks) <= order.window * windows_of(order, start, count)


def test_a_batch_needs_a_window_of_blocks_and_as_many_shards_or_twice_that_where_it_straddles():
    order = DeterministicSampler(10_000, 3, block=16, window=8)  # windows of 128 positions
    rows_per_shard = 5 * order.block
    for start in range(0, 9_800, 50):
        batch = order.indices(start, 100)
        limit = 8 * windows_of(order, start, 100)
        assert limit in (8, 16)
        assert len(np.unique(batch // order.block)) <= limit
        assert len(np.unique(batch // rows_per_shard)) <= limit
    full = DeterministicSampler(10_000, 3).indices(0, 100)
    assert len(np.unique(full // order.block)) > 80  # what the blocked shuffle saves


@settings(max_examples=60, deadline=None)
@given(order=blocked(), epoch=st.integers(0, 50))
def test_windows_are_whole_blocks_and_follow_each_other(order: DeterministicSampler, epoch: int):
    num_windows = -(-order.num_blocks // order.window)
    windows = [window_ids(order, epoch, window) for window in range(num_windows)]
    for ids in windows:
        blocks = np.unique(ids // order.block)
        rows = [range(b * order.block, (b + 1) * order.block) for b in blocks]
        assert len(blocks) <= order.window
        assert sorted(ids) == [i for row in rows for i in row if i < order.num_samples]
    # window_at finds its way through them: the short block may be in any
    expected = [(w, offset) for w, ids in enumerate(windows) for offset in range(len(ids))]
    positions = range(order.num_samples)
    assert [window_at(order, epoch, position) for position in positions] == expected


def test_the_short_block_takes_every_place():
    order = DeterministicSampler(10, 0, block=4, window=1)  # blocks of 4, 4 and 2 rows
    places = {[len(window_ids(order, epoch, w)) for w in range(3)].index(2) for epoch in range(20)}
    assert places == {0, 1, 2}


def likelihood(order: DeterministicSampler) -> np.ndarray:
    """How likely each id is at each position, (position, id), by trying all orders of blocks."""
    ids = np.arange(order.num_samples)
    sums = np.zeros((order.num_samples, order.num_samples))
    for blocks in permutations(range(order.num_blocks)):
        first = 0
        for place in range(0, order.num_blocks, order.window):
            rows = ids[np.isin(ids // order.block, blocks[place : place + order.window])]
            sums[first : first + len(rows), rows] += 1 / len(rows)
            first += len(rows)
    return sums / factorial(order.num_blocks)


@pytest.mark.parametrize(("block", "window"), [(3, 1), (3, 2), (2, 3)])
def test_where_blocks_divide_every_sample_is_as_likely_at_every_position(block: int, window: int):
    np.testing.assert_allclose(likelihood(DeterministicSampler(12, 0, block, window)), 1 / 12)


@pytest.mark.parametrize("window", [2, 3])
def test_where_not_only_the_rows_of_the_short_block_are_likelier_or_rarer(window: int):
    relative = 16 * likelihood(
        DeterministicSampler(16, 0, block=3, window=window)
    )  # 6 blocks, one of one row
    assert relative[:, -1].max() <= window / (window - 1)
    ends = [3 * window * i - j for i in range(1, 6 // window) for j in (1, 2)]
    assert np.flatnonzero(relative[:, -1] == 0).tolist() == sorted(ends)
    # The others share what it leaves. With many blocks all of this is next to nothing for them.
    assert relative[:, :-1].max() <= 16 / 15 + 1e-9
    np.testing.assert_allclose(relative.mean(axis=0), 1)


@pytest.mark.parametrize(
    "order",
    [
        DeterministicSampler(12, 0, block=3, window=2),
        DeterministicSampler(11, 0, block=3, window=2),
        DeterministicSampler(9, 0, 2, 2),
    ],
    ids=["divides", "a short block", "short block and short window"],
)
def test_the_blocked_shuffle_is_as_likely_as_all_orders_of_blocks_make_it(
    order: DeterministicSampler,
):
    n, num_seeds = order.num_samples, 3000
    counts, expected = np.zeros((n, n)), likelihood(order) * num_seeds
    for seed in range(num_seeds):
        counts[
            np.arange(n), DeterministicSampler(n, seed, order.block, order.window).indices(n, n)
        ] += 1
    for count, expect in zip(counts, expected, strict=True):
        assert count[expect == 0].sum() == 0
        assert chisquare(count[expect > 0], expect[expect > 0]).pvalue > ALPHA


def test_the_blocked_shuffle_is_pinned():
    # A change here would give every resumed run another order than it began with.
    expected = [3, 2, 8, 9, 10, 0, 1, 5, 7, 6, 4, 6, 10, 9, 7, 8, 0, 1, 5, 3, 2, 4]
    assert DeterministicSampler(11, 0, block=2, window=3).indices(0, 22).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(order=blocked(), start=st.integers(0, 1000))
def test_blocks_are_named_as_the_stream_touches_them(order: DeterministicSampler, start: int):
    two_epochs = order.indices(start, 2 * order.num_samples)
    names = list(order.blocks_from(start))
    assert names == list(dict.fromkeys((two_epochs // order.block).tolist()))
    assert sorted(names) == list(range(order.num_blocks))


def test_blocks_are_named_lazily():
    order = DeterministicSampler(10**9, 0, block=4096, window=8)
    touched = dict.fromkeys((order.indices(10**8, 50_000) // 4096).tolist())
    assert list(islice(order.blocks_from(10**8), 10)) == list(touched)[:10]


def test_only_a_blocked_shuffle_names_blocks():
    assert DeterministicSampler(5, 0).num_blocks == 0
    with pytest.raises(ValueError, match=r"block=0, start=0: .*a full shuffle \(block=0\) has no"):
        DeterministicSampler(5, 0).blocks_from(0)
    with pytest.raises(ValueError, match=r"block=2, start=-1: must be at least 1 and 0"):
        DeterministicSampler(5, 0, 2, 2).blocks_from(-1)


def test_a_billion_images_in_blocks_are_in_range_without_duplicates():
    num_samples = 10**9
    order = DeterministicSampler(num_samples, 5, block=4096, window=16)
    for start in (0, num_samples // 3, 7 * num_samples - 250_000):
        ids = order.indices(start, 250_000)
        assert ids.min() >= 0
        assert ids.max() < num_samples
        assert len(np.unique(ids)) == len(ids)
        assert len(np.unique(ids // order.block)) <= 16 * 6
