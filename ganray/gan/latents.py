"""The generator's random input z, as a pure function of (rng_seed, stream, step)."""

from __future__ import annotations

import hashlib

import torch

from ganray.config import LatentConfig


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
    draw = torch.rand if latent.distribution == "uniform" else torch.randn
    return draw(batch_size, latent.size, generator=generator, device=device)
