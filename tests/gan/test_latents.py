"""Latents: repeatable, unrelated between steps and streams, distributed as they say."""

import typing

import numpy as np
import pytest
import torch
from scipy import stats

from ganray.config.schema import LatentConfig
from ganray.gan import latents

CPU = torch.device("cpu")


DISTRIBUTIONS = typing.get_args(typing.get_type_hints(LatentConfig)["distribution"])


def draw(distribution="normal", *, size=16, seed=0, stream="D", step=0, n=4000, **more):
    latent = LatentConfig(distribution, size, **more)
    return latents.sample(latent, n, rng_seed=seed, stream=stream, step=step, device=CPU)


def test_equal_arguments_give_equal_latents():
    assert torch.equal(draw(), draw())


def test_seed_stream_and_step_each_give_others():
    seen = [draw(), draw(seed=1), draw(stream="G"), draw(step=1)]
    for i, a in enumerate(seen):
        assert not any(torch.equal(a, b) for b in seen[i + 1 :])


def test_drawing_leaves_torchs_own_generator_alone():
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
    drawn = draw(distribution).flatten().numpy()
    assert stats.kstest(drawn, law.cdf).pvalue > 0.01
    mean, std = latents.moments(LatentConfig(distribution, 16))
    np.testing.assert_allclose((mean, std), (law.mean(), law.std()), atol=1e-12)


def test_the_sphere_has_radius_1_and_no_preferred_direction():
    drawn = draw("sphere", size=3)
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(len(drawn)))
    # Archimedes: each coordinate of a point on the sphere in space is uniform.
    assert stats.kstest(drawn[:, 0].numpy(), stats.uniform(-1, 2).cdf).pvalue > 0.01
    assert set(draw("sphere", size=1).flatten().tolist()) == {-1.0, 1.0}


def test_bernoulli_is_plus_or_minus_one():
    drawn = draw("bernoulli")
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert stats.binomtest(int((drawn > 0).sum()), drawn.numel()).pvalue > 0.01


def test_the_mixture_has_ten_components_that_no_seed_moves():
    drawn = torch.cat([draw("mixture", size=64, seed=seed) for seed in range(2)])
    distances = torch.cdist(drawn, drawn[:500])
    # Two of one component are 0.5 * sqrt(2 * 64) = 5.7 apart, two of others about 12.
    alike = distances < 8
    shares = alike.double().mean(0)
    assert shares.min() > 0.08
    assert shares.max() < 0.12
    groups = {tuple(np.flatnonzero(column[:500])) for column in alike.T.numpy()}
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
    # Student's t of 3 degrees has no fourth moment: the deviation of a sample is itself wide.
    wide = 0.2 if distribution == "student-t" else 0.03
    torch.testing.assert_close(raw.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(raw.std(0), std, atol=0, rtol=wide)
    torch.testing.assert_close(centred, raw - mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(standardised, centred / std, atol=1e-5, rtol=1e-5)


def test_the_offset_comes_last():
    plain, moved = (
        draw("laplace", scaling="standardised"),
        draw("laplace", scaling="standardised", offset=-2.5),
    )
    torch.testing.assert_close(moved, plain - 2.5)
    with pytest.raises(ValueError, match=r"latent\.offset=inf must be finite"):
        LatentConfig(offset=float("inf"))


def test_a_latent_says_what_it_is():
    assert str(LatentConfig("uniform", 3)) == "uniform of size 3"
    latent = LatentConfig("normal", 1, "standardised", -0.5)
    assert str(latent) == "normal standardised - 0.5 of size 1"
