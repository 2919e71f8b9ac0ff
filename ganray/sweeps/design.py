"""Which runs a study consists of: cells of its axes, and replicates. Pure; nothing runs.

A *cell* is one level of each axis; its *replicates* differ in `train.rng_seed` alone. Replicates
are the outermost loop and the cells of each are shuffled, so that a study that is stopped early
has run all levels about as often.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import qmc

from ganray.config.schema import Config
from ganray.errors import UserError
from ganray.sweeps.axes import RATE, SEED, Axis, Level

Design = Literal["grid", "random", "sobol"]


@dataclass(frozen=True)
class Trial:
    """One run of the study."""

    name: str
    """Of the run: its folder and its MLflow run."""
    label: str
    """The name without the study's, for legends."""
    levels: tuple[str, ...]
    """A label for each axis."""
    rng_seed: int
    overrides: Mapping[str, Any]
    """Fields of the config that differ from the base, by dotted names."""

    def config(self, base: Config) -> Config:
        """The whole config of this run.

        Raises:
            ValueError: these settings do not go together.
        """
        return apply_overrides(replace(base, name=self.name), self.overrides)


@dataclass(frozen=True)
class SweepPlan:
    """Axes and the runs that fill them."""

    name: str
    axes: tuple[Axis, ...]
    trials: tuple[Trial, ...]
    """In the order in which they are run."""

    @property
    def settings(self) -> list[tuple[str, ...]]:
        """Those that have runs, as labels, in the order of the axes' levels."""
        wanted = {trial.levels for trial in self.trials}
        return [
            cell for cell in itertools.product(*(a.labels for a in self.axes)) if cell in wanted
        ]

    def with_trial(self, trial: Trial, levels: Sequence[Level]) -> SweepPlan:
        """The study with a run that a search has begun, or a member that changed its levels."""
        axes = [
            axis.with_level(level) if axis.range else axis
            for axis, level in zip(self.axes, levels, strict=True)
        ]
        trials = {one.name: one for one in (*self.trials, trial)}
        return replace(self, axes=tuple(axes), trials=tuple(trials.values()))

    def save(self, folder: Path) -> None:
        """Write `plan.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{FILE}.part"
        part.write_text(json.dumps(asdict(self), indent=1))
        part.replace(folder / FILE)


FILE = "plan.json"


def load_plan(folder: Path) -> SweepPlan:
    """Read what `SweepPlan.save` wrote."""
    values = json.loads((folder / FILE).read_text())
    axes = [
        Axis(
            **axis
            | {
                "levels": tuple(Level(**level) for level in axis["levels"]),
                "range": axis["range"] and tuple(axis["range"]),
            }
        )
        for axis in values["axes"]
    ]
    trials = [Trial(**trial | {"levels": tuple(trial["levels"])}) for trial in values["trials"]]
    return SweepPlan(values["name"], tuple(axes), tuple(trials))


def apply_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """The config with these fields, by dotted names, and `rate` on its learning rates.

    Raises:
        ValueError: they do not go together.
    """
    sections: dict[str, dict[str, Any]] = {}
    for name, value in overrides.items():
        section, _, field = name.partition(".")
        if field:
            sections.setdefault(section, {})[field] = value
    parts = {s: replace(getattr(config, s), **values) for s, values in sections.items()}
    if factor := overrides.get(RATE):
        optimizer = parts.get("optimizer", config.optimizer)
        parts["optimizer"] = replace(
            optimizer, lr_G=optimizer.lr_G * factor, lr_D=optimizer.lr_D * factor
        )
    return replace(config, **parts)


def make_plan(
    name: str,
    axes: Sequence[Axis],
    seeds: int,
    *,
    design: Design = "grid",
    settings: int | None = None,
    first_seed: int = 0,
) -> SweepPlan:
    """All runs of a study, in the order in which they are to be run.

    Args:
        name: of the study.
        axes: what is varied.
        seeds: replicates of each cell.
        design: grid: all cells. random, sobol: some of them, drawn evenly; Sobol's sequence also
            takes each level about as often.
        settings: how many, of random and sobol.
        first_seed: `train.rng_seed` of the first replicate.

    Raises:
        ValueError: two axes set one field, or there are fewer cells than are wanted.
    """
    _check_axes(axes)
    for axis in axes:
        if axis.range:
            raise UserError(
                f"sweep.axis: the range of {axis.name} is for searches; name its values, or use"
                " --sweep.design tpe or pbt"
            )
    chosen = [list(cell) for cell in itertools.product(*(axis.levels for axis in axes))]
    if design != "grid":
        if settings is None or not 0 < settings <= len(chosen):
            raise UserError(
                f"sweep.settings={settings} must lie in 1 .. {len(chosen)}, the size of the"
                f" whole grid, with sweep.design={design}"
            )
        chosen = _some(axes, settings, design, first_seed)
    trials = []
    for seed in range(first_seed, first_seed + seeds):
        shuffled = np.random.default_rng([first_seed, seed]).permutation(len(chosen))
        trials += [make_trial(name, chosen[i], seed) for i in shuffled]
    if twice := [n for n, count in Counter(t.name for t in trials).items() if count > 1]:
        raise UserError(
            f"sweep.axis: two levels give runs of one name, {twice[0]}, for which only letters and"
            " digits count; name them otherwise"
        )
    return SweepPlan(name, tuple(axes), tuple(trials))


def _check_axes(axes: Sequence[Axis]) -> None:
    seen: dict[str, str] = {}
    for axis in axes:
        for field in {field for level in axis.levels for field in level.overrides}:
            if field in seen:
                raise UserError(
                    f"sweep.axis: {field} is set by both {seen[field]} and {axis.name}; leave one"
                    " out, or join their fields by +"
                )
            seen[field] = axis.name


def _some(axes: Sequence[Axis], count: int, design: Design, seed: int) -> list[list[Level]]:
    sizes = [len(axis.levels) for axis in axes]
    if design == "random":
        picked = np.random.default_rng(seed).permutation(math.prod(sizes))[:count]
        indices = np.array(np.unravel_index(picked, sizes)).T
    else:
        indices = _sobol(sizes, count, seed)
    return [[axis.levels[i] for axis, i in zip(axes, row, strict=True)] for row in indices]


def _sobol(sizes: Sequence[int], count: int, seed: int) -> np.ndarray:
    """The first `count` different cells that the sequence comes to: int64 (count, axes)."""
    sequence, found = qmc.Sobol(len(sizes), rng=seed), {}
    while len(found) < count:
        for point in sequence.random(256):
            found.setdefault(tuple((point * sizes).astype(int)), None)
    return np.array(list(found))[:count]


def make_trial(study: str, levels: Sequence[Level], seed: int) -> Trial:
    """One run: these levels with this seed."""
    overrides = {key: value for level in levels for key, value in level.overrides.items()}
    label = "-".join(_plain(level.label) for level in levels)
    label = f"{label}-s{seed}" if label else f"s{seed}"
    names = tuple(level.label for level in levels)
    return Trial(f"{study}.{label}", label, names, seed, overrides | {SEED: seed})


def _plain(label: str) -> str:
    """A label as part of a run's name, which allows few characters."""
    return "".join(c if c.isalnum() or c in "._" else "-" for c in label)
