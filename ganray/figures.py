"""Figures: image grids, labeled rows of images, line charts and animations."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter1d

from ganray.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = tuple[np.ndarray, np.ndarray]
"""Real images seen (n,) and values (n,)."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#222222")
"""The palette of Okabe and Ito 2008, which color-blind readers can tell apart."""
MAX_BARS = 32
"""Maximum number of modes that are drawn as bars."""
_MIN_SIDE = 96
"""Pixels that images are enlarged to."""
_GAP, _MARGIN = 4, 16
"""Pixels between images, and around the figure and its groups of rows."""
_FONT_SIZE, _LINE_HEIGHT = 12, 20
_TEXT_COLOR, _NOTE_COLOR = (30, 30, 30), (110, 110, 110)
_GIF_COLORS = 64
"""Size of the palette, at most 256; more colors make a larger file."""


def sample_grid(images: np.ndarray, columns: int = 8) -> np.ndarray:
    """Tile uint8 (n, H, W, 1 or 3) images into one (rows * h, columns * w, 3) image.

    Small images are enlarged by an integer factor.
    """
    count, height, width, channels = images.shape
    rows = math.ceil(count / columns)
    padded = np.zeros((rows * columns, height, width, channels), np.uint8)
    padded[:count] = images
    tiled = padded.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    grid = tiled.reshape(rows * height, columns * width, channels).repeat(3 // channels, axis=2)
    zoom = max(1, _MIN_SIDE // max(height, width))
    return grid.repeat(zoom, axis=0).repeat(zoom, axis=1)


def enlarge(images: np.ndarray) -> np.ndarray:
    """Enlarge uint8 (n, H, W, 1 or 3) by an integer factor to RGB with a side of at least 96."""
    zoom = math.ceil(_MIN_SIDE / max(images.shape[1:3]))
    rgb = images.repeat(3 // images.shape[3], axis=3)
    return rgb.repeat(zoom, axis=1).repeat(zoom, axis=2)


@dataclass(frozen=True)
class Row:
    """A row of images in a figure."""

    images: np.ndarray
    """uint8 (n, H, W, 1 or 3)."""
    caption: str = ""
    """Text left of the images, of one or more lines."""
    notes: Sequence[str] = ()
    """One line of text above each image, or empty."""


def labeled_rows(groups: Sequence[Sequence[Row]], title: str = "") -> np.ndarray:
    """Draw groups of rows on white, all images of one shape: uint8 (h, w, 3)."""
    rows = [row for group in groups for row in group]
    height, width = enlarge(rows[0].images[:1]).shape[1:3]
    font = _font()
    captions = max(font.getlength(line) for row in rows for line in row.caption.split("\n"))
    left = _MARGIN + (math.ceil(captions) + _MARGIN if captions else 0)
    right = left + max(len(row.images) for row in rows) * (width + _GAP) - _GAP
    lines = title.split("\n") if title else []
    right = max(right, *(_MARGIN + math.ceil(font.getlength(line)) for line in lines), 0)

    tops, bottom = [], _MARGIN + _LINE_HEIGHT * len(lines) if lines else 0
    for group in groups:
        bottom += _MARGIN
        for row in group:
            tops.append(bottom + (_LINE_HEIGHT if row.notes else 0))
            bottom = tops[-1] + height + _GAP

    figure = Image.new("RGB", (right + _MARGIN, bottom - _GAP + _MARGIN), "white")
    draw = ImageDraw.Draw(figure)
    spacing = _LINE_HEIGHT - _FONT_SIZE
    draw.multiline_text((_MARGIN, _MARGIN), title, _TEXT_COLOR, font, spacing=spacing)
    for row, top in zip(rows, tops, strict=True):
        middle = _MARGIN, top + height / 2
        draw.multiline_text(middle, row.caption, _TEXT_COLOR, font, "lm", spacing)
        for i, image in enumerate(enlarge(row.images)):
            x = left + i * (width + _GAP)
            figure.paste(Image.fromarray(image), (x, top))
            if row.notes:
                draw.text((x + width / 2, top - _GAP), row.notes[i], _NOTE_COLOR, font, "ms")
    return np.asarray(figure)


@functools.cache
def _font(size: int = _FONT_SIZE) -> ImageFont.FreeTypeFont:
    """Return the font of the charts. Pillow's own swallows the space behind a digit."""
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def loss_chart(curves: dict[str, Curve], ideal: float | None, path: Path, title: str) -> None:
    """Draw losses by name against images seen: raw points, smoothed line and `Loss.ideal`."""
    figure = new_figure(8, 5.5)
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(len(curves), sharex=True, squeeze=False)[:, 0]
    for axes, color, (name, (images, values)) in zip(panels, COLORS, curves.items(), strict=False):
        axes.plot(images / 1000, values, ".", color=color, alpha=0.3, markersize=4)
        if len(values):
            smooth = gaussian_filter1d(values, max(0.5, len(values) / 80), mode="nearest")
            axes.plot(images / 1000, smooth, color=color)
        if ideal is not None:
            label = f"{ideal:.3f}: D cannot tell real from generated"
            axes.axhline(ideal, color="0.5", linestyle="--", label=label)
            axes.margins(y=0.2)  # room for the legend
            axes.legend(loc="best", fontsize=9)
        axes.set_ylabel(name)
        axes.grid(alpha=0.25)
    panels[-1].set_xlabel("real images seen (kimg)")
    figure.savefig(path, dpi=120)


def mode_chart(names: Sequence[str], real: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Draw the shares of the modes among real images and samples, counts (K,): uint8 (h, w, 3).

    With Pillow, because it is drawn during training: matplotlib would take 50 times as long.
    """
    font = _font()
    shares, row, width = np.array([real / real.sum(), samples / samples.sum()]), 28, 360
    left = 2 * _MARGIN + math.ceil(max(font.getlength(name) for name in names))
    top = _MARGIN + _LINE_HEIGHT + _GAP
    size = (left + width + 60, top + row * len(names) + _MARGIN)
    figure = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(figure)
    colors = (_NOTE_COLOR, COLORS[0])
    draw.text((left, _MARGIN), "real images", colors[0], font)
    draw.text((left + 100, _MARGIN), "samples", colors[1], font)
    for i, name in enumerate(names):
        y = top + i * row
        draw.text((_MARGIN, y + row / 2), name, _TEXT_COLOR, font, "lm")
        for bar, (share, color) in enumerate(zip(shares[:, i], colors, strict=True)):
            end, start = left + width * share / shares.max(), y + 3 + 11 * bar
            draw.rectangle((left, start, end, start + 10), color)
            draw.text((end + 6, start + 5), f"{share:.1%}", color, _font(9), "lm")
    return np.asarray(figure)


@dataclass(frozen=True)
class ClassifiedImages:
    """Images of one kind and a discriminator's probabilities for them."""

    name: str
    images: np.ndarray
    """uint8 (n, H, W, 1 or 3)."""
    probs: np.ndarray
    """D's probability, in [0, 1], that each image is real, (n,)."""
    curve: Curve
    """Mean probability during training."""
    target: float
    """Mean probability to reach."""


def separation_chart(
    kinds: Sequence[ClassifiedImages], path: Path, title: str, examples: int = 6
) -> None:
    """Draw D's mean probabilities during training next to one row of examples of each kind."""
    figure = new_figure(11, 4)
    figure.suptitle(title, fontsize=11)
    left, right = cast(Any, figure.subfigures(1, 2, width_ratios=(5, examples)))
    axes = left.subplots()
    for color, kind in zip(COLORS, kinds, strict=False):
        images, probs = kind.curve
        axes.plot(images / 1000, probs, ".-", color=color, label=kind.name)
        label = f"to reach: {kind.target:g}"
        axes.axhline(kind.target, color=color, linestyle="--", linewidth=1, label=label)
    axes.set(xlabel="real images seen (kimg)", ylabel="D's mean probability of real")
    axes.set_ylim(-0.03, 1.03)
    axes.set_xscale("log")  # some networks need a thousand times as many images as others
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=9)
    for rows, kind in zip(right.subfigures(len(kinds), 1), kinds, strict=True):
        rows.suptitle(f"{kind.name}, each with D's probability", fontsize=10)
        panels = rows.subplots(1, examples, squeeze=False)[0]
        for panel in panels:
            panel.set_axis_off()
        for panel, image, prob in zip(panels, kind.images, kind.probs, strict=False):
            panel.imshow(image.repeat(3 // image.shape[2], axis=2), interpolation="nearest")
            panel.set_title(f"{prob:.3f}", fontsize=9)
    figure.savefig(path, dpi=120)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty matplotlib figure, in inches."""
    # Imported here because workers, which draw no charts, need not wait for it. The object API,
    # unlike pyplot, opens no window system and does not keep figures alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_gif(frames: np.ndarray, path: Path, fps: int) -> None:
    """Write frames, uint8 (n, h, w, 3), as a GIF that loops forever.

    All frames share one palette, without dithering, which would flicker.
    """
    subset = frames[:: max(1, len(frames) // 8)]
    palette = Image.fromarray(subset.reshape(-1, *subset.shape[2:])).quantize(_GIF_COLORS)
    first, *others = (
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    )
    first.save(path, save_all=True, append_images=others, duration=round(1000 / fps), loop=0)


def write_mp4(frames: np.ndarray, path: Path, fps: int) -> None:
    """Write frames, uint8 (n, h, w, 3), as H.264 in an MP4."""
    require_encoder()
    import imageio.v2 as imageio

    # H.264 stores one color per 2x2 pixels, so sides must be even.
    odd = [(0, side % 2) for side in frames.shape[1:3]]
    even = np.pad(frames, [(0, 0), *odd, (0, 0)], mode="edge")
    imageio.mimwrite(path, list(even), fps=fps, macro_block_size=2, quality=8)


def require_encoder() -> None:
    """Raise UserError if the encoder that `write_mp4` needs is not installed."""
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise UserError(
            "--animation=mp4 needs an encoder: pip install 'imageio[ffmpeg]', or use"
            " --animation gif"
        ) from error
