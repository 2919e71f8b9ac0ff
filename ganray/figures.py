"""What a person looks at: sample grids and the loss chart with its ideal line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ganray.errors import UserError

Curve = tuple[np.ndarray, np.ndarray]


def sample_grid(images: np.ndarray, columns: int = 8) -> np.ndarray:
    """Tile uint8 (n, H, W, 1 or 3) images into one (rows * h, columns * w, 3) picture.

    Small images are enlarged by whole pixels, so that a 32-pixel face can be seen on a screen.
    """
    count, height, width, channels = images.shape
    rows = math.ceil(count / columns)
    padded = np.zeros((rows * columns, height, width, channels), np.uint8)
    padded[:count] = images
    tiled = padded.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    grid = tiled.reshape(rows * height, columns * width, channels).repeat(3 // channels, axis=2)
    zoom = max(1, 96 // max(height, width))
    return grid.repeat(zoom, axis=0).repeat(zoom, axis=1)


def loss_chart(curves: dict[str, Curve], ideal: float | None, path: Path) -> None:
    """Draw losses against images seen: raw points pale, a smoothed line, the ideal dashed.

    Args:
        curves: by name, (images seen (n,), values (n,)); a panel each, of one x axis.
        ideal: both losses where D cannot tell real from fake; None draws no line.
        path: the PNG to write.
    """
    # pyplot would open a window system and keep every figure alive; the object API does neither.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(curves), sharex=True, squeeze=False)[:, 0]
    colors = ("tab:blue", "tab:orange")
    for axes, color, (name, (images, values)) in zip(panels, colors, curves.items(), strict=False):
        axes.plot(images / 1000, values, ".", color=color, alpha=0.25, markersize=4)
        axes.plot(images / 1000, smoothed(values), color=color)
        if ideal is not None:
            axes.axhline(ideal, color="gray", linestyle="--", label=f"ideal {ideal:.3f}")
            axes.legend()
        axes.set_ylabel(name)
        axes.grid(alpha=0.25)
    panels[-1].set_xlabel("real images seen (thousands)")
    figure.savefig(path, dpi=120)


@dataclass(frozen=True)
class Judged:
    """One kind of images before a discriminator."""

    name: str
    """What they are."""
    images: np.ndarray
    """uint8 (n, H, W, 1 or 3)."""
    probs: np.ndarray
    """(n,) D's probability, in [0, 1], that each is real."""
    curve: Curve
    """Mean probability as D learned."""
    mark: float
    """Which that should reach."""


def separation_chart(kinds: Sequence[Judged], path: Path, examples: int = 6) -> None:
    """Draw how D tells kinds of images apart: its mean probabilities on the left, examples beside.

    Args:
        kinds: a curve, and a row of pictures with D's word on each, for every one.
        path: the PNG to write.
        examples: pictures in a row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(kinds), examples + 5)
    axes = figure.add_subplot(grid[:, :5])
    for color, kind in zip(("tab:blue", "tab:orange"), kinds, strict=False):
        images, means = kind.curve
        axes.plot(images, means, ".-", color=color, label=kind.name)
        axes.axhline(kind.mark, color=color, linestyle="--", linewidth=1)
    axes.set(xlabel="real images seen", ylabel="D's probability of real", ylim=(-0.03, 1.03))
    axes.set_xscale("log")  # one net needs a thousand times as many as another
    axes.grid(alpha=0.25)
    axes.legend()
    for row, kind in enumerate(kinds):
        for i, (image, prob) in enumerate(zip(kind.images[:examples], kind.probs, strict=False)):
            cell = figure.add_subplot(grid[row, 5 + i])
            cell.imshow(image.repeat(3 // image.shape[2], axis=2), interpolation="nearest")
            cell.set_title(f"{prob:.3f}", fontsize=9)
            cell.set_axis_off()
    figure.savefig(path, dpi=120)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Gaussian average (n,) over about a fortieth of the curve to each side; it does not lag."""
    if not len(values):
        return values
    sigma = max(0.5, len(values) / 80)
    reach = np.arange(-4 * int(np.ceil(sigma)), 4 * int(np.ceil(sigma)) + 1)
    kernel = np.exp(-0.5 * (reach / sigma) ** 2)
    known = np.ones(len(values))  # beyond the ends nothing is known, so nothing is averaged
    total, weight = (
        np.convolve(part, kernel)[-reach[0] :][: len(values)] for part in (values, known)
    )
    return total / weight


# Generated images laid out for the eye: labelled rows on white, and moving pictures.

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
        raise UserError(
            '--animation=mp4 needs an encoder: pip install -e ".[video]", or use --animation gif'
        ) from error
