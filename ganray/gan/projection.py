"""Projection of an image to the latent whose sample is most similar, by gradient descent on z."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import avg_pool2d

from ganray.config.schema import LatentConfig
from ganray.gan import latents

Generate = Callable[[torch.Tensor], torch.Tensor]
"""Maps latents, float32 (n, size), to images, float (n, C, H, W)."""

STEPS = 300
"""Default number of steps."""
_SCALES = (1, 2, 4)
"""Factors by which images are reduced before they are compared."""
_RATE = 0.3
"""Learning rate in standard deviations of a coordinate of z; falls to 0 along a cosine."""
_STARTS = 8
"""Latents that are optimized in parallel."""
_BATCH_SIZE = 64
"""Random samples that are generated at once."""


@dataclass(frozen=True)
class Projection:
    """The latent whose sample is most similar to an image, and the most similar random sample."""

    z: torch.Tensor
    """float32 (size,)."""
    distance: float
    random_z: torch.Tensor
    """Nearest of `random_count` random latents, (size,)."""
    random_distance: float
    random_count: int


def distance(images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the root mean squared difference of pixels at full, half and quarter resolution.

    Pixels are compared directly, without a pretrained network, so this is large if an edge is moved
    by a pixel. The lower resolutions make it smoother.

    Args:
        images: (n, C, H, W).
        target: (1, C, H, W).

    Returns:
        (n,), in the unit of pixels; the three mean squares are averaged.
    """
    return _squared_distance(images, target).sqrt()


def _squared_distance(images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the square of `distance`, whose gradient exists at 0, too."""
    squares = [
        (avg_pool2d(images, scale) - avg_pool2d(target, scale)).square().mean(dim=(1, 2, 3))
        for scale in _SCALES
    ]
    return torch.stack(squares).mean(dim=0)


def project(
    generate: Generate,
    latent: LatentConfig,
    target: torch.Tensor,
    *,
    rng_seed: int,
    steps: int = STEPS,
    on_step: Callable[[], None] = lambda: None,
) -> Projection:
    """Find the latent whose sample is nearest to `target` by `distance`, with Adam.

    As many random samples are drawn as the optimization generates. Their nearest ones are where it
    starts, and the nearest one is the distance to compare the result with. Each step keeps z where
    latents of the distribution are: coordinates, and the distance from the mean latent, stay about
    in the range that the random latents span. Still, a small distance does not mean that the
    generator draws such images: there may be no random latent near z.

    Args:
        generate: The generator; its weights need no gradients.
        latent: Distribution and size of z.
        target: Image, float32 (1, C, H, W), in the range of the generator, on its device.
        rng_seed: Seed of the random latents.
        steps: Number of steps.
        on_step: Called after each step.
    """
    device, count = target.device, _STARTS * steps
    randoms = latents.sample(
        latent, count, rng_seed=rng_seed, stream="projection", step=0, device=torch.device("cpu")
    ).to(device)
    with torch.no_grad():
        distances = torch.cat([distance(generate(z), target) for z in randoms.split(_BATCH_SIZE)])
    nearest = distances.argsort()[:_STARTS]
    mean, std = (moment.to(device) for moment in latents.scaled_moments(latent))
    low, high = randoms.amin(dim=0), randoms.amax(dim=0)
    norms = (randoms - mean).norm(dim=1)

    z = randoms[nearest].clone().requires_grad_()
    optimizer = torch.optim.Adam([z], _RATE * float(std.mean()))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        _squared_distance(generate(z), target).sum().backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            offset = z.clamp(low, high) - mean
            norm = offset.norm(dim=1, keepdim=True).clamp_min(1e-12)
            z.copy_(mean + offset * (norm.clamp(norms.min(), norms.max()) / norm))
        on_step()
    with torch.no_grad():
        candidates = torch.cat([z.detach(), randoms[nearest[:1]]])
        final, best = distance(generate(candidates), target).min(dim=0)
    return Projection(
        candidates[best], float(final), randoms[nearest[0]], float(distances[nearest[0]]), count
    )
