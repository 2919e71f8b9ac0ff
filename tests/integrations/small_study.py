"""A study of twelve runs without training: journals such as GANs leave, made up in closed form."""

import math
from pathlib import Path

import numpy as np

from ganray.config.schema import Config
from ganray.sweeps import results
from ganray.sweeps.axes import Axis, Level
from ganray.sweeps.design import SweepPlan, Trial, make_plan
from ganray.sweeps.results import RunResult
from ganray.training.journal import Journal
from tests.conftest import tiny_config

DATASET = {"name": "faces", "digest": "0123456789abcdef", "path": "/data/shards"}
TICKS = 20
IMAGES_A_TICK = 5000


def field_axis(name: str, *values: object) -> Axis:
    return Axis(name, tuple(Level(str(value), {name: value}) for value in values))


def small_study(name: str = "latents", seeds: int = 3) -> SweepPlan:
    distributions = field_axis("latent.distribution", "normal", "uniform")
    return make_plan(name, [distributions, field_axis("latent.size", 1, 64)], seeds)


def base_config(home: Path) -> Config:
    return tiny_config(home, name="base")


def write_journal(folder: Path, trial: Trial, ticks: int = TICKS, pictures: int = 4) -> None:
    """The curves depend on the levels, and a little on the seed: more latents, more variety."""
    rng = np.random.default_rng([trial.rng_seed, len(trial.name)])
    wide = trial.levels[-1] != "1"
    end = (0.75 if wide else 0.35) + (0.08 if trial.levels[0] == "normal" else 0.0)
    log = Journal(folder)
    for tick in range(1, ticks + 1):
        images, grown = tick * IMAGES_A_TICK, 1 - math.exp(-tick / 6)
        losses = {"D/loss": 1.3 - 0.4 * grown, "G/loss": 0.7 + 0.8 * grown}
        noisy = {key: value + rng.normal(0, 0.03) for key, value in losses.items()}
        log.metrics(images, noisy | {"data/images_per_s": 900.0, "time/step_ms": 14.0})
        if tick % 2 == 0:
            variety = end * grown + rng.normal(0, 0.015)
            log.collapse(
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
        if tick % max(ticks // pictures, 1) == 0:
            log.image("samples", images, _picture(rng, int(1 + 15 * end * grown)))
    log.close()


def _picture(rng: np.random.Generator, kinds: int, cells: int = 4, side: int = 24) -> np.ndarray:
    """A grid of coloured discs of so many kinds."""
    rows, columns = np.mgrid[:side, :side] - side / 2
    disc = (rows**2 + columns**2 < (0.4 * side) ** 2)[..., None]
    colours = rng.integers(60, 255, (kinds, 3))
    grid = np.empty((cells * side, cells * side, 3), np.uint8)
    for i in range(cells**2):
        top, left = i // cells * side, i % cells * side
        colour = colours[rng.integers(kinds)]
        grid[top : top + side, left : left + side] = np.where(disc, colour, 20)
    return grid


def run_trial(config: Config, trial: Trial, **journal: int) -> RunResult:
    """All that a trial leaves in its folder."""
    write_journal(config.run_folder(), trial, **journal)
    return results.record(config.run_folder(), "finished")
