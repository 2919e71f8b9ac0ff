"""Decode JPEG files into a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray

from ganray.data.format import Shape
from ganray.data.transforms import to_squares
from ganray.errors import UserError


def decode(files: Sequence[NDArray[np.uint8]], shape: Shape, size: int, out: torch.Tensor) -> None:
    """Decode files of one size; resize and crop them as ``writer.resize_and_crop`` does.

    At full size by libjpeg-turbo's fast DCT and plain upsampling, which differ from the exact ones
    by 1.3 levels of 255 in the mean (drawn faces) and take 10 to 15 % less time. A picture that is
    to become less than half as large is halved while it is decoded, once or more, and then resized.

    Args:
        files: n JPEG files.
        shape: (H, W, C) of every picture in them.
        size: Side of the square to cut from the middle; 0 keeps (H, W).
        out: uint8 (n, size, size, C), or (n, H, W, C), contiguous.

    Raises:
        ValueError: A file is damaged, or holds a picture of another size.
    """
    height, width, channels = shape
    colorspace = "RGB" if channels == 3 else "GRAY"
    if size == 0:
        _decode(files, colorspace, shape[:2], out.numpy(), fast=True)
        return
    # Halves only: 3/8 and the like are smaller, but their DCT has no SIMD code and takes longer.
    halved = next((n for n in (8, 4, 2) if min(height, width) // n >= size), 1)
    scaled = -(-height // halved), -(-width // halved)
    coarse = torch.empty((len(files), *scaled, channels), dtype=torch.uint8)
    _decode(files, colorspace, scaled, coarse.numpy(), fast=halved == 1)
    out.copy_(to_squares(coarse, size, (height, width)))


def _decode(
    files: Sequence[NDArray[np.uint8]],
    colorspace: str,
    sides: tuple[int, int],
    out: NDArray[np.uint8],
    *,
    fast: bool,
) -> None:
    """Decode into uint8 (n, H, W, C), scaled to H and W where the files are larger."""
    for file, picture in zip(files, out, strict=True):
        found = simplejpeg.decode_jpeg(
            file,
            colorspace,
            fastdct=fast,
            fastupsample=fast,
            min_height=sides[0],
            min_width=sides[1],
            buffer=picture,
        )
        if found.shape != picture.shape:
            raise UserError(f"a picture of {found.shape}, not {picture.shape}")
