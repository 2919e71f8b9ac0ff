"""Latents: reproducible draws with the stated distributions, and paths between latents."""

import math
import typing

import numpy as np
import pytest
import torch
from scipy import stats

from ganray.config.schema import LatentConfig
from ganray.gan import latents
from ganray.gan.latents import (
    angle_between,
    closed_walk,
    lerp,
    neighbors,
    project_to_shell,
    shell_radius,
    slerp,
    truncate,
)

CPU = torch.device("cpu")
T = torch.linspace(0, 1, 11)


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
    raw, centered, standardized = (
        draw(distribution, size=size, n=n, scaling=scaling).double()
        for scaling in ("raw", "centered", "standardized")
    )
    mean, std = (
        torch.as_tensor(m).expand(size).double()
        for m in latents.moments(LatentConfig(distribution, size))
    )
    # Student's t with 3 degrees of freedom has no fourth moment: sample deviations vary widely.
    tolerance = 0.2 if distribution == "student-t" else 0.03
    torch.testing.assert_close(raw.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(raw.std(0), std, atol=0, rtol=tolerance)
    torch.testing.assert_close(centered, raw - mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(standardized, centered / std, atol=1e-5, rtol=1e-5)


def test_the_offset_is_added_after_scaling():
    plain, moved = (
        draw("laplace", scaling="standardized"),
        draw("laplace", scaling="standardized", offset=-2.5),
    )
    torch.testing.assert_close(moved, plain - 2.5)
    with pytest.raises(ValueError, match=r"latent\.offset=inf must be finite"):
        LatentConfig(offset=float("inf"))


def test_a_latent_config_is_described_in_one_line():
    assert str(LatentConfig("uniform", 3)) == "uniform of size 3"
    latent = LatentConfig("normal", 1, "standardized", -0.5)
    assert str(latent) == "normal standardized - 0.5 of size 1"


def test_the_midpoint_of_lerp_leaves_the_shell_and_that_of_slerp_does_not():
    pairs = draw(n=400, size=100).reshape(200, 2, 100)
    lerp_norms = torch.stack([lerp(a, b, T)[5].norm() for a, b in pairs])
    slerp_norms = torch.stack([slerp(a, b, T)[5].norm() for a, b in pairs])
    assert lerp_norms.mean() == pytest.approx(math.sqrt(50), abs=0.15)  # 7.07
    assert slerp_norms.mean() == pytest.approx(10, abs=0.1)


@pytest.mark.parametrize("interpolate", [lerp, slerp])
def test_interpolations_start_and_end_at_the_latents(interpolate):
    a, b = draw(n=2)
    torch.testing.assert_close(interpolate(a, b, T)[[0, -1]], torch.stack([a, b]))


def test_slerp_changes_direction_and_norm_linearly():
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])
    path = slerp(a, b, T)
    torch.testing.assert_close(path.norm(dim=1), 2 + 2 * T)
    torch.testing.assert_close(torch.atan2(path[:, 1], path[:, 0]), T * math.pi / 2)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1.0, 2.0], [1.0, 2.0]),  # equal
        ([1.0, 2.0], [1.0, 2.0 + 1e-6]),  # nearly parallel
        ([1.0, 2.0], [-2.0, -4.0]),  # opposite
        ([0.0, 0.0], [3.0, 1.0]),  # zero has no direction
        ([0.25], [0.75]),  # a single number
        ([-0.25], [0.75]),
    ],
)
def test_without_a_unique_great_circle_slerp_is_lerp(a, b):
    a, b = torch.tensor(a), torch.tensor(b)
    assert torch.equal(slerp(a, b, T), lerp(a, b, T))


def test_the_angle_is_accurate_near_0_and_pi():
    a = torch.tensor([1.0, 0.0])
    for angle in (1e-4, 0.5, math.pi - 1e-4):
        b = 3 * torch.tensor([math.cos(angle), math.sin(angle)])
        assert angle_between(a, b) == pytest.approx(angle, rel=1e-3)


def test_neighbors_keep_the_norm_and_have_the_given_angles():
    z, towards = draw(n=2)
    angles = torch.tensor([0.0, 0.1, 0.5, 1.0])
    walk = neighbors(z, towards, angles)
    torch.testing.assert_close(walk[0], z)
    torch.testing.assert_close(walk.norm(dim=1), z.norm().expand(4))
    actual = [angle_between(z, step) for step in walk]
    assert actual == pytest.approx(angles.tolist(), abs=1e-5)


def test_neighbors_rotate_towards_the_other_latent():
    z, towards = draw("uniform", n=2)
    rotated = neighbors(z, towards, torch.tensor([angle_between(z, towards)]))[0]
    torch.testing.assert_close(rotated / rotated.norm(), towards / towards.norm())


@pytest.mark.parametrize("towards", [[0.9], [-0.3]])
def test_a_one_dimensional_latent_has_neighbors(towards):
    walk = neighbors(torch.tensor([0.5]), torch.tensor(towards), torch.tensor([0.0, math.pi / 3]))
    torch.testing.assert_close(walk, torch.tensor([[0.5], [0.25]]))


@pytest.mark.parametrize("steps", [40, 43])
def test_a_closed_walk_passes_all_stops_in_equal_steps(steps):
    stops = draw(n=4, size=100)
    walk = closed_walk(stops, steps)
    assert walk.shape == (steps, 100)
    strides = (walk.roll(-1, 0) - walk).norm(dim=1)  # including the last to the first
    assert strides.max() < 1.5 * strides.mean()
    nearest = torch.cdist(stops, walk).min(dim=1).values
    assert nearest.max() < strides.max()
    torch.testing.assert_close(walk[0], stops[0])


@pytest.mark.parametrize("distribution", ["normal", "uniform", "sphere", "mixture"])
def test_the_norms_of_latents_concentrate_at_the_shell_radius(distribution):
    radius = shell_radius(LatentConfig(distribution, 100))
    z = draw(distribution, n=2000, size=100)
    assert z.square().sum(1).mean().sqrt() == pytest.approx(radius, rel=0.01)
    scaled = project_to_shell(z, radius)
    torch.testing.assert_close(scaled.norm(dim=1), torch.full((2000,), radius))
    torch.testing.assert_close(scaled / radius, z / z.norm(dim=1, keepdim=True))


def test_the_shell_radius_depends_on_scaling_and_offset():
    assert shell_radius(LatentConfig("uniform", 48)) == pytest.approx(4)  # E u^2 = 1/3
    assert shell_radius(LatentConfig("uniform", 48, "centered")) == pytest.approx(2)  # 1/12
    assert shell_radius(LatentConfig("uniform", 49, "standardized")) == pytest.approx(7)
    assert shell_radius(LatentConfig("normal", 20, offset=2.0)) == pytest.approx(10)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_truncation_scales_the_deviation_from_the_mean(distribution):
    latent = LatentConfig(distribution, 5, offset=0.25)
    z = draw(distribution, size=5, offset=0.25, n=100_000)
    mean = z.mean(dim=0)
    for psi in (0.0, 0.5, 0.9):
        truncated = truncate(latent, z, psi)
        torch.testing.assert_close(truncated, mean + psi * (z - mean), atol=0.05, rtol=0)
        assert truncated.square().sum(1).mean().sqrt() == pytest.approx(
            shell_radius(latent, psi), rel=0.05
        )
    assert torch.equal(truncate(latent, z, 1), z)
    assert (truncate(latent, z, 0).std(dim=0) == 0).all()


def test_the_zero_latent_is_not_moved_to_the_shell():
    assert torch.equal(project_to_shell(torch.zeros(1, 3), 5.0), torch.zeros(1, 3))
