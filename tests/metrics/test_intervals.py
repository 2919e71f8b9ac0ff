"""Intervals against scipy's, closed forms, and small simulations of how often they hold."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ganray.metrics.intervals import (
    Estimate,
    bootstrap,
    bootstrap_counts,
    replicate_interval,
    share_interval,
)


def kl_to_uniform(counts):
    p = counts / counts.sum(-1, keepdims=True)
    return stats.entropy(p, np.full(p.shape, 1 / p.shape[-1]), axis=-1)


def first_share(counts):
    return counts[..., 0] / counts.sum(-1)


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.59, 0.55, 0.63, 10_000), "0.59 [0.55, 0.63], n=10,000"),
        (Estimate(0.02361, 0.0226, 0.0246, 26_000), "0.0236 [0.0226, 0.0246], n=26,000"),
        (Estimate(9.4, 8.3, 10.5, 5), "9.4 [8.3, 10.5], n=5"),
        (Estimate(51234.5, 40000.1, 66000.2, 1000), "51,234 [40,000, 66,000], n=1,000"),
        (Estimate(1.0, 1.0, 1.0, 64), "1.00 [1.00, 1.00], n=64"),
        (Estimate(0.0, -1e-17, 1e-17, 64), "0 [0, 0], n=64"),
        (Estimate(0.5, -math.inf, math.inf, 1), "0.500 [-inf, inf], n=1"),
        (Estimate(math.inf, 13000.0, math.inf, 300), "inf [13,000, inf], n=300"),
    ],
)
def test_an_estimate_shows_the_digits_that_its_interval_bears(estimate, text):
    assert str(estimate) == text


@pytest.mark.parametrize("statistic", [np.mean, np.median, np.std])
def test_bootstrap_is_scipys_percentile_interval(statistic):
    values = np.random.default_rng(1).gamma(2, size=77)
    ours = bootstrap(statistic, values, rng_seed=5, resamples=300, centred=False)
    peer = stats.bootstrap(
        (values,), statistic, rng=np.random.default_rng(5), n_resamples=300, method="percentile"
    ).confidence_interval
    np.testing.assert_allclose([ours.low, ours.high], peer, rtol=1e-12)
    assert (ours.value, ours.n) == (statistic(values), 77)


def test_several_samples_are_resampled_each_on_its_own():
    rng = np.random.default_rng(2)
    a, b = torch.tensor(rng.normal(size=(400, 1))), torch.tensor(rng.normal(size=(100, 1)))
    got = bootstrap(lambda x, y: (x.mean() - y.mean()).item(), a, b, rng_seed=0)
    spread = math.sqrt(a.var().item() / 400 + b.var().item() / 100)
    assert (got.high - got.low) / (2 * 1.96 * spread) == pytest.approx(1, abs=0.1)
    assert got.n == 400


def test_bootstrap_of_counts_is_the_binomial_of_a_share():
    got = bootstrap_counts(first_share, [300, 500, 200], rng_seed=0, resamples=20_000)
    expected = stats.binom.ppf([0.025, 0.975], 1000, 0.3) / 1000
    np.testing.assert_allclose([got.low, got.high], expected, atol=0.0021)
    assert (got.value, got.n) == (0.3, 1000)


def test_bootstrap_of_counts_is_that_of_the_samples():
    bins = np.random.default_rng(3).choice(4, size=500, p=[0.4, 0.3, 0.2, 0.1])
    by_counts = bootstrap_counts(kl_to_uniform, np.bincount(bins), rng_seed=0, resamples=800)
    by_samples = bootstrap(
        lambda x: kl_to_uniform(np.bincount(x, minlength=4)), bins, rng_seed=0, resamples=800
    )
    np.testing.assert_allclose(
        [by_counts.low, by_counts.high], [by_samples.low, by_samples.high], atol=0.01
    )


def test_an_interval_is_repeatable_and_follows_the_seed():
    first, again, other = (
        bootstrap_counts(kl_to_uniform, [30, 50, 20], rng_seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_the_percentile_interval_of_kl_misses_and_the_centred_one_holds():
    # 26,000 samples of 1000 equal modes: the floor of KL is (K - 1) / 2N = 0.0192.
    rng = np.random.default_rng(0)
    floor, centred, percentile = 999 / 52_000, 0, 0
    for seed in range(6):
        counts = rng.multinomial(26_000, np.full(1000, 1e-3))
        moved, raw = (
            bootstrap_counts(kl_to_uniform, counts, rng_seed=seed, resamples=100, centred=c)
            for c in (True, False)
        )
        centred += moved.low <= floor <= moved.high
        percentile += raw.low <= raw.value <= raw.high or raw.low <= floor <= raw.high
    assert (centred, percentile) == (6, 0)


def test_how_often_the_interval_of_kl_holds():
    p, rng = np.arange(1, 11) / 55, np.random.default_rng(4)
    mean = kl_to_uniform(rng.multinomial(1000, p, size=20_000)).mean()
    held = 0
    for seed in range(200):
        got = bootstrap_counts(
            kl_to_uniform, rng.multinomial(1000, p), rng_seed=seed, resamples=400
        )
        held += got.low <= mean <= got.high
    assert 0.91 <= held / 200 <= 0.98


def test_replicates_have_students_interval():
    values = [9.0, 10.0, 10.0, 7.0, 8.0]
    got = replicate_interval(values, level=0.9)
    peer = stats.t.interval(0.9, 4, loc=np.mean(values), scale=stats.sem(values))
    np.testing.assert_allclose([got.low, got.high], peer, rtol=1e-12)
    assert (got.value, got.n) == (8.8, 5)


def test_one_replicate_bounds_nothing():
    assert replicate_interval([10.0]) == Estimate(10.0, -math.inf, math.inf, 1)


def test_how_often_the_interval_of_replicates_holds():
    runs = np.random.default_rng(8).normal(3, 2, size=(1000, 3))
    held = [(e := replicate_interval(list(values))).low <= 3 <= e.high for values in runs]
    assert 0.93 <= np.mean(held) <= 0.97


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (20, 20), (7, 20), (1, 1), (312, 1000)])
def test_a_share_has_the_exact_interval(hits, n):
    got = share_interval(hits, n)
    peer = stats.binomtest(hits, n).proportion_ci(method="exact")
    np.testing.assert_allclose([got.low, got.high], peer, rtol=1e-9)
    assert (got.value, got.n) == (hits / n, n)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: bootstrap_counts(first_share, [0, 0], rng_seed=0), "sum of at least 1"),
        (lambda: bootstrap_counts(first_share, [3, -1], rng_seed=0), "none negative"),
        (lambda: bootstrap_counts(first_share, [0.5, 0.5], rng_seed=0), "whole numbers"),
        (lambda: bootstrap_counts(first_share, [[1]], rng_seed=0), r"shape \(1, 1\)"),
        (lambda: bootstrap_counts(first_share, [1], rng_seed=0, level=95), "level=95: must be"),
        (lambda: bootstrap(np.mean, np.ones(0), rng_seed=0), r"samples of \[0\] rows"),
        (lambda: bootstrap(np.mean, np.ones(3), rng_seed=0, resamples=1), "resamples=1: must be"),
        (lambda: replicate_interval([]), "at least one"),
        (lambda: replicate_interval([1.0, math.nan]), "must be finite"),
        (lambda: share_interval(3, 2), "hits=3 of n=2"),
    ],
)
def test_an_error_names_value_rule_and_way_out(call, said):
    with pytest.raises(ValueError, match=said):
        call()
