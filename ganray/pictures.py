"""Generated images laid out for the eye: labelled rows on white, and moving pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP, _MARGIN = 4, 16
"""Pixels between images, and around the whole picture and its groups of rows."""
_FONT, _LINE = 14, 20
"""Height of letters and of a line."""
_INK, _PALE = (30, 30, 30), (110, 110, 110)
_COLORS = 64
"""Of a GIF, which may have 256: the more, the longer the file."""


@dataclass(frozen=True)
class Row:
    """A line of images in a picture."""

    images: np.ndarray
    """uint8 (n, H, W, 1 or 3)."""
    caption: str = ""
    """Stands left of the images; may have several lines."""
    notes: Sequence[str] = ()
    """One above each image, of one line; or none at all."""


def enlarge(images: np.ndarray) -> np.ndarray:
    """Uint8 (n, H, W, 1 or 3) -> (n, h, w, 3): by whole pixels, to a side of 96 or more."""
    zoom = math.ceil(96 / max(images.shape[1:3]))
    channels = images.repeat(3 // images.shape[3], axis=3)
    return channels.repeat(zoom, axis=1).repeat(zoom, axis=2)


def labelled_rows(groups: Sequence[Sequence[Row]], title: str = "") -> np.ndarray:
    """Draw groups of rows on white, all images of one shape: uint8 (h, w, 3)."""
    rows = [row for group in groups for row in group]
    height, width = enlarge(rows[0].images[:1]).shape[1:3]
    font = ImageFont.load_default(_FONT)
    captions = max(font.getlength(line) for row in rows for line in row.caption.split("\n"))
    left = _MARGIN + (math.ceil(captions) + _MARGIN if captions else 0)
    right = left + max(len(row.images) for row in rows) * (width + _GAP) - _GAP
    right = max(right, _MARGIN + math.ceil(font.getlength(title)))

    tops, bottom = [], _MARGIN + (_LINE if title else -_MARGIN)
    for group in groups:
        bottom += _MARGIN
        for row in group:
            tops.append(bottom + (_LINE if row.notes else 0))
            bottom = tops[-1] + height + _GAP

    picture = Image.new("RGB", (right + _MARGIN, bottom - _GAP + _MARGIN), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((_MARGIN, _MARGIN), title, _INK, font)
    for row, top in zip(rows, tops, strict=True):
        middle = (_MARGIN, top + height / 2)
        pen.multiline_text(middle, row.caption, _INK, font, "lm", _LINE - _FONT)
        for i, image in enumerate(enlarge(row.images)):
            at = left + i * (width + _GAP)
            picture.paste(Image.fromarray(image), (at, top))
            if row.notes:
                pen.text((at + width / 2, top - _GAP), row.notes[i], _PALE, font, "ms")
    return np.asarray(picture)


def write_gif(frames: np.ndarray, path: Path, fps: int) -> None:
    """Write frames, uint8 (n, h, w, 3), as a GIF that starts again for ever.

    One palette serves all frames, and nothing is dithered, which would flicker.
    """
    some = frames[:: max(1, len(frames) // 8)]
    palette = Image.fromarray(some.reshape(-1, *some.shape[2:])).quantize(_COLORS)
    images = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    ]
    first, *others = images
    first.save(path, save_all=True, append_images=others, duration=round(1000 / fps), loop=0)


def write_mp4(frames: np.ndarray, path: Path, fps: int) -> None:
    """Write frames, uint8 (n, h, w, 3), as H.264 in an MP4.

    Raises:
        ValueError: The encoder is not installed.
    """
    require_encoder()
    import imageio.v2 as imageio

    # H.264 keeps one colour for 2x2 pixels, so it knows no odd sides.
    odd = [(0, side % 2) for side in frames.shape[1:3]]
    even = np.pad(frames, [(0, 0), *odd, (0, 0)], mode="edge")
    imageio.mimwrite(path, list(even), fps=fps, macro_block_size=2, quality=8)


def require_encoder() -> None:
    """Ask for what `write_mp4` needs, before any work is done.

    Raises:
        ValueError: The encoder is not installed.
    """
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise ValueError(
            '--animation=mp4 needs an encoder: pip install -e ".[video]", or use --animation gif'
        ) from error
