"""Figures of a finished run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ganray.figures import Row, labelled_rows, loss_chart
from ganray.gan.losses import LOSSES
from ganray.training import journal
from ganray.training.state import GRID_ROWS

_MAX_EPOCHS = 8
"""Maximum number of rows of the figure of epochs."""


def draw_losses(folder: Path, loss: str) -> Path:
    """Draw the losses of D and G and their ideal; return the PNG file in the run folder."""
    curves = {name: journal.history(folder, name) for name in ("D/loss", "G/loss")}
    path = folder / "losses.png"
    loss_chart(curves, LOSSES[loss].ideal, path)
    return path


def draw_epochs(folder: Path, num_images: int, image_shape: tuple[int, int, int]) -> Path:
    """Draw the first row of sample grids over the epochs; return the PNG file in the run folder.

    An epoch has `num_images` images; `image_shape` is (H, W, C) of a sample.
    """
    grids = sorted((folder / "samples").glob("*.png"))
    selected = np.linspace(0, len(grids) - 1, min(_MAX_EPOCHS, len(grids))).round().astype(int)
    rows = []
    for path in (grids[i] for i in selected):
        grid = np.asarray(Image.open(path))
        height = len(grid) // GRID_ROWS
        width = height * image_shape[1] // image_shape[0]
        images = grid[:height].reshape(height, -1, width, 3).swapaxes(0, 1)
        rows.append(Row(images, f"epoch {int(path.stem) / num_images:.3g}"))
    path = folder / "epochs.png"
    Image.fromarray(labelled_rows([rows])).save(path)
    return path


def last_samples(folder: Path) -> Path:
    """Copy the latest sample grid to `samples.png` in the run folder and return that file."""
    path = folder / "samples.png"
    path.write_bytes(max((folder / "samples").glob("*.png")).read_bytes())
    return path
