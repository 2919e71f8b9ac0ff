"""Projection of images to latents: the optimum, and where latents may go."""

import typing

import pytest
import torch

from ganray.config.schema import LatentConfig
from ganray.gan import latents, projection

CPU = torch.device("cpu")
DISTRIBUTIONS = typing.get_args(typing.get_type_hints(LatentConfig)["distribution"])


def draw(latent, count=1, stream="test"):
    return latents.sample(latent, count, rng_seed=0, stream=stream, step=0, device=CPU)


def linear(size: int):
    """Return a generator of 8x8 images that are linear in z."""
    weights = torch.randn(size, 64, generator=torch.Generator().manual_seed(0))
    return lambda z: (z @ weights).reshape(-1, 1, 8, 8)


def test_distance_is_a_root_mean_square_over_three_resolutions():
    target = torch.zeros(1, 2, 8, 8)
    checkerboard = 1.0 - 2 * (torch.arange(8)[:, None] + torch.arange(8)).remainder(2)
    images = torch.stack([torch.full((8, 8), 0.5), checkerboard])[:, None].expand(-1, 2, -1, -1)
    expected = torch.tensor([0.5, (1 / 3) ** 0.5])  # the checkerboard vanishes when reduced
    torch.testing.assert_close(projection.distance(images, target), expected)


@pytest.mark.parametrize("distribution", [d for d in DISTRIBUTIONS if d != "bernoulli"])
@pytest.mark.parametrize("size", [1, 5])
def test_the_latent_of_a_sample_is_found(distribution, size):
    latent = LatentConfig(distribution, size, "raw", 0.5)
    z, generate = draw(latent), linear(size)
    found = projection.project(generate, latent, generate(z), rng_seed=1, steps=200)
    assert found.distance <= found.random_distance
    assert found.random_count == 1600
    torch.testing.assert_close(found.z, z[0], atol=0.02, rtol=0)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_latents_stay_where_the_distribution_is(distribution):
    latent = LatentConfig(distribution, 20)
    generate = linear(20)
    target = generate(100 * draw(latent))  # far outside
    found = projection.project(generate, latent, target, rng_seed=1, steps=100)
    assert found.distance < found.random_distance
    randoms = draw(latent, 5000, "other")
    mean, _ = latents.scaled_moments(latent)
    norms = (randoms - mean).norm(dim=1)
    assert 0.9 * norms.min() < (found.z - mean).norm() < 1.1 * norms.max()
    if distribution in ("sphere", "bernoulli"):
        torch.testing.assert_close((found.z - mean).norm(), norms.mean())
    if distribution in ("uniform", "signed-uniform"):
        assert found.z.min() > randoms.min() - 0.01
        assert found.z.max() < randoms.max() + 0.01


def test_a_projection_is_repeatable_and_counts_its_steps():
    latent, generate, steps = LatentConfig("normal", 3), linear(3), []
    target = generate(draw(latent))

    def project():
        return projection.project(
            generate, latent, target, rng_seed=0, steps=9, on_step=lambda: steps.append(1)
        )

    assert torch.equal(project().z, project().z)
    assert len(steps) == 18
