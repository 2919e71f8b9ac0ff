"""The generator's random input z, as a pure function of (rng_seed, stream, step)."""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import torch
from torch.nn.functional import one_hot

from ganray.config.schema import LatentConfig

TRUNCATED_AT = 2.0
"""Of the truncated normal, which is drawn anew until it lies within this distance of 0."""
DEGREES = 3
"""Of freedom of Student's t: the heaviest tails of whole degrees that still have a variance."""
COMPONENTS, COMPONENT_STD = 10, 0.5
"""Of the mixture of normals: how many, and the spread of each around its centre."""

Moment = float | torch.Tensor


def derive_seed(rng_seed: int, stream: str, step: int) -> int:
    """A 63-bit seed; streams and steps that differ in anything give unrelated seeds."""
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
    """The latents of one *global* batch: float32 (batch_size, latent.size) on `device`.

    Every rank draws the whole batch and takes its slice, so that no two ranks share a z and the
    run does not depend on the number of ranks. Numbers differ between CPU and CUDA generators.
    """
    generator = torch.Generator(device).manual_seed(derive_seed(rng_seed, stream, step))
    z = _raw(latent, batch_size, generator)
    if latent.scaling != "raw":
        mean, std = moments(latent)
        z = z - _on(mean, device)
        if latent.scaling == "standardised":
            z = z / _on(std, device)
    return z + latent.offset if latent.offset else z


def _raw(latent: LatentConfig, count: int, generator: torch.Generator) -> torch.Tensor:
    """As the distribution is written in books: float32 (count, latent.size)."""
    device, shape = generator.device, (count, latent.size)

    def normal(*more: int) -> torch.Tensor:
        return torch.randn(*shape, *more, generator=generator, device=device)

    def uniform() -> torch.Tensor:
        return torch.rand(shape, generator=generator, device=device)

    match latent.distribution:
        case "normal":
            return normal()
        case "uniform":
            return uniform()
        case "signed-uniform":
            return 2 * uniform() - 1
        case "truncated-normal":
            # The quantiles of what lies within: exact, and no draw is thrown away.
            tail = 0.5 * math.erfc(TRUNCATED_AT / math.sqrt(2))
            return torch.special.ndtri(tail + (1 - 2 * tail) * uniform())
        case "sphere":
            return torch.nn.functional.normalize(normal())
        case "bernoulli":
            return 1 - 2 * (uniform() < 0.5).float()
        case "laplace":
            return _exponential(shape, generator) - _exponential(shape, generator)
        case "student-t":
            # Over the root of a mean of squares of as many normals as there are degrees.
            return normal() / normal(DEGREES).square().mean(-1).sqrt()
        case "mixture":
            which = torch.randint(COMPONENTS, (count,), generator=generator, device=device)
            return _centres(latent.size).to(device)[which] + COMPONENT_STD * normal()


def _exponential(shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    return torch.empty(shape, device=generator.device).exponential_(generator=generator)


@lru_cache
def _centres(size: int) -> torch.Tensor:
    """Of the mixture: normal draws, the same ones in every run; float32 (COMPONENTS, size)."""
    generator = torch.Generator().manual_seed(derive_seed(0, "mixture", size))
    return torch.randn(COMPONENTS, size, generator=generator)


def _on(moment: Moment, device: torch.device) -> Moment:
    return moment.to(device) if isinstance(moment, torch.Tensor) else moment


def moments(latent: LatentConfig) -> tuple[Moment, Moment]:
    """Mean and standard deviation of each number of the raw z, exactly.

    Plain numbers, or, for a mixture, whose numbers differ, float32 (latent.size,) on the CPU.
    """
    match latent.distribution:
        case "uniform":
            return 0.5, math.sqrt(1 / 12)
        case "signed-uniform":
            return 0.0, math.sqrt(1 / 3)
        case "truncated-normal":
            a = TRUNCATED_AT
            density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
            return 0.0, math.sqrt(1 - 2 * a * density / math.erf(a / math.sqrt(2)))
        case "sphere":
            return 0.0, math.sqrt(1 / latent.size)
        case "laplace":
            return 0.0, math.sqrt(2)
        case "student-t":
            return 0.0, math.sqrt(DEGREES / (DEGREES - 2))
        case "mixture":
            centres = _centres(latent.size)
            spread = centres.var(0, correction=0) + COMPONENT_STD**2
            return centres.mean(0), spread.sqrt()
        case "normal" | "bernoulli":
            return 0.0, 1.0


# Ways through the space of latents. Pure functions; a latent here is float32 (size,).

_PARALLEL = 1e-3
"""Radians. Closer to 0 or pi, two latents span no plane that float32 could tell."""


def lerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The straight line from a (size,) to b (size,) at t (k,) in [0, 1]: (k, size)."""
    return a + t[:, None] * (b - a)


def slerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The great circle from a (size,) to b (size,) at t (k,) in [0, 1]: (k, size).

    The direction turns evenly, the norm goes evenly from |a| to |b|. Where there is no one great
    circle (parallel, opposite, zero, or latents of a single number) this is `lerp`.
    """
    angle = angle_between(a, b)
    if not _PARALLEL < angle < math.pi - _PARALLEL:
        return lerp(a, b, t)
    norm_a, norm_b, t = a.norm(), b.norm(), t[:, None]
    from_a, from_b = torch.sin((1 - t) * angle), torch.sin(t * angle)
    direction = (from_a * a / norm_a + from_b * b / norm_b) / math.sin(angle)
    return direction * torch.lerp(norm_a, norm_b, t)


def angle_between(a: torch.Tensor, b: torch.Tensor) -> float:
    """Radians in [0, pi] between a (size,) and b (size,); 0 where one of them is zero."""
    u, v = a * b.norm(), b * a.norm()
    # Exact near 0 and pi too, where the arc cosine of the dot product keeps half of the digits.
    return 2 * math.atan2((u - v).norm().item(), (u + v).norm().item())


def neighbours(z: torch.Tensor, towards: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """A walk in z's neighbourhood: z (size,) turned towards another latent, its norm kept.

    Args:
        z: where the walk starts, (size,).
        towards: the way it takes, (size,). Another draw of the same distribution keeps to where
            latents are; a random direction would leave the cube of the uniform ones.
        angles: how far to turn, (k,) in radians.

    Returns:
        (k, size). A z of a single number has nothing to turn to, and shrinks instead.
    """
    length = z.norm()
    along = z / length
    across = towards - (towards @ along) * along
    across = across / across.norm().clamp_min(1e-6 * length)
    angles = angles[:, None]
    return length * (torch.cos(angles) * along + torch.sin(angles) * across)


def closed_walk(stops: torch.Tensor, steps: int) -> torch.Tensor:
    """A loop along great circles through stops (k, size): (steps, size).

    It starts at the first stop, and its last latent lies one step before the first.
    """
    count = len(stops)
    position = torch.arange(steps) * count / steps
    legs = [
        slerp(stops[i], stops[(i + 1) % count], position[position.floor() == i] - i)
        for i in range(count)
    ]
    return torch.cat(legs)


def shell_radius(latent: LatentConfig) -> float:
    """sqrt(E|z|^2), the length that latents of this distribution have, nearly."""
    mean, std = (torch.as_tensor(moment).expand(latent.size) for moment in moments(latent))
    if latent.scaling != "raw":
        mean = torch.zeros(latent.size)
    if latent.scaling == "standardised":
        std = torch.ones(latent.size)
    return math.sqrt(float(((mean + latent.offset).square() + std.square()).double().sum()))


def project_to_shell(z: torch.Tensor, radius: float) -> torch.Tensor:
    """Z (n, size), each scaled to the length `radius`; the zero latent stays where it is."""
    return z * (radius / z.norm(dim=1, keepdim=True).clamp_min(1e-12))


def fixed_latents(
    latent: LatentConfig, rng_seed: int, stream: str, count: int, classes: int, device: torch.device
) -> torch.Tensor:
    """Draw latents that do not depend on the training step, for samples that are compared over time.

    Args:
        latent: Distribution and size of z.
        rng_seed: The run's seed. Replicates that differ in it get different latents, so that
            their luck is independent.
        stream: Name of the random stream, such as ``samples``.
        count: Number of latents.
        classes: Number of classes of a conditional generator; row i has class ``i % classes``.
            0: unconditional.
        device: Where the latents are made.

    Returns:
        float32 (count, latent.size + classes): z, followed by the one-hot label if conditional.
    """
    z = sample(latent, count, rng_seed=rng_seed, stream=stream, step=0, device=device)
    if not classes:
        return z
    labels = torch.arange(count, device=device) % classes
    return torch.cat([z, one_hot(labels, classes).float()], 1)
