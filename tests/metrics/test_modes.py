"""Counts and divergences against scipy and closed forms."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from ganray.metrics import modes


def test_counts_cover_every_class():
    assert modes.count([0, 2, 2], 4).tolist() == [1, 0, 2, 0]
    assert modes.count(np.array([], np.int64), 2).tolist() == [0, 0]
    assert modes.count([], 2).tolist() == [0, 0]


def test_only_confident_samples_are_counted():
    labels, confidences = [0, 0, 1, 2], [0.89, 0.9, 1.0, 0.2]
    assert modes.count_confident(labels, confidences, 3).tolist() == [1, 1, 0]
    assert modes.count_confident(labels, confidences, 3, at_least=0.2).tolist() == [2, 1, 1]
    assert modes.count_confident([1], [math.nan], 3).sum() == 0


def test_a_mode_is_captured_by_one_sample_or_by_a_share():
    counts = [0, 1, 9, 90]
    assert modes.count_captured(counts) == 3
    assert modes.count_captured(counts, share=0.09) == 2
    assert modes.count_captured(counts, share=[0, 0.02, 0.09, 0.9]) == 2
    assert modes.count_captured(counts, share=0.09, samples=1000) == 1  # most were not confident
    assert modes.count_captured([7, 93], share=0.07) == 2  # 0.07 * 100 > 7 in floating point
    assert modes.count_captured([0, 0], share=0.0) == 0


@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
def test_all_samples_in_one_class_diverge_by_ln_k(classes):
    counts = np.zeros(classes, np.int64)
    counts[-1] = 500
    assert modes.kl(counts) == pytest.approx(math.log(classes), abs=1e-12)
    assert modes.kl_corrected(counts) == pytest.approx(math.log(classes), abs=1e-12)


def test_proportional_counts_do_not_diverge():
    assert modes.kl([5] * 8) == 0
    assert modes.js([5] * 8) == 0
    assert modes.kl([1, 2, 3], [10, 20, 30]) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_divergences_equal_scipy(classes):
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, classes) + (np.arange(classes) == 0)
    weights = rng.random(classes) + 0.01
    uniform = np.full(classes, 1 / classes)
    assert modes.kl(counts) == pytest.approx(entropy(counts, uniform), abs=1e-12)
    assert modes.kl(counts, weights) == pytest.approx(entropy(counts, weights), abs=1e-12)
    for q, reference in ((uniform, None), (weights, weights)):
        expected = jensenshannon(counts, q) ** 2
        assert modes.js(counts, reference) == pytest.approx(expected, abs=1e-12)


def test_js_of_one_class_of_k_and_of_disjoint_halves():
    k = 10
    expected = 0.5 * math.log(2 / (1 + 1 / k))
    expected += 0.5 * (math.log(2 / (k + 1)) / k + (k - 1) / k * math.log(2))
    assert modes.js([7] + [0] * (k - 1)) == pytest.approx(expected, abs=1e-12)
    assert modes.js([3, 0], [0, 1]) == pytest.approx(math.log(2), abs=1e-12)


def test_samples_in_a_class_of_weight_zero_diverge_infinitely():
    assert modes.kl([1, 1], [1, 0]) == math.inf
    assert math.isfinite(modes.kl([1, 0], [1, 1]))


def test_divergences_without_samples_are_nan():
    for divergence in (modes.kl, modes.kl_corrected, modes.js):
        assert math.isnan(divergence([0, 0]))


def test_the_correction_removes_the_bias():
    """An ideal sampler of 1,000 classes scores 0.0193 with 26,000 samples, and 0 corrected."""
    rng = np.random.default_rng(1)
    draws = rng.multinomial(26_000, np.full(1000, 1e-3), size=100)
    assert np.mean([modes.kl(c) for c in draws]) == pytest.approx(0.0193, abs=3e-4)
    assert np.mean([modes.kl_corrected(c) for c in draws]) == pytest.approx(0, abs=3e-4)


def test_the_correction_removes_the_bias_of_a_sampled_reference_too():
    """2,600 and 26,000 images of 100 even classes: 99 / 2 * (1 / 2,600 + 1 / 26,000)."""
    rng = np.random.default_rng(1)
    samples = rng.multinomial(26_000, np.full(100, 0.01), size=100)
    references = rng.multinomial(2600, np.full(100, 0.01), size=100)
    pairs = list(zip(samples, references, strict=True))
    assert np.mean([modes.kl(s, r) for s, r in pairs]) == pytest.approx(0.0209, abs=8e-4)
    corrected = [modes.kl_corrected(s, r, reference_counts=r) for s, r in pairs]
    assert np.mean(corrected) == pytest.approx(0, abs=8e-4)


def test_the_correction_counts_the_classes_that_were_hit():
    counts = [30, 10, 0, 0]
    assert modes.kl_corrected(counts) == modes.kl(counts) - 1 / 80
    corrected = modes.kl_corrected(counts, reference_counts=[4, 1, 0, 5])
    assert corrected == modes.kl(counts) - (1 / 80 + 2 / 20)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: modes.count([0, 10], 10), r"labels: from 0 to 10; must lie in \[0, 10\)"),
        (lambda: modes.count([-1], 10), "labels: from -1 to -1"),
        (lambda: modes.count([0.5], 10), r"labels: float64 \(1,\); must be integers"),
        (lambda: modes.count([[1]], 10), r"labels: int64 \(1, 1\)"),
        (lambda: modes.count_confident([1, 1], [0.5], 2), r"confidences: \(1,\) for labels \(2,\)"),
        (lambda: modes.kl([1, -1]), r"counts: int64 \(2,\); must be integers \(K,\), not negative"),
        (lambda: modes.kl([0.5, 0.5]), "counts: float64"),
        (lambda: modes.kl([1, 1], [1, 1, 1]), r"reference: \(3,\) .* for counts \(2,\)"),
        (lambda: modes.js([1, 1], [0, 0]), r"reference: .* with sum 0\.0"),
        (lambda: modes.js([1, 1], [1, math.nan]), "reference: .* with sum nan"),
    ],
)
def test_an_error_names_value_and_rule(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
