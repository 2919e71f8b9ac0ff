"""What the runs of a study came to, read from their folders."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ganray.sweeps.design import SweepPlan, Trial
from ganray.training import journal

Status = Literal["waiting", "running", "finished", "diverged", "failed", "stopped"]
"""stopped: by a scheduler, before its end: censored. failed: crashed again and again."""
_FILE = "result.json"

RANKED = {
    "recall": "higher",
    "coverage": "higher",
    "vendi_share": "higher",
    "kl_corrected": "lower",
}
"""What settings are ranked by, and which way is better. Never precision, density or modes: a
collapsed generator scores 1 on the first two, and modes are all there long before the variety."""
SHOWN = ("modes_held", "modes", "sure_share", "precision", "half_life_kimg", "images_per_s")
"""Told beside them."""
_WORST = {"recall": 0.0, "coverage": 0.0, "vendi_share": 0.0, "modes_held": 0.0, "modes": 0.0}


@dataclass(frozen=True)
class RunResult:
    """One run's end."""

    status: Status
    values: Mapping[str, float]
    """By the names of ``RANKED`` and ``SHOWN``, those that are known; all finite."""
    reason: str = ""
    """What a run that failed or diverged said."""

    @property
    def scored(self) -> bool:
        """Whether it says how its setting fares: a diverged one does, a crashed one does not."""
        return self.status in ("finished", "diverged")


@dataclass(frozen=True)
class Results:
    """A study with what its runs came to so far."""

    plan: SweepPlan
    by_trial: Mapping[str, RunResult]
    """By the trial's name; those that were begun."""

    def get(self, trial: Trial) -> RunResult:
        """Its outcome; waiting where it was not begun."""
        return self.by_trial.get(trial.name, RunResult("waiting", {}))

    def array(self, metric: str) -> np.ndarray:
        """One metric of all runs that count: float64 (axis 1, axis 2, ..., replicates).

        Replicates are in the order of their seeds. nan where there is no such run, or it has no
        such value. A run that diverged has the worst value: it covers nothing.
        """
        axes = self.plan.axes
        places = [{label: i for i, label in enumerate(axis.labels)} for axis in axes]
        seeds = {s: i for i, s in enumerate(sorted({t.rng_seed for t in self.plan.trials}))}
        found = np.full([*(len(axis.levels) for axis in axes), len(seeds)], math.nan)
        for trial in self.plan.trials:
            outcome = self.get(trial)
            if not outcome.scored:
                continue
            where = [place[label] for place, label in zip(places, trial.levels, strict=True)]
            found[(*where, seeds[trial.rng_seed])] = outcome.values.get(metric, math.nan)
        return found

    def count(self, *statuses: Status) -> int:
        """Runs of these statuses."""
        return sum(self.get(trial).status in statuses for trial in self.plan.trials)


def record(folder: Path, status: Status, why: str = "", classes: int = 0) -> RunResult:
    """Write into a run's folder how it ended, with the last values of its journal; returns both.

    Args:
        folder: of the run.
        status: how it ended.
        why: what it said.
        classes: of the images, for the KL of a run that diverged.
    """
    outcome = RunResult(status, _values(folder, status, classes), why)
    folder.mkdir(parents=True, exist_ok=True)  # the run may have died before it made it
    part = folder / f"{_FILE}.part"
    part.write_text(json.dumps({"status": status, "values": outcome.values, "why": why}))
    os.replace(part, folder / _FILE)
    return outcome


def read(folder: Path) -> RunResult | None:
    """What `record` wrote, or None if the run has not ended."""
    try:
        values = json.loads((folder / _FILE).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return RunResult(values["status"], values["values"], values["why"])


def images_seen(folder: Path) -> int:
    """How far a run's journal goes."""
    return max((event["images"] for event, _ in journal.read(folder)), default=0)


def collect(study: SweepPlan, runs: Path) -> Results:
    """The outcomes of all runs that have ended; `runs` is the folder that holds their folders."""
    found = {trial.name: read(runs / trial.name) for trial in study.trials}
    return Results(study, {name: outcome for name, outcome in found.items() if outcome})


def _values(folder: Path, status: Status, classes: int) -> dict[str, float]:
    """Of the last evaluation, and the median pace; a run that diverged covers nothing."""
    last: dict[str, float] = {}
    paces: list[float] = []
    for event, _ in journal.read(folder):
        if event["name"] == "collapse":
            last = event["values"]
        elif event["name"] == "metrics":
            paces.append(event["values"]["data/images_per_s"])
    named = {name: last.get(f"collapse/{name}") for name in (*RANKED, *SHOWN)}
    if status == "diverged":
        # All in one mode, of classes that are about as frequent.
        named |= _WORST | {"kl_corrected": math.log(classes) if classes else None}
    named["images_per_s"] = float(np.median(paces)) if paces else None
    return {k: v for k, v in named.items() if v is not None and math.isfinite(v)}
