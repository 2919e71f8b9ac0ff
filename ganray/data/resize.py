"""Pictures of one size to squares of another, as the conversion to shards makes them."""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate


def to_squares(
    pictures: torch.Tensor, size: int, sides: tuple[int, int] | None = None
) -> torch.Tensor:
    """Scale the short side to `size` and cut the square in the middle: `resize_and_crop` on many.

    Args:
        pictures: uint8 (n, H, W, C) on the CPU, where alone bytes are resized.
        size: side of the squares.
        sides: (height, width) of the pictures before they were halved, which settles their
            proportions. None: H and W.

    Returns:
        uint8 (n, size, size, C), a view where nothing was to be scaled.
    """
    height, width = sides or (pictures.shape[1], pictures.shape[2])
    short, long = min(height, width), size * max(height, width) // min(height, width)
    scaled = (long, size) if width == short else (size, long)
    resized = interpolate(pictures.permute(0, 3, 1, 2), scaled, mode="bilinear", antialias=True)
    top, left = (round((side - size) / 2) for side in scaled)
    return resized.permute(0, 2, 3, 1)[:, top : top + size, left : left + size]
