"""The ring and the grid against closed forms and a plain loop."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import binomtest, entropy, kstest

from tests.benchmarks.gaussian_mixtures import HIGH_QUALITY, MIXTURES, Mixture, grid, ideal_kl, ring

BOTH = pytest.mark.parametrize("mixture", MIXTURES.values(), ids=lambda mixture: mixture.name)


def test_the_ring_has_eight_distinct_modes():
    centers = np.array(ring().centers)
    assert centers.shape == (8, 2)
    np.testing.assert_allclose(np.linalg.norm(centers, axis=1), 1)
    distances = cdist(centers, centers)
    chord = 2 * math.sin(math.pi / 8)
    np.testing.assert_allclose(np.sort(distances, 1)[:, 1], chord)
    assert ring().sigma == 0.01


def test_the_grid_is_25_modes_from_minus_4_to_4():
    axis = (-4, -2, 0, 2, 4)
    assert set(grid().centers) == {(x, y) for x in axis for y in axis}
    assert grid().sigma == 0.05


@BOTH
def test_the_mixture_itself_reaches_the_closed_form(mixture):
    """P(|x| <= 3 sigma) = 1 - exp(-4.5) in the plane."""
    n = 40_000
    scores = mixture.score(mixture.sample(n, rng_seed=3))
    assert binomtest(round(scores.high_quality * n), n, HIGH_QUALITY).pvalue > 1e-3
    assert pytest.approx(0.98889, abs=1e-5) == HIGH_QUALITY
    assert scores.modes == len(mixture.centers)
    _, low, high = ideal_kl(n, np.ones(len(mixture.centers)), repeats=500)
    assert low / 2 <= scores.reverse_kl <= high * 2
    assert sum(scores.counts) == scores.n == n


def test_the_kl_of_an_ideal_sampler_is_chi_squared():
    """2N KL of 10 even classes has 9 degrees of freedom, with 95 % limits 2.70 and 19.02."""
    n = 10_000
    expected = np.array([9, 2.70, 19.02]) / (2 * n)
    np.testing.assert_allclose(ideal_kl(n, np.ones(10)), expected, rtol=0.08)


@BOTH
def test_points_are_normal_around_their_center(mixture):
    points = mixture.sample(20_000, rng_seed=0)
    assert points.dtype == np.float32
    nearest, _ = mixture.nearest(points)
    offsets = (points - np.array(mixture.centers)[nearest]) / mixture.sigma
    for axis in range(2):
        assert kstest(offsets[:, axis], "norm").pvalue > 1e-3


def test_samples_depend_on_seed_and_step_only():
    draw = ring().sample
    np.testing.assert_array_equal(draw(5, rng_seed=1, step=2), draw(5, rng_seed=1, step=2))
    for other in ({"rng_seed": 2, "step": 2}, {"rng_seed": 1, "step": 3}):
        assert not np.isin(draw(5, **other), draw(5, rng_seed=1, step=2)).any()
    assert draw(0, rng_seed=0).shape == (0, 2)


@BOTH
def test_scores_equal_a_plain_loop(mixture):
    """Score points of the mixture, near it, and anywhere."""
    rng = np.random.default_rng(0)
    points = mixture.sample(300, rng_seed=0) + rng.normal(0, mixture.sigma * 2, (300, 2))
    points = np.concatenate([points, rng.uniform(-5, 5, (200, 2))])
    counts, good = [0] * len(mixture.centers), [0] * len(mixture.centers)
    for x, y in points:
        distances = [math.hypot(x - a, y - b) for a, b in mixture.centers]
        nearest = distances.index(min(distances))
        counts[nearest] += 1
        good[nearest] += distances[nearest] <= 3 * mixture.sigma
    scores = mixture.score(points)
    assert scores.counts == tuple(counts)
    assert scores.modes == sum(count > 0 for count in good)
    assert scores.high_quality == sum(good) / 500
    assert scores.reverse_kl == pytest.approx(entropy(counts, np.ones(len(counts))))


@BOTH
def test_collapse_to_one_center(mixture):
    scores = mixture.score([mixture.centers[-1]] * 10)
    assert (scores.modes, scores.high_quality) == (1, 1.0)
    assert scores.reverse_kl == pytest.approx(math.log(len(mixture.centers)))


def test_points_between_modes_capture_none_though_they_are_balanced():
    scores = ring().score(0.9 * np.array(ring().centers))
    assert (scores.modes, scores.high_quality) == (0, 0.0)
    assert scores.reverse_kl == pytest.approx(0)


def test_a_point_at_three_sigma_has_high_quality():
    mixture = Mixture("one", ((0.0, 0.0),), 1.0)
    assert mixture.score([[3, 0], [0, 3], [3.0001, 0], [0, 0]]).high_quality == 0.75


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((0, 2)), r"points: \(0, 2\); must be"),
        (np.zeros((4, 3)), r"points: \(4, 3\); must be"),
        ([[0, np.nan], [1, 1]], "1 of 2 are not finite"),
    ],
)
def test_invalid_points_raise_an_error(points, message):
    with pytest.raises(ValueError, match=message):
        ring().score(points)
