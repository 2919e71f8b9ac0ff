"""Properties of every sampler, full or blocked."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from ganray.data.sampler import (
    DeterministicSampler,
    permutation,
    rank_slice,
    window_ids,
)

WORLDS = [1, 2, 3, 8]
KINDS = {
    "full": DeterministicSampler(23, rng_seed=7),
    "blocks that divide": DeterministicSampler(24, rng_seed=7, block=4, window=2),
    "a short block": DeterministicSampler(23, rng_seed=7, block=5, window=2),
    "one block": DeterministicSampler(23, rng_seed=7, block=99, window=3),
}


@st.composite
def orders(draw: st.DrawFn) -> DeterministicSampler:
    num_samples, rng_seed = draw(st.integers(1, 150)), draw(st.integers(0, 2**64))
    block = draw(st.integers(0, 40))
    return DeterministicSampler(num_samples, rng_seed, block, draw(st.integers(1, 6)))


any_order = {"order": orders()}
few = settings(max_examples=50, deadline=None)


@few
@given(**any_order, epoch=st.integers(0, 2**33))
def test_every_epoch_holds_every_sample_once(order: DeterministicSampler, epoch: int):
    ids = order.indices(epoch * order.num_samples, order.num_samples)
    assert sorted(ids) == list(range(order.num_samples))


@few
@given(**any_order, start=st.integers(0, 10**6), count=st.integers(0, 200), cut=st.integers(0, 200))
def test_a_seek_gives_what_a_walk_gives(
    order: DeterministicSampler, start: int, count: int, cut: int
):
    cut = min(cut, count)
    walk = order.indices(start, count)
    window_ids.cache_clear()
    seek = order.indices(start + cut, count - cut)
    assert walk.dtype == seek.dtype == np.int64
    np.testing.assert_array_equal(walk[cut:], seek)


@few
@given(
    **any_order,
    step=st.integers(0, 10**6),
    batch_size=st.integers(1, 100),
    world_size=st.integers(1, 20),
)
def test_ranks_join_to_the_global_batch_in_any_world(
    order: DeterministicSampler, step: int, batch_size: int, world_size: int
):
    parts = [order.rank_indices(step, batch_size, rank, world_size) for rank in range(world_size)]
    batch = order.indices(step * batch_size, batch_size)
    np.testing.assert_array_equal(np.concatenate(parts), batch)


@pytest.mark.parametrize("order", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("world_size", WORLDS)
def test_ranks_share_out_whole_epochs(world_size: int, order: DeterministicSampler):
    # as many steps as samples, of 8 images each, are 8 epochs; some end within batches
    steps, ranks = range(order.num_samples), range(world_size)
    stream = np.concatenate(
        [order.rank_indices(s, 8, rank, world_size) for s in steps for rank in ranks]
    )
    for epoch in stream.reshape(8, order.num_samples):
        assert sorted(epoch) == list(range(order.num_samples))


def test_ranks_read_disjoint_samples_within_an_epoch():
    order = DeterministicSampler(100, 0, block=8, window=3)
    parts = [order.rank_indices(1, 30, rank, 7) for rank in range(7)]
    assert [len(part) for part in parts] == [4, 4, 4, 5, 4, 4, 5]
    assert len({*np.concatenate(parts).tolist()}) == 30


@pytest.mark.parametrize("block", [0, 4])
def test_seeds_and_epochs_give_other_orders(block: int):
    orders = [DeterministicSampler(50, seed, block, 3) for seed in (0, 1, 2**32, 2**32 + 1)]
    seen = {tuple(order.indices(50 * epoch, 50)) for order in orders for epoch in range(4)}
    assert len(seen) == 16


# The random tests of this package have fixed seeds, so that they always pass or always fail. A
# right order fails one in a million of them.
ALPHA = 1e-6


@pytest.mark.parametrize(
    "order", [DeterministicSampler(4, 0), DeterministicSampler(4, 0, block=2, window=2)]
)
def test_every_order_of_an_epoch_is_equally_likely(order: DeterministicSampler):
    counts = dict.fromkeys(permutations(range(4)), 0)
    for seed in range(4000):
        counts[
            tuple(DeterministicSampler(4, seed, order.block, order.window).indices(0, 4).tolist())
        ] += 1
    assert chisquare(list(counts.values())).pvalue > ALPHA


def test_the_full_shuffle_is_uniform_at_every_position():
    counts = np.zeros((9, 9))
    for seed in range(4000):
        counts[np.arange(9), DeterministicSampler(9, seed).indices(18, 9)] += 1
    assert (chisquare(counts, axis=1).pvalue > ALPHA).all()


@pytest.mark.parametrize(
    ("num_samples", "rng_seed", "epoch", "first"),
    [
        (8, 0, 0, [7, 4, 5, 1, 0, 3, 2, 6]),
        (1000, 12345, 2, [126, 130, 744, 350, 537, 105, 305, 644]),
        (60000, 2**63, 5, [3302, 11812, 17620, 37240, 26260, 8856, 16884, 53756]),
        (202599, 42, 11, [173952, 18154, 95669, 85790, 156953, 24905, 64027, 175854]),
    ],
)
def test_the_full_shuffle_is_pinned(num_samples: int, rng_seed: int, epoch: int, first: list[int]):
    # A change here would give every resumed run another order than it began with.
    order = DeterministicSampler(num_samples, rng_seed)
    assert order.indices(epoch * num_samples, 8).tolist() == first


def test_a_batch_straddles_epochs():
    first, second = permutation(5, 1, 0), permutation(5, 1, 1)
    np.testing.assert_array_equal(
        DeterministicSampler(5, 1).indices(3, 4), [*first[3:], *second[:2]]
    )


def test_a_batch_may_be_longer_than_several_epochs():
    expected = np.concatenate([permutation(3, 1, epoch) for epoch in range(4)])
    np.testing.assert_array_equal(DeterministicSampler(3, 1).indices(0, 12), expected)


def test_what_is_cached_is_read_only():
    for cached in (permutation(4, 0, 0), window_ids(DeterministicSampler(4, 0, 2, 2), 0, 0)):
        with pytest.raises(ValueError, match="read-only"):
            cached[0] = 1


def test_what_is_handed_out_is_the_callers_own():
    for order in KINDS.values():
        before = order.indices(0, 4)
        order.indices(0, 4)[:] = -1
        np.testing.assert_array_equal(order.indices(0, 4), before)


def test_uneven_slices_join_without_gap_and_differ_by_at_most_one():
    assert [rank_slice(8, rank, 3) for rank in range(3)] == [slice(0, 2), slice(2, 5), slice(5, 8)]


@given(batch_size=st.integers(0, 500), world_size=st.integers(1, 64))
def test_slices_partition_every_batch(batch_size: int, world_size: int):
    slices = [rank_slice(batch_size, rank, world_size) for rank in range(world_size)]
    assert [i for part in slices for i in range(part.start, part.stop)] == list(range(batch_size))
    sizes = [part.stop - part.start for part in slices]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"num_samples": 0}, "num_samples=0, .* at least 1"),
        ({"rng_seed": -1}, "rng_seed=-1, .* at least 0"),
        ({"block": -1}, "block=-1, .* at least 0"),
        ({"window": -1}, "window=-1: .* at least 0"),
        ({"block": 64}, "window=0 with block=64: must be at least 1; use window=32, or block=0"),
        (
            {"block": 2**20, "window": 64},
            "data.block_rows=1048576, .* below 67108864; use smaller",
        ),
    ],
)
def test_wrong_fields_are_rejected(numbers: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        DeterministicSampler(**({"num_samples": 5, "rng_seed": 0} | numbers))


def test_wrong_numbers_are_rejected():
    with pytest.raises(ValueError, match=r"rank=3 is not in a world of 3"):
        rank_slice(8, 3, 3)
    order = DeterministicSampler(5, 0)
    with pytest.raises(ValueError, match=r"rank=3 is not in a world of 3"):
        order.rank_indices(0, 8, 3, 3)
    with pytest.raises(ValueError, match=r"step=-1, batch_size=8: must be at least 0 and 1"):
        order.rank_indices(-1, 8, 0, 3)
    with pytest.raises(ValueError, match=r"step=0, batch_size=0: must be at least 0 and 1"):
        order.rank_indices(0, 0, 0, 1)
    with pytest.raises(ValueError, match=r"start=-1, count=2: must be at least 0"):
        order.indices(-1, 2)
