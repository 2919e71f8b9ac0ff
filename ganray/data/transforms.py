"""Random mirrors and crops, on the device, as pure functions of (rng_seed, step).

They are drawn for the global batch and each rank takes its slice, so that a run does not depend on
how many ranks there are.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import interpolate

# Keeps these streams apart from any other that is derived from the same (rng_seed, step).
_STREAM = 0x6175676D656E74


def augment(
    images: torch.Tensor,
    *,
    crop: int,
    flip: bool,
    rng_seed: int,
    step: int,
    batch_size: int,
    mine: slice,
) -> torch.Tensor:
    """Cut a random square from each image, then mirror every second one at random.

    Args:
        images: uint8 (n, H, W, C), this rank's part of the batch.
        crop: Side of the square in pixels, at most H and W; 0 keeps the images whole.
        flip: Whether to mirror left and right.
        rng_seed: The run's seed.
        step: Counted from 0.
        batch_size: Images per step, summed over ranks.
        mine: Which of them ``images`` are.

    Returns:
        uint8 (n, crop, crop, C), or (n, H, W, C) where there is no crop.
    """
    if not (crop or flip):
        return images
    # Raw words, as in `order`: numpy promises that these stay the same in later versions.
    stream = np.random.Philox(np.random.SeedSequence([rng_seed, step, _STREAM]))
    words = stream.random_raw(3 * batch_size).reshape(batch_size, 3)[mine] >> np.uint64(32)
    if crop:
        height, width = images.shape[1:3]
        ranges = np.array([height - crop + 1, width - crop + 1], np.uint64)
        # The high half of a 32 x 32 bit product: uniform to 1 in 2^24 for any side of an image.
        corners = (words[:, :2] * ranges >> np.uint64(32)).astype(np.int64)
        images = _cut(images, torch.from_numpy(corners).to(images.device), crop)
    if flip:
        mirrored = torch.from_numpy((words[:, 2] & np.uint64(1)).astype(bool)).to(images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(2), images)
    return images


def _cut(images: torch.Tensor, corners: torch.Tensor, side: int) -> torch.Tensor:
    """Return the squares whose top left corners are ``corners``, int64 (n, 2)."""
    span = torch.arange(side, device=images.device)
    rows, columns = (corners[:, axis, None] + span for axis in (0, 1))
    which = torch.arange(len(images), device=images.device)[:, None, None]
    return images[which, rows[:, :, None], columns[:, None, :]]


# Resizing of batches, as the conversion to shards does it.


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


def to_float(images: torch.Tensor, low: float = -1.0) -> torch.Tensor:
    """Scale images for a network, on the device they are on.

    Args:
        images: uint8 (B, H, W, C) in [0, 255].
        low: What 0 becomes; 255 becomes 1. Use -1 for a generator that ends in tanh, 0 for sigmoid.

    Returns:
        float32 (B, C, H, W) in [low, 1], in ``channels_last`` memory: (B, H, W, C) seen through
        permuted axes is just that, so nothing is moved, and convolutions like it best.
    """
    # A division, because 255 / 127.5 - 1 is exactly 1 while 255 * (2 / 255) - 1 need not be.
    return images.permute(0, 3, 1, 2).to(torch.float32).div_(255 / (1 - low)).add_(low)


def to_uint8(images: torch.Tensor, low: float) -> torch.Tensor:
    """Float (n, C, H, W) in [low, 1] -> uint8 (n, H, W, C)."""
    unit = (images.float() - low) / (1.0 - low)
    return (unit * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
