"""The generator's random input z: sampling, moments, and paths through latent space.

Latents are a pure function of (rng_seed, stream, step). Functions on single latents take float32
(size,), functions on batches float32 (n, size).
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import torch
from torch.nn.functional import one_hot

from ganray.config.schema import LatentConfig

TRUNCATION = 2.0
"""Largest absolute value of the truncated normal distribution."""
DEGREES_OF_FREEDOM = 3
"""Degrees of freedom of Student's t, the smallest integer with a finite variance."""
COMPONENTS, COMPONENT_STD = 10, 0.5
"""Number of components of the mixture of normals and the standard deviation of each."""
_MIN_ANGLE = 1e-3
"""Radians from 0 or pi below which two latents span no plane in float32."""

Moment = float | torch.Tensor


def derive_seed(rng_seed: int, stream: str, step: int) -> int:
    """Return a 63-bit seed; different streams and steps give unrelated seeds."""
    digest = hashlib.sha256(f"{rng_seed}/{stream}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def sample(
    latent: LatentConfig,
    batch_size: int,
    *,
    rng_seed: int,
    stream: str,
    step: int,
    device: torch.device,
) -> torch.Tensor:
    """Draw the latents of one *global* batch: float32 (batch_size, latent.size) on `device`.

    Every rank draws the whole batch and takes its slice, so that no two ranks share a z and the
    run does not depend on the number of ranks. CPU and CUDA generators give different numbers.
    """
    generator = torch.Generator(device).manual_seed(derive_seed(rng_seed, stream, step))
    z = _sample_raw(latent, batch_size, generator)
    if latent.scaling != "raw":
        mean, std = _moments_on(device, latent)
        z = z - mean
        if latent.scaling == "standardized":
            z = z / std
    return z + latent.offset if latent.offset else z


def fixed_latents(
    latent: LatentConfig, rng_seed: int, stream: str, count: int, classes: int, device: torch.device
) -> torch.Tensor:
    """Draw latents that do not depend on the training step, to compare samples over time.

    Args:
        latent: Distribution and size of z.
        rng_seed: Seed of the run. Replicates with different seeds get different latents, so that
            their results are independent.
        stream: Name of the random stream, such as ``samples``.
        count: Number of latents.
        classes: Number of classes of a conditional generator; row i has class ``i % classes``.
            0: unconditional.
        device: Device of the latents.

    Returns:
        float32 (count, latent.size + classes): z, followed by the one-hot label if conditional.
    """
    z = sample(latent, count, rng_seed=rng_seed, stream=stream, step=0, device=device)
    if not classes:
        return z
    labels = torch.arange(count, device=device) % classes
    return torch.cat([z, one_hot(labels, classes).float()], 1)


def _sample_raw(latent: LatentConfig, count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw float32 (count, latent.size) from the distribution before scaling and offset."""
    device, shape = generator.device, (count, latent.size)

    def normal(*trailing: int) -> torch.Tensor:
        return torch.randn(*shape, *trailing, generator=generator, device=device)

    def uniform() -> torch.Tensor:
        return torch.rand(shape, generator=generator, device=device)

    def exponential() -> torch.Tensor:
        return torch.empty(shape, device=device).exponential_(generator=generator)

    match latent.distribution:
        case "normal":
            return normal()
        case "uniform":
            return uniform()
        case "signed-uniform":
            return 2 * uniform() - 1
        case "truncated-normal":
            # Inverse transform sampling: exact, and no draw is rejected.
            tail = 0.5 * math.erfc(TRUNCATION / math.sqrt(2))
            return torch.special.ndtri(tail + (1 - 2 * tail) * uniform())
        case "sphere":
            return torch.nn.functional.normalize(normal())
        case "bernoulli":
            return 1 - 2 * (uniform() < 0.5).float()
        case "laplace":
            return exponential() - exponential()
        case "student-t":
            # A normal divided by sqrt(chi-squared / degrees of freedom).
            return normal() / normal(DEGREES_OF_FREEDOM).square().mean(-1).sqrt()
        case "mixture":
            component = torch.randint(COMPONENTS, (count,), generator=generator, device=device)
            return _centers(latent.size, device)[component] + COMPONENT_STD * normal()


# Cached on the device, because a copy to it would wait for the work queued there.
@lru_cache
def _centers(size: int, device: torch.device) -> torch.Tensor:
    """Return the mixture's centers, the same in every run: float32 (COMPONENTS, size)."""
    generator = torch.Generator().manual_seed(derive_seed(0, "mixture", size))
    return torch.randn(COMPONENTS, size, generator=generator).to(device)


@lru_cache
def _moments_on(device: torch.device, latent: LatentConfig) -> tuple[Moment, Moment]:
    mean, std = moments(latent)
    if isinstance(mean, torch.Tensor) and isinstance(std, torch.Tensor):
        return mean.to(device), std.to(device)
    return mean, std


def moments(latent: LatentConfig) -> tuple[Moment, Moment]:
    """Return the exact mean and standard deviation of each coordinate of the raw z.

    Floats, or for the mixture, whose coordinates differ, float32 (latent.size,) on the CPU.
    """
    match latent.distribution:
        case "uniform":
            return 0.5, math.sqrt(1 / 12)
        case "signed-uniform":
            return 0.0, math.sqrt(1 / 3)
        case "truncated-normal":
            a = TRUNCATION
            density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
            return 0.0, math.sqrt(1 - 2 * a * density / math.erf(a / math.sqrt(2)))
        case "sphere":
            return 0.0, math.sqrt(1 / latent.size)
        case "laplace":
            return 0.0, math.sqrt(2)
        case "student-t":
            return 0.0, math.sqrt(DEGREES_OF_FREEDOM / (DEGREES_OF_FREEDOM - 2))
        case "mixture":
            centers = _centers(latent.size, torch.device("cpu"))
            variance = centers.var(0, correction=0) + COMPONENT_STD**2
            return centers.mean(0), variance.sqrt()
        case "normal" | "bernoulli":
            return 0.0, 1.0


def scaled_moments(latent: LatentConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of the coordinates of z after scaling and offset.

    Both float32 (latent.size,) on the CPU.
    """
    mean, std = (torch.as_tensor(moment).expand(latent.size) for moment in moments(latent))
    if latent.scaling != "raw":
        mean = torch.zeros(latent.size)
    if latent.scaling == "standardized":
        std = torch.ones(latent.size)
    return mean + latent.offset, std


def shell_radius(latent: LatentConfig, psi: float = 1.0) -> float:
    """Return sqrt(E|z|^2), near which the norms of this distribution's latents concentrate.

    `psi` is that of `truncate`.
    """
    mean, std = scaled_moments(latent)
    return math.sqrt(float((mean.square() + (psi * std).square()).double().sum()))


def truncate(latent: LatentConfig, z: torch.Tensor, psi: float) -> torch.Tensor:
    """Move latents (n, size) towards the mean of their distribution: mean + psi (z - mean).

    This is the interpolation towards the mean latent of Karras et al. 2019 (appendix B), applied to
    z, because these generators have no mapping network. Brock et al. 2019 (section 3.1) also
    truncate z, but draw large coordinates again. Both trade variety for fidelity. A psi of 1
    changes nothing; a psi of 0 maps every latent to the mean.
    """
    mean, _ = scaled_moments(latent)
    return torch.lerp(mean.to(z.device).expand_as(z), z, psi)


def project_to_shell(z: torch.Tensor, radius: float) -> torch.Tensor:
    """Scale each row of z (n, size) to the norm `radius`; the zero latent is unchanged."""
    return z * (radius / z.norm(dim=1, keepdim=True).clamp_min(1e-12))


def lerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Interpolate linearly from a (size,) to b (size,) at t (k,) in [0, 1]: (k, size)."""
    return a + t[:, None] * (b - a)


def slerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Interpolate along the great circle from a (size,) to b (size,) at t (k,): (k, size).

    The direction turns at constant speed while the norm changes linearly from |a| to |b|. This is
    `lerp` if there is no unique great circle: for parallel, opposite, zero or 1-D latents.
    """
    angle = angle_between(a, b)
    if not _MIN_ANGLE < angle < math.pi - _MIN_ANGLE:
        return lerp(a, b, t)
    norm_a, norm_b, t = a.norm(), b.norm(), t[:, None]
    weight_a, weight_b = torch.sin((1 - t) * angle), torch.sin(t * angle)
    direction = (weight_a * a / norm_a + weight_b * b / norm_b) / math.sin(angle)
    return direction * torch.lerp(norm_a, norm_b, t)


def angle_between(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the angle in radians, in [0, pi], between a and b; 0 if one of them is zero."""
    u, v = a * b.norm(), b * a.norm()
    # Accurate near 0 and pi, where the arc cosine of the dot product loses half of the digits.
    return 2 * math.atan2((u - v).norm().item(), (u + v).norm().item())


def neighbors(z: torch.Tensor, towards: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate z (size,) towards another latent by each of `angles`, keeping its norm.

    Args:
        z: Start of the walk, (size,).
        towards: Latent that gives the direction, (size,). Another draw of the same distribution
            stays where latents are likely; a random direction would leave the cube of uniform
            latents.
        angles: Rotation angles, (k,) in radians.

    Returns:
        (k, size). A 1-D z cannot be rotated and shrinks instead.
    """
    norm = z.norm()
    along = z / norm
    across = towards - (towards @ along) * along
    across = across / across.norm().clamp_min(1e-6 * norm)
    angles = angles[:, None]
    return norm * (torch.cos(angles) * along + torch.sin(angles) * across)


def closed_walk(stops: torch.Tensor, steps: int) -> torch.Tensor:
    """Walk in a loop along great circles through stops (k, size): (steps, size).

    The walk starts at the first stop; its last latent lies one step before the first.
    """
    count = len(stops)
    position = torch.arange(steps) * count / steps
    segments = [
        slerp(stops[i], stops[(i + 1) % count], position[position.floor() == i] - i)
        for i in range(count)
    ]
    return torch.cat(segments)
