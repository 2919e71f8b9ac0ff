"""A study's runs as tables: first axis down, second across, a panel for each rest. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ganray.evaluation.suite import METRICS
from ganray.metrics.intervals import Estimate, replicate_interval
from ganray.sweeps.axes import Axis, Level
from ganray.sweeps.design import Trial
from ganray.sweeps.results import RANKED, Results, RunResult

TITLES = {
    "kl_corrected": "corrected KL (nats)",
    "vendi_share": "Vendi share",
    "modes_held": "modes held",
    "sure_share": "sure share",
    "half_life_kimg": "half-life (kimg)",
    "images_per_s": "pace (images/s)",
}
"""Of metrics whose names are not words."""
_NOTHING = Axis("", (Level("", {}),))
"""Stands where a study has fewer axes than a table."""


@dataclass(frozen=True)
class Cell:
    """One level of each axis, with its replicates in the order of their seeds."""

    levels: tuple[str, ...]
    metric: str
    trials: tuple[Trial, ...]
    """None where the design leaves the cell out."""
    outcomes: tuple[RunResult, ...]
    """Of each trial."""

    @property
    def counted(self) -> list[RunResult]:
        """Those that say how the setting fares, by a value of the metric."""
        return [o for o in self.outcomes if o.scored and self.metric in o.values]

    @property
    def values(self) -> np.ndarray:
        """float64 (n,) of the runs that count."""
        return np.array([o.values[self.metric] for o in self.counted], np.float64)

    @property
    def fell(self) -> np.ndarray:
        """Bool (n,): which of `values` are of runs that diverged."""
        return np.array([o.status == "diverged" for o in self.counted], bool)

    @property
    def diverged(self) -> int:
        """How many diverged, whether or not the metric has a value for it."""
        return sum(o.status == "diverged" for o in self.outcomes)

    @property
    def mean(self) -> Estimate | None:
        """Over the runs that count, with its 95 % t-interval; None where there are none."""
        return replicate_interval(self.values.tolist()) if len(self.values) else None

    @property
    def state(self) -> str:
        """What became of the runs, in a word: of several, the one that may still change."""
        found = {outcome.status for outcome in self.outcomes}
        order = ("running", "waiting", "finished", "stopped", "diverged", "failed")
        return next((status for status in order if status in found), "")


@dataclass(frozen=True)
class Panel:
    """Two axes, at one level of each other."""

    title: str
    """Names those levels; empty where there are no more axes."""
    cells: tuple[tuple[Cell, ...], ...]
    """Annotations of columns."""


@dataclass(frozen=True)
class Table:
    """All cells of a study."""

    metric: str
    rows: Axis
    columns: Axis
    """Of one level without a name where the study has a single axis."""
    panels: tuple[Panel, ...]

    @property
    def cells(self) -> list[Cell]:
        """Of all panels."""
        return [cell for panel in self.panels for row in panel.cells for cell in row]

    @property
    def most(self) -> int:
        """Runs that count in the fullest cell."""
        return max(len(cell.values) for cell in self.cells)


def tabulate(results: Results, metric: str) -> Table:
    """Lay out one metric of all runs."""
    axes = results.plan.axes
    rows, columns, *rest = [*axes, _NOTHING, _NOTHING][: max(2, len(axes))]
    trials: dict[tuple[str, ...], list[Trial]] = {}
    for trial in sorted(results.plan.trials, key=lambda t: t.rng_seed):
        trials.setdefault(trial.levels, []).append(trial)

    def cell(*labels: str) -> Cell:
        levels = labels[: len(axes)]
        found = tuple(trials.get(levels, ()))
        return Cell(levels, metric, found, tuple(map(results.get, found)))

    panels = [
        Panel(
            ", ".join(f"{a.title} {label}" for a, label in zip(rest, others, strict=True)),
            tuple(tuple(cell(r, c, *others) for c in columns.labels) for r in rows.labels),
        )
        for others in itertools.product(*(axis.labels for axis in rest))
    ]
    return Table(metric, rows, columns, tuple(panels))


def title_of(metric: str) -> str:
    """What it is called on charts."""
    return TITLES.get(metric, metric)


def direction(metric: str) -> str:
    """Which way is better: higher, lower or neither."""
    return RANKED.get(metric) or METRICS.get(metric, ("neither", ""))[0]


def digits(values: Sequence[float]) -> int:
    """Decimals that show the largest of them with three figures, two decimals at most."""
    top = max(map(abs, values), default=0.0)
    return 2 if top < 10 else 1 if top < 100 else 0


def short(estimate: Estimate, decimals: int) -> tuple[str, str]:
    """A mean and half its interval, as told apart as they are: "0.61", "±0.05"; "" for one run."""
    half = (estimate.high - estimate.low) / 2
    # A rounded zero keeps no sign: "-0.00" reads like a slip.
    value = f"{round(estimate.value, decimals) + 0.0:,.{decimals}f}"
    return value, f"±{half:,.{decimals}f}" if np.isfinite(half) else ""
