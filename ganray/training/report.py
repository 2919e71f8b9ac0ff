"""The pictures that a finished run ends with."""

from __future__ import annotations

from pathlib import Path

from ganray.config import Config
from ganray.figures import loss_chart
from ganray.gan.losses import LOSSES
from ganray.training import journal


def draw_losses(config: Config) -> Path:
    """The losses of D and G over the whole run, with their ideal; returns the PNG."""
    folder = config.run_folder()
    curves = {name: journal.history(folder, name) for name in ("D/loss", "G/loss")}
    path = folder / "losses.png"
    loss_chart(curves, LOSSES[config.loss.name].ideal, path)
    return path


def last_samples(config: Config) -> Path:
    """The newest sample grid, also as `samples.png`, which stays in place."""
    folder = config.run_folder()
    newest = max((folder / "samples").glob("*.png"))
    path = folder / "samples.png"
    path.write_bytes(newest.read_bytes())
    return path
