"""Paths through latent space: end points and norms."""

import math

import pytest
import torch

from ganray.config.schema import LatentConfig
from ganray.gan import latents
from ganray.gan.latents import (
    angle_between,
    closed_walk,
    lerp,
    neighbours,
    project_to_shell,
    shell_radius,
    slerp,
)

T = torch.linspace(0, 1, 11)
CPU = torch.device("cpu")


def draw(count, size=100, distribution="normal"):
    latent = LatentConfig(distribution, size)
    return latents.sample(latent, count, rng_seed=0, stream="test", step=0, device=CPU)


def test_the_midpoint_of_lerp_leaves_the_shell_and_that_of_slerp_does_not():
    pairs = draw(400).reshape(200, 2, 100)
    lerp_norms = torch.stack([lerp(a, b, T)[5].norm() for a, b in pairs])
    slerp_norms = torch.stack([slerp(a, b, T)[5].norm() for a, b in pairs])
    assert lerp_norms.mean() == pytest.approx(math.sqrt(50), abs=0.15)  # 7.07
    assert slerp_norms.mean() == pytest.approx(10, abs=0.1)


@pytest.mark.parametrize("interpolate", [lerp, slerp])
def test_interpolations_start_and_end_at_the_latents(interpolate):
    a, b = draw(2)
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


def test_neighbours_keep_the_norm_and_have_the_given_angles():
    z, towards = draw(2)
    angles = torch.tensor([0.0, 0.1, 0.5, 1.0])
    walk = neighbours(z, towards, angles)
    torch.testing.assert_close(walk[0], z)
    torch.testing.assert_close(walk.norm(dim=1), z.norm().expand(4))
    actual = [angle_between(z, step) for step in walk]
    assert actual == pytest.approx(angles.tolist(), abs=1e-5)


def test_neighbours_rotate_towards_the_other_latent():
    z, towards = draw(2, distribution="uniform")
    rotated = neighbours(z, towards, torch.tensor([angle_between(z, towards)]))[0]
    torch.testing.assert_close(rotated / rotated.norm(), towards / towards.norm())


@pytest.mark.parametrize("towards", [[0.9], [-0.3]])
def test_a_one_dimensional_latent_has_neighbours(towards):
    walk = neighbours(torch.tensor([0.5]), torch.tensor(towards), torch.tensor([0.0, math.pi / 3]))
    torch.testing.assert_close(walk, torch.tensor([[0.5], [0.25]]))


@pytest.mark.parametrize("steps", [40, 43])
def test_a_closed_walk_passes_all_stops_in_equal_steps(steps):
    stops = draw(4)
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
    z = draw(2000, distribution=distribution)
    assert z.square().sum(1).mean().sqrt() == pytest.approx(radius, rel=0.01)
    scaled = project_to_shell(z, radius)
    torch.testing.assert_close(scaled.norm(dim=1), torch.full((2000,), radius))
    torch.testing.assert_close(scaled / radius, z / z.norm(dim=1, keepdim=True))


def test_the_shell_radius_depends_on_scaling_and_offset():
    assert shell_radius(LatentConfig("uniform", 48)) == pytest.approx(4)  # E u^2 = 1/3
    assert shell_radius(LatentConfig("uniform", 48, "centred")) == pytest.approx(2)  # 1/12
    assert shell_radius(LatentConfig("uniform", 49, "standardised")) == pytest.approx(7)
    assert shell_radius(LatentConfig("normal", 20, offset=2.0)) == pytest.approx(10)


def test_the_zero_latent_is_not_moved_to_the_shell():
    assert torch.equal(project_to_shell(torch.zeros(1, 3), 5.0), torch.zeros(1, 3))
