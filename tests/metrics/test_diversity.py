"""Diversity metrics against vendi-score, numpy, the birthday problem and closed forms."""

import math

import numpy as np
import pytest
import torch
from vendi_score import vendi

from ganray.metrics.diversity import (
    birthday_support,
    count_duplicates,
    duplicate_threshold,
    effective_rank,
    vendi_score,
)
from ganray.metrics.frechet import Moments


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw_items(probabilities, samples, rng):
    """Draw samples (samples, 1) whose only feature is the number of an item."""
    items = rng.choice(len(probabilities), size=samples, p=probabilities)
    return torch.tensor(items, dtype=torch.float64)[:, None]


@pytest.mark.parametrize(("n", "d"), [(7, 3), (3, 7), (1, 5)])
def test_equal_samples_have_a_vendi_score_of_one(n, d):
    assert vendi_score(normal(1, d).expand(n, d)) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("copies", [1, 4])
def test_each_orthogonal_sample_counts(copies):
    scaled = torch.diag(torch.arange(1.0, 7.0)).repeat(copies, 1)  # lengths do not matter
    assert vendi_score(scaled) == pytest.approx(6, abs=1e-9)


@pytest.mark.parametrize(("n", "d"), [(300, 20), (15, 20), (64, 64)])
def test_vendi_score_equals_the_authors_code(n, d):
    features = normal(n, d, seed=1).double() + 0.3
    for expected in (vendi.score_dual(features.numpy()), vendi.score_X(features.numpy())):
        assert vendi_score(features) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("width", [2, 9])
def test_zero_features_are_one_more_direction(width):
    features = torch.zeros(4, width)
    features[0, 0] = features[1, 1] = 1
    expected = math.exp(-2 * 0.25 * math.log(0.25) - 0.5 * math.log(0.5))
    assert vendi_score(features) == pytest.approx(expected, abs=1e-9)
    assert vendi_score(torch.zeros(4, width)) == pytest.approx(1, abs=1e-9)


def test_effective_rank_is_the_participation_ratio_of_the_covariance():
    features = normal(50, 8, seed=3) * torch.linspace(3, 0.1, 8) + 100
    values = np.linalg.eigvalsh(np.cov(features.double().numpy(), rowvar=False))
    expected = values.sum() ** 2 / (values**2).sum()
    assert effective_rank(Moments.of(features)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("d", [3, 20])
def test_effective_rank_of_an_isotropic_cloud_is_its_dimension(d):
    features = normal(5000, d, seed=4) @ torch.linalg.qr(normal(64, d, seed=5)).Q.T + 7
    assert effective_rank(Moments.of(features)) == pytest.approx(d * 5000 / (d + 5000), rel=0.01)


def test_effective_rank_is_one_on_a_line_and_zero_for_equal_samples():
    line = normal(40, 1, seed=6) * normal(1, 10, seed=7) + 3
    assert effective_rank(Moments.of(line)) == pytest.approx(1, abs=1e-6)
    point = normal(1, 10).expand(40, 10) * (1 + 1e-7 * normal(40, 1))
    assert effective_rank(Moments.of(point)) == 0


def support_of(features, threshold):
    return birthday_support(count_duplicates([features], [threshold]))


def test_support_counts_pairs_within_the_threshold():
    line = torch.tensor([[0.0], [10.0], [10.5], [30.0], [31.0], [32.0]])
    assert support_of(line, 1.0).value == 15 / 3


def test_the_threshold_is_a_quantile_of_nearest_distances():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0], [15.0]])  # nearest at 1, 1, 2, 4, 8
    assert duplicate_threshold(line, 0.0) == pytest.approx(1)
    assert duplicate_threshold(line, 0.5) == pytest.approx(2)
    assert duplicate_threshold(line, 0.625) == pytest.approx(3)


def test_duplicates_are_near_by_all_features():
    pixels = torch.tensor([[0.0], [0.1], [0.2], [9.0]])
    features = torch.tensor([[0.0], [0.1], [5.0], [0.2]])
    assert count_duplicates([features, pixels], [1.0, 1.0]).tolist() == [1, 1, 0, 0]
    assert count_duplicates([features], [1.0]).tolist() == [2, 2, 0, 2]


def test_reference_images_reach_the_largest_measurable_support():
    reference = normal(1000, 16, seed=8)
    support = support_of(reference, duplicate_threshold(reference, 0.01)).value
    # Ten of the thousand have a neighbor within the threshold: five pairs, or more in triples.
    assert 1000 / 0.01 / 2 <= support <= 1000 / 0.01


def test_a_duplicate_among_37_draws_of_1000_items_has_even_odds():
    rng, items = np.random.default_rng(9), np.full(1000, 1e-3)
    found = [support_of(draw_items(items, 37, rng), 0.0).value < math.inf for _ in range(300)]
    exact = 1 - math.prod(1 - i / 1000 for i in range(37))
    assert exact == pytest.approx(0.49, abs=0.01)
    assert np.mean(found) == pytest.approx(exact, abs=3 * 0.5 / math.sqrt(300))


@pytest.mark.parametrize(("items", "samples"), [(10, 200), (1000, 100), (1000, 600)])
def test_the_interval_holds_the_number_of_even_items(items, samples):
    rng, p = np.random.default_rng(10), np.full(items, 1 / items)
    estimates = [support_of(draw_items(p, samples, rng), 0.0) for _ in range(60)]
    assert np.mean([e.low <= items <= e.high for e in estimates]) >= 0.93
    inverse = np.mean([1 / e.value for e in estimates])  # an unbiased estimate
    assert inverse * items == pytest.approx(1, rel=0.15)


def test_the_support_of_uneven_items_is_the_effective_number():
    p = 1 / np.arange(1, 1001)
    p /= p.sum()
    rng, effective = np.random.default_rng(11), 1 / (p**2).sum()
    estimates = [support_of(draw_items(p, 500, rng), 0.0) for _ in range(60)]
    assert 30 < effective < 40
    assert np.mean([e.low <= effective <= e.high for e in estimates]) >= 0.88


def test_equal_samples_have_a_support_of_one():
    support = support_of(normal(1, 8).expand(200, 8), 0.0)
    assert support.value == support.low == 1
    assert support.high < 1.02


def test_without_a_duplicate_only_the_lower_end_is_finite():
    support = support_of(normal(100, 8, seed=12), 0.0)
    # With 3.69 expected events, none happens with probability 2.5 %.
    assert support.low == pytest.approx(4950 / -math.log(0.025))
    assert support.value == support.high == math.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vendi_score(torch.zeros(0, 3)), "must be at least 1"),
        (lambda: vendi_score(torch.full((2, 3), math.nan)), "must be finite"),
        (lambda: effective_rank(Moments.of(normal(1, 3))), "moments of 1 rows"),
        (lambda: support_of(normal(1, 3), 0.0), "must be at least 2"),
        (lambda: support_of(normal(9, 3), -1.0), r"thresholds=\[-1.0\]; must not be negative"),
        (
            lambda: duplicate_threshold(normal(9, 3), 5),
            r"share=5; must be in \[0, 1\]",
        ),
    ],
)
def test_an_error_names_value_and_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()
