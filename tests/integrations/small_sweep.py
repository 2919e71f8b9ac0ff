"""A sweep of twelve runs without training, whose journals follow closed-form curves."""

import math
from pathlib import Path

import numpy as np

from ganray.config.schema import Config
from ganray.sweeps import results
from ganray.sweeps.axes import Axis, Level
from ganray.sweeps.design import SweepPlan, Trial, make_plan
from ganray.sweeps.results import RunResult
from ganray.training.journal import Journal
from ganray.training.run_folder import RunFolder
from tests.conftest import tiny_config

DATASET = {"name": "faces", "digest": "0123456789abcdef", "path": "/data/shards"}
TICKS = 20
IMAGES_PER_TICK = 5000


def field_axis(name: str, *values: object) -> Axis:
    return Axis(name, tuple(Level(str(value), {name: value}) for value in values))


def small_sweep(name: str = "latents", seeds: int = 3) -> SweepPlan:
    distributions = field_axis("latent.distribution", "normal", "uniform")
    return make_plan(name, [distributions, field_axis("latent.size", 1, 64)], seeds)


def base_config(home: Path) -> Config:
    return tiny_config(home, name="base")


def write_journal(folder: Path, trial: Trial, ticks: int = TICKS, samples: int = 4) -> None:
    """Write curves that depend on the levels, and a little on the seed."""
    rng = np.random.default_rng([trial.rng_seed, len(trial.name)])
    is_wide = trial.levels[-1] != "1"
    end = (0.75 if is_wide else 0.35) + (0.08 if trial.levels[0] == "normal" else 0.0)
    journal = Journal(RunFolder(folder))
    for tick in range(1, ticks + 1):
        images, growth = tick * IMAGES_PER_TICK, 1 - math.exp(-tick / 6)
        losses = {"loss/D": 1.3 - 0.4 * growth, "loss/G": 0.7 + 0.8 * growth}
        noisy = {key: value + rng.normal(0, 0.03) for key, value in losses.items()}
        journal.metrics(images, noisy | {"speed/images_per_s": 900.0, "speed/step_ms": 14.0})
        if tick % 2 == 0:
            variety = end * growth + rng.normal(0, 0.015)
            journal.collapse(
                images,
                {
                    "collapse/coverage": variety,
                    "collapse/recall": 0.8 * variety,
                    "collapse/vendi_share": 0.9 * variety,
                    "collapse/kl_corrected": 1.2 * (1 - variety),
                    "collapse/modes_held": float(round(10 * variety)),
                },
                warning="",
            )
        if tick % max(ticks // samples, 1) == 0:
            journal.image("samples", images, _samples(rng, int(1 + 15 * end * growth)))


def _samples(rng: np.random.Generator, kinds: int, cells: int = 4, side: int = 24) -> np.ndarray:
    """Return a grid of discs of `kinds` colors."""
    rows, columns = np.mgrid[:side, :side] - side / 2
    disc = (rows**2 + columns**2 < (0.4 * side) ** 2)[..., None]
    colors = rng.integers(60, 255, (kinds, 3))
    grid = np.empty((cells * side, cells * side, 3), np.uint8)
    for i in range(cells**2):
        top, left = i // cells * side, i % cells * side
        color = colors[rng.integers(kinds)]
        grid[top : top + side, left : left + side] = np.where(disc, color, 20)
    return grid


def run_trial(config: Config, trial: Trial, **journal: int) -> RunResult:
    """Write a trial's journal and result."""
    write_journal(config.run_folder(), trial, **journal)
    return results.record(config.run_folder(), "finished")
