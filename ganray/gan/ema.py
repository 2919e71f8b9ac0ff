"""G_ema: the average of G's weights that makes the samples."""

from __future__ import annotations

import torch


@torch.no_grad()
def update(
    averaged: list[torch.Tensor],
    latest: list[torch.Tensor],
    *,
    batch_size: int,
    half_life: float,
    images_seen: int,
) -> None:
    """Move the average towards the latest weights by one step of `batch_size` images.

    Args:
        averaged: G_ema's weights; changed in place. As a list, for to walk through the modules of
            a small network at each step would cost more than the average itself.
        latest: those of G, which is trained; in the same order.
        batch_size: images of the step, over all ranks.
        half_life: images after which a weight's influence is halved; 0 copies G. Counted in
            images, so that runs with other batch sizes average over the same stretch.
        images_seen: images shown so far. The half-life grows with 5 % of it (as in StyleGAN2-ADA and
            EDM), or an early sample would still show the random first weights.
    """
    half_life = min(half_life, 0.05 * images_seen)
    keep = 0.5 ** (batch_size / half_life) if half_life > 0 else 0.0
    torch._foreach_lerp_(averaged, latest, 1.0 - keep)  # pyright: ignore[reportPrivateImportUsage]
