"""Transforms of image batches: random crops and flips, resizing, JPEG decoding, float conversion.

Random transforms are pure functions of (rng_seed, step). They are drawn for the global batch and
each rank takes its slice, so that a run does not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from ganray.data.format import Shape

# Separates this stream from others that are derived from the same (rng_seed, step).
_STREAM = 0x6175676D656E74


def upload(values: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Copy a small array to a device without waiting for the work queued there."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":  # a copy from memory that is not pinned would wait
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def augment(
    images: torch.Tensor,
    *,
    crop: int,
    flip: bool,
    rng_seed: int,
    step: int,
    batch_size: int,
    rank_slice: slice,
) -> torch.Tensor:
    """Crop a random square from each image, then flip each with probability 1/2.

    Args:
        images: uint8 (n, H, W, C), this rank's part of the batch.
        crop: Side of the square in pixels, at most H and W; 0: no crop.
        flip: Whether to flip left and right.
        rng_seed: Seed of the run.
        step: Step of the run, from 0.
        batch_size: Images per step, summed over ranks.
        rank_slice: Slice of the global batch that ``images`` are.

    Returns:
        uint8 (n, crop, crop, C), or (n, H, W, C) without a crop.
    """
    if not (crop or flip):
        return images
    # Raw words, as in `sampler`: only these are stable across numpy versions.
    stream = np.random.Philox(np.random.SeedSequence([rng_seed, step, _STREAM]))
    words = stream.random_raw(3 * batch_size).reshape(batch_size, 3)[rank_slice] >> np.uint64(32)
    if crop:
        height, width = images.shape[1:3]
        ranges = np.array([height - crop + 1, width - crop + 1], np.uint64)
        # The high half of a 32 x 32 bit product: uniform to 1 in 2^24 for any side of an image.
        corners = (words[:, :2] * ranges >> np.uint64(32)).astype(np.int64)
        images = _crop(images, upload(corners, images.device), crop)
    if flip:
        flipped = upload((words[:, 2] & np.uint64(1)).astype(bool), images.device)
        images = torch.where(flipped[:, None, None, None], images.flip(2), images)
    return images


def _crop(images: torch.Tensor, corners: torch.Tensor, side: int) -> torch.Tensor:
    """Return the squares whose top left corners are ``corners``, int64 (n, 2)."""
    span = torch.arange(side, device=images.device)
    rows, columns = (corners[:, axis, None] + span for axis in (0, 1))
    which = torch.arange(len(images), device=images.device)[:, None, None]
    return images[which, rows[:, :, None], columns[:, None, :]]


def to_squares(
    images: torch.Tensor, size: int, sides: tuple[int, int] | None = None
) -> torch.Tensor:
    """Scale the short side to `size` and crop the center, like `writer.resize_and_crop`.

    Args:
        images: uint8 (n, H, W, C) on the CPU, because torch resizes bytes only there.
        size: Side of the squares.
        sides: (height, width) of the images before they were halved, for their aspect ratio. None:
            H and W.

    Returns:
        uint8 (n, size, size, C), a view if nothing was scaled.
    """
    height, width = sides or (images.shape[1], images.shape[2])
    short, long = min(height, width), size * max(height, width) // min(height, width)
    scaled = (long, size) if width == short else (size, long)
    resized = interpolate(images.permute(0, 3, 1, 2), scaled, mode="bilinear", antialias=True)
    top, left = (round((side - size) / 2) for side in scaled)
    return resized.permute(0, 2, 3, 1)[:, top : top + size, left : left + size]


def to_float(
    images: torch.Tensor,
    low: float = -1.0,
    layout: torch.memory_format = torch.channels_last,
) -> torch.Tensor:
    """Scale images for a network, on the device they are on.

    Args:
        images: uint8 (B, H, W, C) in [0, 255].
        low: Value that 0 becomes; 255 becomes 1. Use -1 for tanh generators, 0 for sigmoid ones.
        layout: Memory format of the result. ``channels_last`` is that of the permuted input.

    Returns:
        float32 (B, C, H, W) in [low, 1].
    """
    floats = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=layout)
    # A division, because 255 / 127.5 - 1 is exactly 1 while 255 * (2 / 255) - 1 need not be.
    return floats.div_(255 / (1 - low)).add_(low)


def to_uint8(images: torch.Tensor, low: float) -> torch.Tensor:
    """Convert float (n, C, H, W) in [low, 1] to uint8 (n, H, W, C); the inverse of `to_float`."""
    unit = (images.float() - low) / (1.0 - low)
    return (unit * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def decode_jpegs(
    files: Sequence[NDArray[np.uint8]], shape: Shape, size: int, out: torch.Tensor
) -> None:
    """Decode JPEG files of one size; resize and crop them like `writer.resize_and_crop`.

    The full size is decoded with libjpeg-turbo's fast DCT and plain upsampling, which differ from
    the exact ones by 1.3 of 255 levels on average (procedural faces) and take 10 to 15 % less time.
    An image that becomes less than half as large is halved while it is decoded, then resized.

    Args:
        files: n JPEG files.
        shape: (H, W, C) of the image in every file.
        size: Side of the center square; 0 keeps (H, W).
        out: uint8 (n, size, size, C), or (n, H, W, C), contiguous.

    Raises:
        ValueError: A file is damaged, or its image has another size.
    """
    height, width, channels = shape
    colorspace = "RGB" if channels == 3 else "GRAY"
    if size == 0:
        _decode_jpegs(files, colorspace, shape[:2], out.numpy(), fast=True)
        return
    # Powers of two only: 3/8 and the like are smaller, but their DCT has no SIMD code.
    divisor = next((n for n in (8, 4, 2) if min(height, width) // n >= size), 1)
    sides = -(-height // divisor), -(-width // divisor)
    decoded = torch.empty((len(files), *sides, channels), dtype=torch.uint8)
    _decode_jpegs(files, colorspace, sides, decoded.numpy(), fast=divisor == 1)
    out.copy_(to_squares(decoded, size, (height, width)))


def _decode_jpegs(
    files: Sequence[NDArray[np.uint8]],
    colorspace: str,
    sides: tuple[int, int],
    out: NDArray[np.uint8],
    *,
    fast: bool,
) -> None:
    """Decode into uint8 (n, H, W, C), scaled to H and W."""
    for file, image in zip(files, out, strict=True):
        decoded = simplejpeg.decode_jpeg(
            file,
            colorspace,
            fastdct=fast,
            fastupsample=fast,
            min_height=sides[0],
            min_width=sides[1],
            buffer=image,
        )
        if decoded.shape != image.shape:
            raise ValueError(f"an image of {decoded.shape}, not {image.shape}")
