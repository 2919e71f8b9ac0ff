"""The generator's random input z, as a pure function of (rng_seed, stream, step)."""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import torch

from ganray.config import LatentConfig

TRUNCATED_AT = 2.0
"""Of the truncated normal, which is drawn anew until it lies within this distance of 0."""
DEGREES = 3
"""Of freedom of Student's t: the heaviest tails of whole degrees that still have a variance."""
COMPONENTS, COMPONENT_STD = 10, 0.5
"""Of the mixture of normals: how many, and the spread of each around its centre."""

Moment = float | torch.Tensor


def seed_of(rng_seed: int, stream: str, step: int) -> int:
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
    generator = torch.Generator(device).manual_seed(seed_of(rng_seed, stream, step))
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
    generator = torch.Generator().manual_seed(seed_of(0, "mixture", size))
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
