"""Figures of a finished run."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from PIL import Image

from ganray.figures import Row, labeled_rows, loss_chart
from ganray.files import write_atomic
from ganray.gan.losses import LOSSES
from ganray.training import journal
from ganray.training.state import GRID_ROWS

logger = logging.getLogger(__name__)

_MAX_EPOCHS = 8
"""Maximum number of rows of the figure of epochs."""


def draw_losses(folder: Path, loss: str) -> Path:
    """Draw the losses of D and G and their ideal; return the PNG file in the run folder."""
    curves = {f"loss of {name}": journal.history(folder, f"loss/{name}") for name in ("D", "G")}
    path = folder / "losses.png"
    loss_chart(curves, LOSSES[loss].ideal, path, f"{folder.name}: losses ({loss})")
    return path


def draw_epochs(folder: Path, image_shape: tuple[int, int, int]) -> Path | None:
    """Draw the first row of sample grids over the run into a PNG file in the run folder.

    `image_shape` is (H, W, C) of a sample. Returns None if no sample grid is intact.
    """
    grids = list_samples(folder)
    if not grids:
        return None
    selected = np.linspace(0, len(grids) - 1, min(_MAX_EPOCHS, len(grids))).round().astype(int)
    rows = []
    for path in (grids[i] for i in selected):
        grid = np.asarray(Image.open(path))
        height = len(grid) // GRID_ROWS
        width = height * image_shape[1] // image_shape[0]
        images = grid[:height].reshape(height, -1, width, 3).swapaxes(0, 1)
        rows.append(Row(images, f"{int(path.stem) / 1000:.1f} kimg"))
    path = folder / "epochs.png"
    title = f"{folder.name}: samples of the same latents, by real images seen"
    Image.fromarray(labeled_rows([rows], title)).save(path)
    return path


def list_samples(folder: Path) -> list[Path]:
    """Return the sample grids of a run by step, without damaged files."""
    intact = []
    for path in sorted((folder / "samples").glob("*.png")):
        try:
            with Image.open(path) as image:
                image.load()
            intact.append(path)
        except (OSError, SyntaxError, ValueError) as error:
            logger.warning("%s: damaged (%s); left out", path, error)
    return intact


def last_samples(folder: Path) -> Path | None:
    """Copy the latest intact sample grid, if there is one, to `samples.png` in the run folder."""
    grids = list_samples(folder)
    if not grids:
        return None
    path = folder / "samples.png"
    write_atomic(path, grids[-1].read_bytes())
    return path
