"""What a person looks at: sample grids and the loss chart with its ideal line."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

Curve = tuple[np.ndarray, np.ndarray]


def sample_grid(images: np.ndarray, columns: int = 8) -> np.ndarray:
    """Tile uint8 (n, H, W, 3) images into one (rows * h, columns * w, 3) picture.

    Small images are enlarged by whole pixels, so that a 32-pixel face can be seen on a screen.
    """
    count, height, width, channels = images.shape
    rows = math.ceil(count / columns)
    padded = np.zeros((rows * columns, height, width, channels), np.uint8)
    padded[:count] = images
    tiled = padded.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    grid = tiled.reshape(rows * height, columns * width, channels)
    zoom = max(1, 96 // max(height, width))
    return grid.repeat(zoom, axis=0).repeat(zoom, axis=1)


def loss_chart(curves: dict[str, Curve], ideal: float | None, path: Path) -> None:
    """Draw losses against images seen: raw points pale, a smoothed line, the ideal dashed.

    Args:
        curves: by name, (images seen (n,), values (n,)).
        ideal: both losses where D cannot tell real from fake; None draws no line.
        path: the PNG to write.
    """
    # pyplot would open a window system and keep every figure alive; the object API does neither.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for color, (name, (images, values)) in zip(
        ("tab:blue", "tab:orange"), curves.items(), strict=False
    ):
        axes.plot(images / 1000, values, ".", color=color, alpha=0.25, markersize=4)
        axes.plot(images / 1000, smoothed(values), color=color, label=name)
    if ideal is not None:
        axes.axhline(ideal, color="gray", linestyle="--", label=f"ideal {ideal:.3f}")
    axes.set(xlabel="real images seen (thousands)", ylabel="loss")
    axes.grid(alpha=0.25)
    axes.legend()
    figure.savefig(path, dpi=120)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Exponential moving average (n,), a fortieth of the curve its half-life; no start-up bias."""
    half_life = max(1.0, len(values) / 40)
    keep = 0.5 ** (1.0 / half_life)
    out, total, weight = np.empty(len(values)), 0.0, 0.0
    for i, value in enumerate(values):
        total, weight = keep * total + value, keep * weight + 1.0
        out[i] = total / weight
    return out
