"""The pictures that a finished run ends with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ganray.config.schema import Config
from ganray.figures import Row, labelled_rows, loss_chart
from ganray.gan.losses import LOSSES
from ganray.training import journal
from ganray.training.state import GRID_ROWS

STRIP = 8
"""Annotations of the strip of epochs, at most."""


def draw_losses(config: Config) -> Path:
    """The losses of D and G over the whole run, with their ideal; returns the PNG."""
    folder = config.run_folder()
    curves = {name: journal.history(folder, name) for name in ("D/loss", "G/loss")}
    path = folder / "losses.png"
    loss_chart(curves, LOSSES[config.loss.name].ideal, path)
    return path


def draw_epochs(config: Config, num_images: int, image_shape: tuple[int, int, int]) -> Path:
    """How the first row of the sample grid changed, epoch by epoch, as one strip; returns the PNG.

    Args:
        config: of the run.
        num_images: images of an epoch.
        image_shape: (H, W, C) of a sample.
    """
    folder = config.run_folder()
    grids = sorted((folder / "samples").glob("*.png"))
    picked = np.linspace(0, len(grids) - 1, min(STRIP, len(grids))).round().astype(int)
    rows = []
    for grid in (grids[i] for i in picked):
        picture = np.asarray(Image.open(grid))
        height = len(picture) // GRID_ROWS
        width = height * image_shape[1] // image_shape[0]
        row = picture[:height].reshape(height, -1, width, 3).swapaxes(0, 1)
        rows.append(Row(row, f"epoch {int(grid.stem) / num_images:.3g}"))
    path = folder / "epochs.png"
    Image.fromarray(labelled_rows([rows])).save(path)
    return path


def last_samples(config: Config) -> Path:
    """The newest sample grid, also as `samples.png`, which stays in place."""
    folder = config.run_folder()
    newest = max((folder / "samples").glob("*.png"))
    path = folder / "samples.png"
    path.write_bytes(newest.read_bytes())
    return path
