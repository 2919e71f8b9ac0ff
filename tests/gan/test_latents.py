"""Latents: reproducible, independent between steps and streams, with the stated distributions."""

import typing

import numpy as np
import pytest
import torch
from scipy import stats

from ganray.config.schema import LatentConfig
from ganray.gan import latents

CPU = torch.device("cpu")


DISTRIBUTIONS = typing.get_args(typing.get_type_hints(LatentConfig)["distribution"])


def draw(distribution="normal", *, size=16, seed=0, stream="D", step=0, n=4000, **options):
    latent = LatentConfig(distribution, size, **options)
    return latents.sample(latent, n, rng_seed=seed, stream=stream, step=step, device=CPU)


def test_equal_arguments_give_equal_latents():
    assert torch.equal(draw(), draw())


def test_seed_stream_and_step_give_different_latents():
    draws = [draw(), draw(seed=1), draw(stream="G"), draw(step=1)]
    for i, a in enumerate(draws):
        assert not any(torch.equal(a, b) for b in draws[i + 1 :])


def test_drawing_does_not_change_torchs_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    draw()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("distribution", "law"),
    [
        ("normal", stats.norm()),
        ("uniform", stats.uniform()),
        ("signed-uniform", stats.uniform(-1, 2)),
        ("truncated-normal", stats.truncnorm(-2, 2)),
        ("laplace", stats.laplace()),
        ("student-t", stats.t(3)),
    ],
)
def test_distributions_pass_a_kolmogorov_smirnov_test(distribution, law):
    z = draw(distribution).flatten().numpy()
    assert stats.kstest(z, law.cdf).pvalue > 0.01
    mean, std = latents.moments(LatentConfig(distribution, 16))
    np.testing.assert_allclose((mean, std), (law.mean(), law.std()), atol=1e-12)


def test_the_sphere_has_radius_1_and_is_isotropic():
    z = draw("sphere", size=3)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(len(z)))
    # Archimedes: each coordinate of a point on the sphere in 3-D is uniform.
    assert stats.kstest(z[:, 0].numpy(), stats.uniform(-1, 2).cdf).pvalue > 0.01
    assert set(draw("sphere", size=1).flatten().tolist()) == {-1.0, 1.0}


def test_bernoulli_is_plus_or_minus_one():
    z = draw("bernoulli")
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    assert stats.binomtest(int((z > 0).sum()), z.numel()).pvalue > 0.01


def test_the_mixture_has_ten_components_for_all_seeds():
    z = torch.cat([draw("mixture", size=64, seed=seed) for seed in range(2)])
    distances = torch.cdist(z, z[:500])
    # Distances are 0.5 * sqrt(2 * 64) = 5.7 within a component and about 12 between components.
    same = distances < 8
    shares = same.double().mean(0)
    assert shares.min() > 0.08
    assert shares.max() < 0.12
    groups = {tuple(np.flatnonzero(column[:500])) for column in same.T.numpy()}
    assert len(groups) == 10


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("size", [1, 7])
def test_scaling_separates_location_scale_and_shape(distribution, size):
    n = 40_000
    raw, centred, standardised = (
        draw(distribution, size=size, n=n, scaling=scaling).double()
        for scaling in ("raw", "centred", "standardised")
    )
    mean, std = (
        torch.as_tensor(m).expand(size).double()
        for m in latents.moments(LatentConfig(distribution, size))
    )
    # Student's t with 3 degrees of freedom has no fourth moment: sample deviations vary widely.
    tolerance = 0.2 if distribution == "student-t" else 0.03
    torch.testing.assert_close(raw.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(raw.std(0), std, atol=0, rtol=tolerance)
    torch.testing.assert_close(centred, raw - mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(standardised, centred / std, atol=1e-5, rtol=1e-5)


def test_the_offset_is_added_after_scaling():
    plain, moved = (
        draw("laplace", scaling="standardised"),
        draw("laplace", scaling="standardised", offset=-2.5),
    )
    torch.testing.assert_close(moved, plain - 2.5)
    with pytest.raises(ValueError, match=r"latent\.offset=inf must be finite"):
        LatentConfig(offset=float("inf"))


def test_a_latent_config_is_described_in_one_line():
    assert str(LatentConfig("uniform", 3)) == "uniform of size 3"
    latent = LatentConfig("normal", 1, "standardised", -0.5)
    assert str(latent) == "normal standardised - 0.5 of size 1"
