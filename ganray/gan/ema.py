"""G_ema: the average of G's weights that makes the samples."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update(G_ema: nn.Module, G: nn.Module, *, batch_size: int, half_life: float, seen: int) -> None:
    """Move G_ema towards G by one step of `batch_size` images.

    Args:
        G_ema: the average; changed in place.
        G: the network that is trained.
        batch_size: images of the step, over all ranks.
        half_life: images after which a weight's influence is halved; 0 copies G. Counted in
            images, so that runs with other batch sizes average over the same stretch.
        seen: images shown so far. The half-life grows with 5 % of it (as in StyleGAN2-ADA and
            EDM), or an early sample would still show the random first weights.
    """
    half_life = min(half_life, 0.05 * seen)
    keep = 0.5 ** (batch_size / half_life) if half_life > 0 else 0.0
    averaged = [p.detach() for p in G_ema.parameters()]
    latest = [p.detach() for p in G.parameters()]
    torch._foreach_lerp_(averaged, latest, 1.0 - keep)  # pyright: ignore[reportPrivateImportUsage]
    for mine, theirs in zip(G_ema.buffers(), G.buffers(), strict=True):
        mine.copy_(theirs)
