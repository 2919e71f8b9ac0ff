"""A small sweep whose every value is known."""

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


def results(*axes, seeds=3, name="s", **labels):
    """A sweep whose runs all finished, except trial labels named by status (`failed=[...]`).

    Coverage is 0.1 at the first level of the first axis, 0.2 at the second, plus 0.02 per seed.
    """
    plan = make_plan(name, axes, seeds)
    statuses = {label: status for status, names in labels.items() for label in names}
    by_trial = {}
    for trial in plan.trials:
        level = axes[0].labels.index(trial.levels[0]) + 1
        coverage = 0.1 * level + 0.02 * trial.rng_seed
        values = {"coverage": coverage, "recall": coverage / 2, "kl_corrected": 1 - coverage}
        status = statuses.get(trial.label, "finished")
        if status == "diverged":
            values = dict.fromkeys(values, 0.0)
        scored = status in ("finished", "diverged")
        if status != "waiting":
            by_trial[trial.name] = RunResult(status, values if scored else {})
    return Results(plan, by_trial)


def write_samples(folder: Path, color, images_seen=1000, side=8):
    """Write a sample grid of a single color into a run folder."""
    images = np.empty((64, side, side, 3), np.uint8)
    images[:] = color
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    Image.fromarray(sample_grid(images)).save(folder / "samples" / f"{images_seen:012d}.png")
