"""Intervals against scipy, closed forms, and small simulations of how often they hold."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy import stats

from ganray.metrics import intervals
from ganray.metrics.diversity import effective_rank, normalize_rows, vendi_from_moments, vendi_score
from ganray.metrics.frechet import Moments, kid
from ganray.metrics.intervals import (
    Estimate,
    bootstrap,
    bootstrap_counts,
    replicate_interval,
    share_interval,
)
from ganray.metrics.precision_recall import Manifold, manifold_scores

HALVES = 5


def kl_to_uniform(counts):
    p = counts / counts.sum(-1, keepdims=True)
    return stats.entropy(p, np.full(p.shape, 1 / p.shape[-1]), axis=-1)


def first_share(counts):
    return counts[..., 0] / counts.sum(-1)


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
        (Estimate(0.5, -math.inf, math.inf, 1), "0.500 [-inf, inf]"),
        (Estimate(math.inf, 13000.0, math.inf, 300), "inf [13,000, inf]"),
    ],
)
def test_an_estimate_shows_the_digits_that_its_interval_justifies(estimate, text):
    assert estimate.brief() == text


@pytest.mark.parametrize("statistic", [np.mean, np.median, np.std])
def test_the_bootstrap_interval_is_as_wide_as_scipys_and_centred_on_the_value(statistic):
    values = np.random.default_rng(1).gamma(2, size=77)
    result = bootstrap(statistic, values, rng_seed=5, resamples=300)
    peer = stats.bootstrap(
        (values,), statistic, rng=np.random.default_rng(5), n_resamples=300, method="percentile"
    )
    low, high = peer.confidence_interval
    shift = statistic(values) - peer.bootstrap_distribution.mean()
    np.testing.assert_allclose([result.low, result.high], [low + shift, high + shift], rtol=1e-12)
    assert (result.value, result.n) == (statistic(values), 77)


def test_the_bootstrap_of_counts_has_the_binomial_interval_of_a_share():
    result = bootstrap_counts(first_share, [300, 500, 200], rng_seed=0, resamples=20_000)
    expected = stats.binom.ppf([0.025, 0.975], 1000, 0.3) / 1000
    np.testing.assert_allclose([result.low, result.high], expected, atol=0.0021)
    assert (result.value, result.n) == (0.3, 1000)


def test_the_bootstrap_of_counts_equals_that_of_the_samples():
    labels = np.random.default_rng(3).choice(4, size=500, p=[0.4, 0.3, 0.2, 0.1])
    by_counts = bootstrap_counts(kl_to_uniform, np.bincount(labels), rng_seed=0, resamples=800)
    by_samples = bootstrap(
        lambda x: kl_to_uniform(np.bincount(x, minlength=4)), labels, rng_seed=0, resamples=800
    )
    np.testing.assert_allclose(
        [by_counts.low, by_counts.high], [by_samples.low, by_samples.high], atol=0.01
    )


def test_an_interval_is_repeatable_and_depends_on_the_seed():
    first, again, other = (
        bootstrap_counts(kl_to_uniform, [30, 50, 20], rng_seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("p", "n", "runs"), [(np.full(1000, 1e-3), 26_000, 6), (np.arange(1, 11) / 55, 1000, 200)]
)
def test_how_often_the_interval_of_kl_holds(p, n, runs):
    rng = np.random.default_rng(4)
    mean = kl_to_uniform(rng.multinomial(n, p, size=2000)).mean()
    held = 0
    for seed in range(runs):
        counts = rng.multinomial(n, p)
        result = bootstrap_counts(kl_to_uniform, counts, rng_seed=seed, resamples=200)
        held += result.low <= mean <= result.high
    assert 0.91 <= held / runs <= 1


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
        (lambda: bootstrap_counts(first_share, [0, 0], rng_seed=0), "sum of at least 1"),
        (lambda: bootstrap_counts(first_share, [3, -1], rng_seed=0), "not negative"),
        (lambda: bootstrap_counts(first_share, [0.5, 0.5], rng_seed=0), "whole numbers"),
        (lambda: bootstrap_counts(first_share, [[1]], rng_seed=0), r"shape \(1, 1\)"),
        (lambda: replicate_interval([]), "at least one"),
        (lambda: replicate_interval([1.0, math.nan]), "must be finite"),
    ],
)
def test_an_error_names_value_and_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("copies", [0, 30])
def test_half_sample_manifold_equals_the_scores_of_each_half(copies):
    reference, samples = Manifold.fit(cloud(150, 0)), 0.8 * cloud(201, 1, copies)
    fit = Manifold.fit(samples, intervals.REACH)
    of_all, result = intervals.half_sample_manifold(reference, fit, HALVES, rng_seed=7)
    assert asdict(of_all) == pytest.approx(asdict(manifold_scores(reference, fit)), abs=1e-12)
    chosen = intervals._random_halves(201, HALVES, 7)
    assert (chosen.sum(1) == 100).all()
    for i, half in enumerate(chosen):
        scores = manifold_scores(reference, Manifold.fit(samples[half]))
        for name, values in result.items():
            assert values[i] == pytest.approx(getattr(scores, name), abs=1e-12), name
    assert result["recall"].std() > 0


def test_halves_of_equal_samples_do_not_scatter():
    reference, samples = (
        Manifold.fit(cloud(50, 0)),
        Manifold.fit(torch.ones(40, 6), intervals.REACH),
    )
    _, result = intervals.half_sample_manifold(reference, samples, HALVES, rng_seed=0)
    assert all(np.ptp(values) < 1e-12 for values in result.values())
    assert result["recall"][0] == 0


def test_half_sample_moments_and_kid_equal_the_scores_of_each_half():
    reference, samples = cloud(90, 0), cloud(123, 1)
    unit = normalize_rows(samples)
    ranks = intervals.half_sample_moments(effective_rank, samples, HALVES, rng_seed=3)
    vendis = intervals.half_sample_moments(vendi_from_moments, unit, HALVES, rng_seed=3)
    value = kid(reference, samples)
    kids = intervals.half_sample_kid(reference, samples, value, HALVES, rng_seed=3)
    groups = intervals._random_groups(len(samples), 3)
    assert sorted(torch.cat(groups).tolist()) == list(range(123))

    def halves(count):
        for chosen in intervals._random_halves(len(groups), count, 3):
            rows = [group for group, is_in in zip(groups, chosen, strict=True) if is_in]
            yield samples[torch.cat(rows)]

    for i, half in enumerate(halves(HALVES)):
        assert ranks[i] == pytest.approx(effective_rank(Moments.of(half)))
        assert vendis[i] == pytest.approx(vendi_score(half))
    # The first draw of kid's halves stands for all groups.
    for i, half in enumerate(list(halves(HALVES + 1))[1:]):
        assert kids[i] == pytest.approx(kid(reference, half), abs=1e-12)


def test_halves_scatter_like_independent_samples():
    reference = Manifold.fit(cloud(200, 0))
    sets = [0.6 * cloud(200, 100 + i) for i in range(40)]
    coverage = [manifold_scores(reference, Manifold.fit(samples)).coverage for samples in sets]
    fits = [Manifold.fit(samples, intervals.REACH) for samples in sets[:5]]
    halves = [intervals.half_sample_manifold(reference, fit, 60, rng_seed=0)[1] for fit in fits]
    spread = [half["coverage"].std() for half in halves]
    assert np.mean(spread) == pytest.approx(np.std(coverage), rel=0.35)
