"""The permutation without a table, for sets of 2**26 samples and more."""

import tracemalloc
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

import ganray.data.sampler
from ganray.data.sampler import CIPHER_FROM, CIPHER_ROUNDS, DeterministicSampler, cipher
from tests.data.test_sampler import ALPHA, ciphered

BILLION = 10**9


def keys(seed: int) -> np.ndarray:
    return np.random.Philox(seed).random_raw(CIPHER_ROUNDS)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 2047, 2048, 2049, 20000])
@pytest.mark.parametrize("seed", range(3))
def test_each_number_has_one_image_and_the_keys_backwards_undo_it(size: int, seed: int):
    numbers = np.arange(size, dtype=np.uint64)
    images = cipher(numbers, size, keys(seed))
    np.testing.assert_array_equal(np.sort(images), numbers)
    np.testing.assert_array_equal(cipher(images, size, keys(seed)[::-1]), numbers)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 2**62), seed=st.integers(0, 99), data=st.data())
def test_any_size_keeps_its_range_and_can_be_undone(size: int, seed: int, data: st.DataObject):
    numbers = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20, unique=True))
    numbers = np.array(numbers, np.uint64)
    images = cipher(numbers, size, keys(seed))
    assert images.dtype == np.uint64
    assert images.max() < size
    assert len(np.unique(images)) == len(numbers)
    np.testing.assert_array_equal(cipher(images, size, keys(seed)[::-1]), numbers)


def test_the_cipher_takes_over_where_a_table_grows_too_large():
    with patch.object(ganray.data.sampler, "permutation", side_effect=LookupError):
        with pytest.raises(LookupError):
            DeterministicSampler(CIPHER_FROM - 1, 0).indices(0, 1)
        DeterministicSampler(CIPHER_FROM, 0).indices(0, 1)


@pytest.mark.parametrize(
    ("num_samples", "rng_seed", "start", "expected"),
    [
        (BILLION, 0, 0, [245278899, 872375332, 182915692, 80028024, 897883351, 870213409]),
        (BILLION, 7, BILLION - 2, [39044787, 40765746, 637744093, 972451899]),
        (2**40, 7, 5, [378714616634, 923318869332, 648018602144, 1043991465748]),
    ],
)
def test_the_cipher_is_pinned(num_samples: int, rng_seed: int, start: int, expected: list[int]):
    # A change here would give every resumed run another order than it began with.
    ids = DeterministicSampler(num_samples, rng_seed).indices(start, len(expected))
    assert ids.tolist() == expected


@pytest.mark.parametrize(
    ("num_samples", "part"), [(BILLION, 0), (BILLION, 0.3), (BILLION, 1), (2**40 - 1, 1)]
)
def test_a_million_ids_are_in_range_without_duplicates(num_samples: int, part: float):
    start = 3 * num_samples + int(part * (num_samples - 10**6))  # up to the very end of an epoch
    ids = DeterministicSampler(num_samples, 1).indices(start, 10**6)
    assert ids.min() >= 0
    assert ids.max() < num_samples
    assert len(np.unique(ids)) == 10**6


def test_a_stretch_crosses_into_the_next_epoch():
    order = DeterministicSampler(BILLION, 1)
    end = 8 * BILLION
    ids = order.indices(end - 1000, 3000)
    np.testing.assert_array_equal(ids[:1000], order.indices(end - 1000, 1000))
    np.testing.assert_array_equal(ids[1000:], order.indices(end, 2000))
    assert len(np.unique(ids[:1000])) == 1000
    assert len(np.unique(ids[1000:])) == 2000
    assert not np.array_equal(ids[1000:2000], order.indices(end - BILLION, 1000))


def test_memory_is_that_of_the_ids_and_not_of_the_set():
    order = DeterministicSampler(BILLION, 1)
    tracemalloc.start()
    try:
        order.indices(5 * BILLION - 64, 128)
        assert tracemalloc.get_traced_memory()[1] < 100_000
        tracemalloc.reset_peak()
        order.indices(5 * BILLION - 64, 100_000)
        assert tracemalloc.get_traced_memory()[1] < 100_000 * 8 * 12
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("num_samples", [9, 16])
def test_the_cipher_is_uniform_at_every_position(num_samples: int):
    counts = np.zeros((num_samples, num_samples))
    with ciphered():
        for seed in range(2000):
            ids = DeterministicSampler(num_samples, seed).indices(0, num_samples)
            counts[np.arange(num_samples), ids] += 1
    assert (chisquare(counts, axis=1).pvalue > ALPHA).all()


@pytest.mark.parametrize("num_samples", [CIPHER_FROM, BILLION, 2**40])
def test_neighbours_and_bits_are_independent(num_samples: int):
    positions = np.arange(200_000)
    ids = DeterministicSampler(num_samples, 2).indices(0, len(positions))
    sixteenth = ids * 16 // num_samples
    for a, b in [
        (sixteenth[:-1], sixteenth[1:]),  # one id and the next
        (positions % 16, ids % 16),
        (positions % 16, sixteenth),
        (positions * 16 // len(positions), ids % 16),
        (ids % 16, sixteenth),
    ]:
        table = np.histogram2d(a, b, bins=16)[0]
        assert chi2_contingency(table).pvalue > ALPHA
        assert chisquare(table.sum(axis=0)).pvalue > ALPHA
