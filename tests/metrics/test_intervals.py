"""Intervals against scipy, closed forms, and small simulations of how often they hold."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ganray.metrics.intervals import (
    Estimate,
    replicate_interval,
    share_interval,
    subsample_interval,
)
from ganray.metrics.precision_recall import Manifold, manifold_scores


def cloud(count, rng_seed, copies=0):
    rows = torch.randn(count, 6, generator=torch.Generator().manual_seed(rng_seed))
    rows[:copies] = rows[copies : 2 * copies]
    return rows


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.59, 0.55, 0.63, 10_000), "0.59 [0.55, 0.63]"),
        (Estimate(0.02361, 0.0226, 0.0246, 26_000), "0.0236 [0.0226, 0.0246]"),
        (Estimate(9.4, 8.3, 10.5, 5), "9.4 [8.3, 10.5]"),
        (Estimate(51234.5, 40000.1, 66000.2, 1000), "51,234 [40,000, 66,000]"),
        (Estimate(1.0, 1.0, 1.0, 64), "1.00 [1.00, 1.00]"),
        (Estimate(0.0, -1e-17, 1e-17, 64), "0 [0, 0]"),
        (Estimate(-0.0001, -0.01, 0.02, 64), "0.000 [-0.010, 0.020]"),
        (Estimate(0.5, -math.inf, math.inf, 1), "0.500"),
        (Estimate(math.inf, 13000.0, math.inf, 300), "inf [13,000, inf]"),
    ],
)
def test_an_estimate_shows_the_digits_that_its_interval_justifies(estimate, text):
    assert estimate.brief() == text


def test_replicates_have_students_interval():
    values = [9.0, 10.0, 10.0, 7.0, 8.0]
    result = replicate_interval(values, level=0.9)
    expected = stats.t.interval(0.9, 4, loc=np.mean(values), scale=stats.sem(values))
    np.testing.assert_allclose([result.low, result.high], expected, rtol=1e-12)
    assert (result.value, result.n) == (8.8, 5)


def test_one_replicate_bounds_nothing():
    assert replicate_interval([10.0]) == Estimate(10.0, -math.inf, math.inf, 1)


def test_a_share_has_the_exact_interval():
    """Without a hit the upper end p solves (1 - p)^n = 0.025."""
    result = share_interval(0, 20)
    assert (result.value, result.low, result.n) == (0, 0, 20)
    assert result.high == pytest.approx(1 - 0.025 ** (1 / 20))
    half = share_interval(10, 20)
    assert half.value - half.low == pytest.approx(half.high - half.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: replicate_interval([]), "at least one"),
        (lambda: replicate_interval([1.0, math.nan]), "must be finite"),
    ],
)
def test_an_error_names_value_and_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_subsample_interval_has_the_width_of_independent_samples():
    """The mean of n numbers with a spread of 1 has a standard error of 1 / sqrt(n)."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(400)
    replicates = np.array([rng.permutation(values)[:100].mean() for _ in range(2_000)])
    result = subsample_interval(values.mean(), replicates, 100, 400)
    assert result.value == values.mean()
    assert result.high - result.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)


@pytest.mark.parametrize("metric", ["coverage", "recall", "precision", "density"])
def test_subsample_intervals_of_neighbors_hold_for_new_samples_and_reference_images(metric):
    """The expectation of 300 against 300, of 40 draws of both, lies in nearly all intervals."""

    def score(x, y):
        return getattr(manifold_scores(Manifold.fit(x), Manifold.fit(y)), metric)

    rng, values, results = np.random.default_rng(1), [], []
    for draw in range(40):
        x, y = cloud(300, 2 * draw), 0.8 * cloud(300, 2 * draw + 1)
        values.append(score(x, y))
        if draw % 2:
            continue
        rows = [torch.from_numpy(rng.permutation(300)[:100]) for _ in range(2 * 30)]
        pairs = zip(rows[::2], rows[1::2], strict=True)
        replicates = np.array([score(x[a], y[b]) for a, b in pairs])
        results.append(subsample_interval(values[-1], replicates, 100, 300))
    held = [result.low <= np.mean(values) <= result.high for result in results]
    assert np.mean(held) >= 0.8  # 20 intervals: 0.8 or less with probability 1.6 % at 95 %
    spread = np.std(values) * 2 * 1.96
    assert np.median([r.high - r.low for r in results]) == pytest.approx(spread, rel=0.5)
