import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ganray.data.order import permutation, rank_sample_ids, rank_slice, sample_ids

WORLDS = [1, 2, 3, 8]


def global_batch(step: int, world_size: int, *, num_samples: int = 23, batch_size: int = 8):
    parts = [
        rank_sample_ids(num_samples, 7, step, batch_size, rank, world_size)
        for rank in range(world_size)
    ]
    return np.concatenate(parts)


@pytest.mark.parametrize("world_size", WORLDS)
def test_every_epoch_holds_every_sample_once_for_any_world(world_size: int):
    # 23 steps of 8 are 8 epochs of 23 samples: epochs end within batches
    stream = np.concatenate([global_batch(step, world_size) for step in range(23)])
    for epoch in stream.reshape(8, 23):
        assert sorted(epoch) == list(range(23))


@pytest.mark.parametrize("world_size", WORLDS)
def test_the_batch_of_a_step_does_not_depend_on_the_world(world_size: int):
    for step in (0, 2, 1000):
        np.testing.assert_array_equal(global_batch(step, world_size), global_batch(step, 1))


def test_uneven_slices_join_without_gap_and_differ_by_at_most_one():
    assert [rank_slice(8, rank, 3) for rank in range(3)] == [slice(0, 2), slice(2, 5), slice(5, 8)]


def test_a_batch_straddles_epochs():
    first, second = permutation(5, 1, 0), permutation(5, 1, 1)
    np.testing.assert_array_equal(sample_ids(5, 1, 3, 4), [*first[3:], *second[:2]])


def test_a_batch_may_be_longer_than_several_epochs():
    expected = np.concatenate([permutation(3, 1, epoch) for epoch in range(4)])
    np.testing.assert_array_equal(sample_ids(3, 1, 0, 12), expected)


def test_the_order_is_pinned():
    # A change here would give every resumed run another order than it began with.
    np.testing.assert_array_equal(permutation(8, 0, 0), [7, 4, 5, 1, 0, 3, 2, 6])


def test_seeds_and_epochs_give_other_orders():
    orders = {tuple(permutation(50, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_an_order_is_shared_and_therefore_read_only():
    with pytest.raises(ValueError, match="read-only"):
        permutation(4, 0, 0)[0] = 1


@given(
    num_samples=st.integers(1, 60),
    rng_seed=st.integers(0, 2**63),
    start=st.integers(0, 10**6),
    count=st.integers(0, 200),
    cut=st.integers(0, 200),
)
def test_a_stretch_of_the_stream_is_its_two_parts_joined(num_samples, rng_seed, start, count, cut):
    cut = min(cut, count)
    whole = sample_ids(num_samples, rng_seed, start, count)
    parts = [
        sample_ids(num_samples, rng_seed, start, cut),
        sample_ids(num_samples, rng_seed, start + cut, count - cut),
    ]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


@given(batch_size=st.integers(0, 500), world_size=st.integers(1, 64))
def test_slices_partition_every_batch(batch_size: int, world_size: int):
    slices = [rank_slice(batch_size, rank, world_size) for rank in range(world_size)]
    assert [i for part in slices for i in range(part.start, part.stop)] == list(range(batch_size))
    sizes = [part.stop - part.start for part in slices]
    assert max(sizes) - min(sizes) <= 1


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match=r"rank=3 is not in a world of 3"):
        rank_slice(8, 3, 3)
    with pytest.raises(ValueError, match=r"num_samples=0"):
        sample_ids(0, 0, 0, 1)
    with pytest.raises(ValueError, match=r"rng_seed=-1"):
        sample_ids(5, -1, 0, 1)
