"""Results of the runs of a sweep, written to and read from their folders."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ganray.errors import UserError
from ganray.evaluation.suite import METRICS_BY_NAME
from ganray.files import read_json, write_atomic
from ganray.log import redact
from ganray.sweeps.design import SweepPlan, Trial
from ganray.sweeps.family import RANKED_BY
from ganray.training import journal

Status = Literal["finished", "diverged", "failed", "stopped", "running", "waiting"]
"""stopped: ended early by a scheduler, so its metrics are censored. failed: crashed again after
all retries."""
_FILE = "result.json"

RANKED = {name: METRICS_BY_NAME[name].better for name in RANKED_BY}
"""Metrics that settings are ranked by, with the better direction. Precision, density and the number
of modes are left out: a collapsed generator scores 1 on the first two, and all modes can be present
long before their variety is."""
SHOWN = ("modes_held", "modes", "sure_share", "precision", "half_life_kimg", "images_per_s")
"""Further metrics, collected but not ranked by."""
_WORST = {"recall": 0.0, "coverage": 0.0, "vendi_share": 0.0, "modes_held": 0.0, "modes": 0.0}


@dataclass(frozen=True)
class RunResult:
    """Outcome of one run: its status and last metrics."""

    status: Status
    values: Mapping[str, float]
    """Finite values of the metrics in ``RANKED`` and ``SHOWN``; unknown ones are left out."""
    reason: str = ""
    """Error message of a run that failed or diverged."""

    @property
    def scored(self) -> bool:
        """Whether the run counts for its setting: a diverged run does, a crashed one does not."""
        return self.status in ("finished", "diverged")


@dataclass(frozen=True)
class Results:
    """A sweep plan with the results of its runs so far."""

    plan: SweepPlan
    by_trial: Mapping[str, RunResult]
    """Results of the runs that ended, by trial name."""

    def get(self, trial: Trial) -> RunResult:
        """Return the result of a trial; its status is `waiting` if the run did not end yet."""
        return self.by_trial.get(trial.name, RunResult("waiting", {}))

    def array(self, metric: str) -> np.ndarray:
        """Return a metric of all scored runs, float64 (axis 1, axis 2, ..., seeds).

        Seeds ascend. An entry is nan where there is no scored run or the run lacks the metric. A
        diverged run has the worst value of each metric.
        """
        return self.table(
            lambda _, result: result.values.get(metric, math.nan) if result.scored else math.nan,
            math.nan,
        )

    def table(self, value: Callable[[Trial, RunResult], Any], empty: Any) -> np.ndarray:
        """Return a value of each run, (axis 1, ..., seeds); `empty` where no run is planned."""
        axes = [axis.labels for axis in self.plan.axes]
        seeds = sorted({trial.rng_seed for trial in self.plan.trials})
        values = np.full([*map(len, axes), len(seeds)], empty)
        for trial in self.plan.trials:
            index = [labels.index(name) for labels, name in zip(axes, trial.levels, strict=True)]
            values[(*index, seeds.index(trial.rng_seed))] = value(trial, self.get(trial))
        return values

    def count(self, *statuses: Status) -> int:
        """Return the number of runs with one of these statuses."""
        return sum(self.get(trial).status in statuses for trial in self.plan.trials)


def record(folder: Path, status: Status, reason: str = "", num_classes: int = 0) -> RunResult:
    """Write the result of a run into its folder and return it.

    Args:
        folder: Folder of the run, whose journal holds the metrics.
        status: How the run ended.
        reason: Error message.
        num_classes: Classes of the training images, for the KL of a run that diverged.
    """
    result = RunResult(status, _last_metrics(folder, status, num_classes), redact(reason))
    content = {"status": status, "values": result.values, "reason": result.reason}
    write_atomic(folder / _FILE, json.dumps(content))
    return result


def read(folder: Path) -> RunResult | None:
    """Return what `record` wrote, or None if the run has not ended."""
    try:
        return RunResult(**read_json(folder / _FILE, ""))
    except (UserError, TypeError):  # a damaged result is recorded again
        return None


def images_seen(folder: Path) -> int:
    """Return the number of training images up to the last event of a run's journal."""
    return max((event["images"] for event, _ in journal.read(folder)), default=0)


def collect(plan: SweepPlan, runs: Path) -> Results:
    """Read the results of all runs that have ended; `runs` is the parent of the run folders."""
    results = {trial.name: read(runs / trial.name) for trial in plan.trials}
    return Results(plan, {name: result for name, result in results.items() if result})


def _last_metrics(folder: Path, status: Status, num_classes: int) -> dict[str, float]:
    """Return the last evaluation and the median speed; the worst values of a diverged run."""
    last: dict[str, float] = {}
    speeds: list[float] = []
    for event, _ in journal.read(folder):
        if event["name"] == "collapse":
            last = event["values"]
        elif event["name"] == "metrics":
            speeds.append(event["values"]["speed/images_per_s"])
    values = {name: last.get(f"collapse/{name}") for name in (*RANKED, *SHOWN)}
    if status == "diverged":
        # The KL of all samples in one mode, if the classes are about equally frequent.
        values |= _WORST | {"kl_corrected": math.log(num_classes) if num_classes else None}
    values["images_per_s"] = float(np.median(speeds)) if speeds else None
    return {k: v for k, v in values.items() if v is not None and math.isfinite(v)}
