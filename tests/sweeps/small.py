"""A small study whose every value is known, for what is drawn of it."""

from pathlib import Path

import numpy as np
from PIL import Image

from ganray.figures import sample_grid
from ganray.sweeps.axes import Axis, Level
from ganray.sweeps.design import make_plan
from ganray.sweeps.results import Results, RunResult


def axis(name, *labels):
    return Axis(name, tuple(Level(label, {name: label}) for label in labels))


KINDS = axis("latent.distribution", "normal", "uniform")
SIZES = axis("latent.size", "1", "10", "100")
OPTIMIZERS = axis("optimizer", "sgd", "adam")
CLEAR = 0.1
"""Coverage of the first level of the first axis; of the second it is twice that, of each seed
0.02 more than of the one before."""


def results(*axes, seeds=3, name="s", **ended):
    """A study in which every run finished but for those named: by status, labels of trials."""
    study = make_plan(name, axes, seeds)
    status = {label: s for s, labels in ended.items() for label in labels}
    found = {}
    for trial in study.trials:
        level = axes[0].labels.index(trial.levels[0]) + 1
        coverage = CLEAR * level + 0.02 * trial.rng_seed
        values = {"coverage": coverage, "recall": coverage / 2, "kl_corrected": 1 - coverage}
        end = status.get(trial.label, "finished")
        if end == "diverged":
            values = dict.fromkeys(values, 0.0)
        if end != "waiting":
            found[trial.name] = RunResult(end, values if end in ("finished", "diverged") else {})
    return Results(study, found)


def grid(folder: Path, color, images_seen=1000, side=8):
    """A sample grid all of one colour, as a run leaves it."""
    images = np.empty((64, side, side, 3), np.uint8)
    images[:] = color
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    Image.fromarray(sample_grid(images)).save(folder / "samples" / f"{images_seen:012d}.png")
