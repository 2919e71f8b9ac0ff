"""Plan of a sweep: the settings of its axes, each with several seeds.

A *setting* is one level of each axis. Its runs differ in `train.rng_seed` only. Seeds are the
outermost loop and the settings of each seed are shuffled, so that a sweep that is stopped early has
run all levels about equally often.
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
from ganray.files import read_json, write_atomic
from ganray.sweeps.axes import RATE, SEED, Axis, Level

Design = Literal["grid", "random", "sobol"]


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    name: str
    """Name of the run folder and of the MLflow run."""
    label: str
    """Name without that of the sweep, for legends."""
    levels: tuple[str, ...]
    """One label per axis."""
    rng_seed: int
    overrides: Mapping[str, Any]
    """Fields of the config that differ from the base, by dotted name."""

    def config(self, base: Config) -> Config:
        """Return the config of this run; raises UserError for an invalid combination."""
        return apply_overrides(replace(base, name=self.name), self.overrides)


@dataclass(frozen=True)
class SweepPlan:
    """Axes of a sweep and its runs."""

    name: str
    axes: tuple[Axis, ...]
    trials: tuple[Trial, ...]
    """Runs in their order of execution."""

    @property
    def settings(self) -> list[tuple[str, ...]]:
        """Labels of the settings that have runs, in the order of the axes' levels."""
        planned = {trial.levels for trial in self.trials}
        grid = itertools.product(*(axis.labels for axis in self.axes))
        return [setting for setting in grid if setting in planned]

    def with_trial(self, trial: Trial, levels: Sequence[Level]) -> SweepPlan:
        """Return the plan with a run that a search has started or whose levels pbt has changed."""
        axes = [
            axis.with_level(level) if axis.range else axis
            for axis, level in zip(self.axes, levels, strict=True)
        ]
        trials = {known.name: known for known in (*self.trials, trial)}
        return replace(self, axes=tuple(axes), trials=tuple(trials.values()))

    def save(self, folder: Path) -> None:
        """Write `plan.json` into the folder of the sweep."""
        write_atomic(folder / FILE, json.dumps(asdict(self), indent=1))


FILE = "plan.json"


def load_plan(folder: Path) -> SweepPlan:
    """Return the plan that `SweepPlan.save` wrote; raise UserError if the file is damaged."""
    path, remedy = folder / FILE, "start the sweep under another --name; its runs are kept"
    values = read_json(path, remedy)
    try:
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
    except (TypeError, KeyError) as error:
        raise UserError(f"{path}: damaged ({error!r}); {remedy}") from error


def apply_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """Return the config with fields replaced, by dotted name; `rate` scales both learning rates."""
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
    """Return the plan of a sweep.

    Args:
        name: Name of the sweep.
        axes: Axes to vary.
        seeds: Number of runs of each setting.
        design: `grid` runs all settings, `random` and `sobol` a uniform subset; Sobol's sequence
            also takes each level about equally often.
        settings: Number of settings of `random` and `sobol`.
        first_seed: `train.rng_seed` of the first run of each setting.

    Raises:
        UserError: Two axes set the same field, or the grid has fewer settings than requested.
    """
    _check_axes(axes)
    for axis in axes:
        if axis.range:
            raise UserError(
                f"sweep.axis: a range of {axis.name} needs a search; list its values, or use"
                " --sweep.design tpe or pbt"
            )
    chosen = [list(levels) for levels in itertools.product(*(axis.levels for axis in axes))]
    if design != "grid":
        if settings is None or not 0 < settings <= len(chosen):
            raise UserError(
                f"sweep.settings={settings} must lie in 1 .. {len(chosen)}, the size of the"
                f" whole grid, with sweep.design={design}"
            )
        chosen = _subset(axes, settings, design, first_seed)
    trials = []
    for seed in range(first_seed, first_seed + seeds):
        shuffled = np.random.default_rng([first_seed, seed]).permutation(len(chosen))
        trials += [make_trial(name, chosen[i], seed) for i in shuffled]
    if duplicates := [n for n, count in Counter(t.name for t in trials).items() if count > 1]:
        raise UserError(
            f"sweep.axis: two levels give the same run name, {duplicates[0]}, which keeps letters"
            " and digits only; use other values"
        )
    return SweepPlan(name, tuple(axes), tuple(trials))


def _check_axes(axes: Sequence[Axis]) -> None:
    seen: dict[str, str] = {}
    for axis in axes:
        for field in {field for level in axis.levels for field in level.overrides}:
            if field in seen:
                raise UserError(
                    f"sweep.axis: {field} is set by both {seen[field]} and {axis.name}; remove one,"
                    " or join their fields by +"
                )
            seen[field] = axis.name


def _subset(axes: Sequence[Axis], count: int, design: Design, seed: int) -> list[list[Level]]:
    sizes = [len(axis.levels) for axis in axes]
    if design == "random":
        picked = np.random.default_rng(seed).permutation(math.prod(sizes))[:count]
        indices = np.array(np.unravel_index(picked, sizes)).T
    else:
        indices = _sobol(sizes, count, seed)
    return [[axis.levels[i] for axis, i in zip(axes, row, strict=True)] for row in indices]


def _sobol(sizes: Sequence[int], count: int, seed: int) -> np.ndarray:
    """Return the first `count` distinct settings of Sobol's sequence, int64 (count, axes)."""
    sequence, indices = qmc.Sobol(len(sizes), rng=seed), {}
    while len(indices) < count:
        for point in sequence.random(256):
            indices.setdefault(tuple((point * sizes).astype(int)), None)
    return np.array(list(indices))[:count]


def make_trial(sweep: str, levels: Sequence[Level], seed: int) -> Trial:
    """Return the run of a sweep with these levels and this seed."""
    overrides = {key: value for level in levels for key, value in level.overrides.items()}
    label = "-".join(_for_name(level.label) for level in levels)
    label = f"{label}-s{seed}" if label else f"s{seed}"
    names = tuple(level.label for level in levels)
    return Trial(f"{sweep}.{label}", label, names, seed, overrides | {SEED: seed})


def _for_name(label: str) -> str:
    """Return a label without the characters that run names do not allow."""
    return "".join(c if c.isalnum() or c in "._" else "-" for c in label)
