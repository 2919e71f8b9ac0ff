"""Moments, Frechet distance, KID and CMMD against numpy, scipy and torch-fidelity."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch.nn.functional import normalize
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from ganray.metrics import matrices
from ganray.metrics.frechet import (
    Moments,
    cmmd,
    frechet_distance,
    frechet_distance_of_rows,
    kid,
)


def normal(n, d, rng_seed=0, dtype=torch.float64):
    return torch.randn(n, d, dtype=dtype, generator=torch.Generator().manual_seed(rng_seed))


def distance(reference, samples):
    return frechet_distance(Moments.of(reference), Moments.of(samples))


def correlated(n, d, rng_seed):
    """Draw correlated rows with a mean."""
    return normal(n, d, rng_seed) @ normal(d, d, 50 + rng_seed) + rng_seed


def test_moments_equal_numpy():
    rows = correlated(200, 5, 1)
    moments = Moments.of(rows)
    np.testing.assert_allclose(moments.mean, rows.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance(), np.cov(rows.numpy().T), rtol=1e-10)


def test_a_large_mean_costs_no_digits():
    rows = normal(500, 3)
    moved = Moments.of(rows + 1e6)
    torch.testing.assert_close(moved.scatter, Moments.of(rows).scatter, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("d", [1, 3, 32])
def test_frechet_distance_equals_scipy_and_torch_fidelity(d):
    reference, samples = correlated(300, d, 1), correlated(200, d, 2)
    a, b = fid_features_to_statistics(reference), fid_features_to_statistics(samples)
    a["sigma"], b["sigma"] = np.atleast_2d(a["sigma"]), np.atleast_2d(b["sigma"])
    expected = fid_statistics_to_metric(a, b, verbose=False)["frechet_inception_distance"]
    assert distance(reference, samples) == pytest.approx(expected, rel=1e-9)
    root = sqrtm(a["sigma"] @ b["sigma"]).real
    shift = a["mu"] - b["mu"]
    by_scipy = shift @ shift + np.trace(a["sigma"] + b["sigma"] - 2 * root)
    assert distance(reference, samples) == pytest.approx(by_scipy, rel=1e-9)


def test_frechet_distance_of_axis_aligned_normals():
    def moments(mean, std):
        variances = torch.tensor(std, dtype=torch.float64) ** 2
        return Moments(11, torch.tensor(mean, dtype=torch.float64), 10 * variances.diag())

    # |m - n|^2 + sum (s - t)^2: 9 + 1 + 4
    result = frechet_distance(moments([0, 0], [1.0, 3.0]), moments([3, 0], [2.0, 1.0]))
    assert result == pytest.approx(14.0, rel=1e-12)


@pytest.mark.parametrize("n", [2, 20, 400])
def test_frechet_distance_to_itself_is_zero_with_few_rows_and_dead_units(n):
    rows = correlated(n, 40, 1)
    rows[:, :5] = 0  # dead units
    scale = Moments.of(rows).covariance().trace().item()
    assert 0 <= distance(rows, rows) < 1e-12 * scale


def test_frechet_distance_to_a_point_is_the_mean_squared_distance():
    # Total collapse: equal samples have no covariance.
    reference, samples = correlated(300, 6, 1), torch.full((50, 6), 2.0, dtype=torch.float64)
    moments = Moments.of(reference)
    expected = (moments.mean - 2).square().sum() + moments.covariance().trace()
    assert distance(reference, samples) == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_distance_is_symmetric_and_invariant_to_order_and_rotation():
    reference, samples = correlated(300, 6, 1), correlated(200, 6, 2)
    expected = pytest.approx(distance(reference, samples), rel=1e-9)
    assert distance(samples, reference) == expected
    assert distance(reference.flip(0), samples.flip(0)) == expected
    rotation = torch.linalg.qr(normal(6, 6)).Q
    assert distance(reference @ rotation, samples @ rotation) == expected


def test_frechet_distance_is_biased_upwards_for_few_rows():
    few, many = (distance(normal(n, 8, 1), normal(n, 8, 2)) for n in (100, 4000))
    assert few > 10 * many > 0


def test_kid_equals_torch_fidelity_with_one_subset_of_all():
    reference, samples = correlated(200, 12, 1), correlated(200, 12, 2)
    scores = kid_features_to_metric(
        reference, samples, kid_subsets=1, kid_subset_size=200, verbose=False
    )
    expected = scores["kernel_inception_distance_mean"]
    assert kid(reference, samples) == pytest.approx(expected, rel=1e-9)


def test_kid_by_hand():
    reference = torch.tensor([[1.0], [-1.0]])  # kernel of the pair: (-1 + 1)^3 = 0
    samples = torch.tensor([[0.0], [1.0], [2.0]])  # kernels of the pairs: 1, 1, 27
    # Across: 1, 8, 27 for the reference 1 and 1, 0, -1 for the reference -1.
    assert kid(reference, samples) == pytest.approx(0 + 29 / 3 - 2 * 36 / 6)


def test_kid_is_unbiased():
    drawn = np.array([kid(normal(40, 4, 2 * i), normal(30, 4, 2 * i + 1)) for i in range(400)])
    assert abs(drawn.mean()) < 4 * drawn.std() / np.sqrt(len(drawn))
    assert (drawn < 0).any()


@pytest.mark.parametrize("block_rows", [1, 7])
@pytest.mark.parametrize("distance", [kid, cmmd])
def test_blocks_and_order_do_not_change_kernel_distances(distance, block_rows, monkeypatch):
    reference, samples = correlated(60, 5, 1), correlated(50, 5, 2)
    expected = pytest.approx(distance(reference, samples), rel=1e-10)
    monkeypatch.setattr(matrices, "BLOCK_BYTES", 8 * 50 * block_rows)
    assert distance(reference, samples) == expected
    assert distance(reference.flip(0), samples.flip(0)) == expected


def test_cmmd_equals_its_formula_in_numpy():
    x, y = normalize(correlated(200, 12, 1)).numpy(), normalize(correlated(150, 12, 2)).numpy()

    def kernel(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(2) / (2 * 10**2))

    expected = 1000 * (kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean())
    assert cmmd(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, rel=1e-9)


def test_cmmd_by_hand():
    # Opposite unit vectors: k(x, x) = 1 and k(x, y) = exp(-4 / 200).
    rows = torch.tensor([[1.0, 0.0]])
    assert cmmd(rows, -rows) == pytest.approx(2000 * (1 - np.exp(-0.02)))
    assert cmmd(rows, rows) == 0


def test_float32_features_are_computed_in_float64():
    reference, samples = normal(100, 8, 1, torch.float32), normal(100, 8, 2, torch.float32)
    assert kid(reference, samples) == kid(reference.double(), samples.double())
    assert distance(reference, samples) == distance(reference.double(), samples.double())


def test_both_distances_detect_a_lost_mode():
    reference = torch.cat([normal(300, 4, 1) + 5, normal(300, 4, 2) - 5])
    good = torch.cat([normal(300, 4, 3) + 5, normal(300, 4, 4) - 5])
    collapsed = normal(600, 4, 3) + 5
    assert distance(reference, collapsed) > 100 * distance(reference, good)
    assert kid(reference, collapsed) > 100 * abs(kid(reference, good))


def test_an_error_names_value_and_rule():
    rows = normal(10, 3)
    with pytest.raises(ValueError, match="samples: 2 columns, but the other matrix has 3"):
        kid(rows, normal(10, 2))
    with pytest.raises(ValueError, match="samples: 2 columns, but the reference has 3"):
        frechet_distance(Moments.of(rows), Moments.of(normal(10, 2)))
    with pytest.raises(ValueError, match="count=1; a covariance needs at least 2 rows"):
        frechet_distance(Moments.of(rows), Moments.of(rows[:1]))


def test_qr_iteration_replaces_a_decomposition_that_does_not_converge(monkeypatch):
    def fail(matrix):
        raise torch.linalg.LinAlgError("did not converge")

    moments = Moments.of(torch.randn(50, 6)), Moments.of(2 * torch.randn(50, 6))
    expected = frechet_distance(*moments)
    monkeypatch.setattr(torch.linalg, "eigh", fail)
    assert frechet_distance(*moments) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "m", "d"), [(20, 30, 50), (40, 60, 8)])
def test_the_distance_of_rows_is_that_of_their_moments(n, m, d):
    generator = torch.Generator().manual_seed(n)
    x, y = torch.randn(n, d, generator=generator), 1 + 2 * torch.randn(m, d, generator=generator)
    expected = frechet_distance(Moments.of(x), Moments.of(y))
    assert frechet_distance_of_rows(x, y) == pytest.approx(expected, rel=1e-9)
