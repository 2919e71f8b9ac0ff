"""G_ema: the exponential moving average of the generator's weights, which makes the samples."""

from __future__ import annotations

import torch


@torch.no_grad()
def update(
    averaged: list[torch.Tensor],
    latest: list[torch.Tensor],
    *,
    batch_size: int,
    half_life: float,
    images_seen: int | None = None,
) -> None:
    """Move the average towards the latest weights after a step of `batch_size` images.

    Args:
        averaged: Weights of G_ema, updated in place. A list, because walking through the modules
            of a small network at each step costs more than the average itself.
        latest: Weights of G in the same order.
        batch_size: Images of the step, summed over ranks.
        half_life: Number of images after which a weight's influence is halved; 0 copies G.
            Counted in images so that it does not depend on the batch size.
        images_seen: Images shown so far. The half-life is at most 5 % of it (as in StyleGAN2-ADA
            and EDM); otherwise early samples would still depend on the initial weights. None: no
            such limit, for a half-life that grows from 0 by itself.
    """
    if images_seen is not None:
        half_life = min(half_life, 0.05 * images_seen)
    decay = 0.5 ** (batch_size / half_life) if half_life > 0 else 0.0
    torch._foreach_lerp_(averaged, latest, 1.0 - decay)  # pyright: ignore[reportPrivateImportUsage]
