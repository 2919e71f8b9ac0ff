"""Moments, Frechet distance and KID against numpy, scipy, two peers and closed forms."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from ganray.metrics.frechet import Moments, frechet_distance, kid


def normal(n, d, rng_seed=0, dtype=torch.float64):
    return torch.randn(n, d, dtype=dtype, generator=torch.Generator().manual_seed(rng_seed))


def distance(real, fake):
    return frechet_distance(Moments.of(real), Moments.of(fake))


def mixed(n, d, rng_seed):
    """Correlated and off-centre."""
    return normal(n, d, rng_seed) @ normal(d, d, 50 + rng_seed) + rng_seed


def assert_same(a, b, rtol=1e-12):
    assert a.count == b.count
    torch.testing.assert_close(a.mean, b.mean, rtol=rtol, atol=1e-12)
    torch.testing.assert_close(a.scatter, b.scatter, rtol=rtol, atol=1e-9)


def test_moments_are_numpys():
    rows = mixed(200, 5, 1)
    moments = Moments.of(rows)
    np.testing.assert_allclose(moments.mean, rows.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance(), np.cov(rows.numpy().T), rtol=1e-10)


@pytest.mark.parametrize("batch", [1, 7, 200])
def test_merged_batches_are_the_whole(batch):
    rows = mixed(200, 5, 1)
    moments = Moments.none(5)
    for part in rows.split(batch):
        moments = moments.merge(Moments.of(part))
    assert_same(moments, Moments.of(rows))


def test_merged_ranks_are_the_whole_in_any_order():
    rows = mixed(200, 5, 1)
    # Of unequal ranks, one of which has no images.
    a, b, empty, c = (Moments.of(part) for part in rows.split([3, 120, 0, 77]))
    assert_same(a.merge(b).merge(empty).merge(c), Moments.of(rows))
    assert_same(c.merge(empty.merge(b)).merge(a), Moments.of(rows))
    assert_same(empty.merge(Moments.none(5)), Moments.none(5))


def test_a_large_mean_costs_no_digits():
    rows = normal(500, 3)
    moved = [Moments.of(part + 1e6) for part in rows.split(100)]
    merged = moved[0]
    for part in moved[1:]:
        merged = merged.merge(part)
    torch.testing.assert_close(merged.scatter, Moments.of(rows).scatter, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("d", [1, 3, 32])
def test_frechet_is_scipys_and_torch_fidelitys(d):
    real, fake = mixed(300, d, 1), mixed(200, d, 2)
    a, b = fid_features_to_statistics(real), fid_features_to_statistics(fake)
    a["sigma"], b["sigma"] = np.atleast_2d(a["sigma"]), np.atleast_2d(b["sigma"])
    expected = fid_statistics_to_metric(a, b, verbose=False)["frechet_inception_distance"]
    assert distance(real, fake) == pytest.approx(expected, rel=1e-9)
    root = sqrtm(a["sigma"] @ b["sigma"]).real
    apart = a["mu"] - b["mu"]
    by_scipy = apart @ apart + np.trace(a["sigma"] + b["sigma"] - 2 * root)
    assert distance(real, fake) == pytest.approx(by_scipy, rel=1e-9)


def test_frechet_of_normals_along_the_axes():
    def moments(mean, std):
        variances = torch.tensor(std, dtype=torch.float64) ** 2
        return Moments(11, torch.tensor(mean, dtype=torch.float64), 10 * variances.diag())

    # |m - n|^2 + sum (s - t)^2: 9 + 1 + 4
    actual = frechet_distance(moments([0, 0], [1.0, 3.0]), moments([3, 0], [2.0, 1.0]))
    assert actual == pytest.approx(14.0, rel=1e-12)


@pytest.mark.parametrize("n", [2, 20, 400])
def test_frechet_to_itself_is_none_also_where_features_are_few_or_dead(n):
    rows = mixed(n, 40, 1)
    rows[:, :5] = 0  # dead units
    scale = Moments.of(rows).covariance().trace().item()
    assert 0 <= distance(rows, rows) < 1e-12 * scale


def test_frechet_of_a_point_is_the_mean_squared_distance_to_it():
    # Total collapse: one fake again and again has no covariance.
    real, fake = mixed(300, 6, 1), torch.full((50, 6), 2.0, dtype=torch.float64)
    moments = Moments.of(real)
    expected = (moments.mean - 2).square().sum() + moments.covariance().trace()
    assert distance(real, fake) == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_is_symmetric_and_blind_to_order_and_rotation():
    real, fake = mixed(300, 6, 1), mixed(200, 6, 2)
    expected = pytest.approx(distance(real, fake), rel=1e-9)
    assert distance(fake, real) == expected
    assert distance(real.flip(0), fake.flip(0)) == expected
    rotation = torch.linalg.qr(normal(6, 6)).Q
    assert distance(real @ rotation, fake @ rotation) == expected


def test_frechet_is_biased_upwards_and_more_so_of_fewer():
    few, many = (distance(normal(n, 8, 1), normal(n, 8, 2)) for n in (100, 4000))
    assert few > 10 * many > 0


def test_kid_of_all_is_torch_fidelitys_of_one_subset_of_all():
    real, fake = mixed(200, 12, 1), mixed(200, 12, 2)
    scores = kid_features_to_metric(real, fake, kid_subsets=1, kid_subset_size=200, verbose=False)
    expected = scores["kernel_inception_distance_mean"]
    assert kid(real, fake) == pytest.approx(expected, rel=1e-9)


class RunAssets(torch.nn.Module):
    """In the place of Inception: the images are the features."""

    num_features = 12

    def forward(self, images):
        return images.flatten(1)


def by_torchmetrics(metric, real, fake):
    for rows, is_real in ((real, True), (fake, False)):
        metric.update(rows.unflatten(1, (1, 3, 4)), real=is_real)
    return metric.compute()


def test_frechet_is_torchmetrics():
    real, fake = mixed(300, 12, 1), mixed(200, 12, 2)
    metric = FrechetInceptionDistance(RunAssets(), input_img_size=(1, 3, 4)).set_dtype(
        torch.float64
    )
    expected = by_torchmetrics(metric, real, fake).item()
    assert distance(real, fake) == pytest.approx(expected, rel=1e-9)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all")
def test_kid_is_torchmetrics_of_one_subset_of_all():
    # Its subsets are drawn otherwise than torch-fidelity's, so no others compare.
    real, fake = mixed(200, 12, 1), mixed(200, 12, 2)
    metric = KernelInceptionDistance(RunAssets(), subsets=1, subset_size=200)
    expected, _ = by_torchmetrics(metric, real, fake)
    assert kid(real, fake) == pytest.approx(expected.item(), rel=1e-9)


def test_kid_by_hand():
    real = torch.tensor([[1.0], [-1.0]])  # kernel of the two: (-1 + 1)^3 = 0
    fake = torch.tensor([[0.0], [1.0], [2.0]])  # 1, 1, 27
    # Across: 1, 8, 27 of the real 1 and 1, 0, -1 of the real -1.
    assert kid(real, fake) == pytest.approx(0 + 29 / 3 - 2 * 36 / 6)


def test_kid_is_unbiased():
    drawn = np.array([kid(normal(40, 4, 2 * i), normal(30, 4, 2 * i + 1)) for i in range(400)])
    assert abs(drawn.mean()) < 4 * drawn.std() / np.sqrt(len(drawn))
    assert (drawn < 0).any()


@pytest.mark.parametrize("block_rows", [1, 7, 1000])
def test_blocks_and_order_do_not_matter_to_kid(block_rows):
    real, fake = mixed(60, 5, 1), mixed(50, 5, 2)
    expected = pytest.approx(kid(real, fake), rel=1e-10)
    assert kid(real, fake, block_rows) == expected
    assert kid(real.flip(0), fake.flip(0)) == expected


def test_float32_is_computed_in_float64():
    real, fake = normal(100, 8, 1, torch.float32), normal(100, 8, 2, torch.float32)
    assert kid(real, fake) == kid(real.double(), fake.double())
    assert distance(real, fake) == distance(real.double(), fake.double())


def test_a_collapse_shows():
    real = torch.cat([normal(300, 4, 1) + 5, normal(300, 4, 2) - 5])
    good = torch.cat([normal(300, 4, 3) + 5, normal(300, 4, 4) - 5])
    collapsed = normal(600, 4, 3) + 5
    assert distance(real, collapsed) > 100 * distance(real, good)
    assert kid(real, collapsed) > 100 * abs(kid(real, good))


def test_refuses_what_does_not_fit():
    rows = normal(10, 3)
    with pytest.raises(ValueError, match="fake: 2 columns beside 3"):
        kid(rows, normal(10, 2))
    with pytest.raises(ValueError, match="fake: 2 columns beside 3"):
        frechet_distance(Moments.of(rows), Moments.of(normal(10, 2)))
    with pytest.raises(ValueError, match="count=1; a covariance takes 2 rows"):
        frechet_distance(Moments.of(rows), Moments.of(rows[:1]))


def test_where_the_fast_decomposition_fails_the_slow_one_serves(monkeypatch):
    def fail(matrix):
        raise torch.linalg.LinAlgError("did not converge")

    real, fake = torch.randn(50, 6), 2 * torch.randn(50, 6)
    moments = Moments.of(real), Moments.of(fake)
    expected = frechet_distance(*moments)
    monkeypatch.setattr(torch.linalg, "eigh", fail)
    assert frechet_distance(*moments) == pytest.approx(expected)
