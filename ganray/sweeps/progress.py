"""How a study stands, for a terminal: a line for each run that ends, and now and then a table."""

from __future__ import annotations

import time

import numpy as np

from ganray.sweeps.design import SweepPlan, Trial
from ganray.sweeps.results import RANKED, Results, RunResult

_TABLE_EVERY_S = 60.0
_BEST = 5


class SweepProgress:
    """Keeps count, and prints. Nothing it shows is needed for the answer."""

    def __init__(self, study: SweepPlan, known: Results) -> None:
        self._study = study
        # A run that failed is tried again by a study that goes on.
        self._outcomes = {n: o for n, o in known.by_trial.items() if o.status != "failed"}
        self._before = len(self._outcomes)
        self._running: set[str] = set()
        self._started = self._table_at = time.monotonic()

    def grow(self, study: SweepPlan) -> None:
        """Take over the study with runs that a search added."""
        self._study = study

    def begin(self, trial: Trial) -> None:
        """A run begins."""
        self._running.add(trial.name)

    def again(self, trial: Trial, why: str) -> None:
        """A run crashed, and goes on from its last checkpoint: say so."""
        print(f"{self._far()}  {trial.label}: crashed, goes on: {why}", flush=True)

    def halted(self, why: str) -> None:
        """All that run wait to begin again: say so."""
        self._running.clear()
        print(f"{self._far()}  {why}", flush=True)

    def end(self, trial: Trial, outcome: RunResult) -> None:
        """A run is over: say so."""
        self._running.discard(trial.name)
        self._outcomes[trial.name] = outcome
        print(f"{self._far()}  {trial.label}: {_said(outcome)}", flush=True)
        if time.monotonic() - self._table_at > _TABLE_EVERY_S:
            self._table_at = time.monotonic()
            print(self.table(), flush=True)

    def table(self) -> str:
        """How far, how it went, how long to go, and the best cells so far."""
        results = Results(self._study, self._outcomes)
        finished, total = results.count("finished"), len(self._study.trials)
        told = {
            "finished": finished,
            "diverged": results.count("diverged"),
            "failed": results.count("failed"),
            "stopped": results.count("stopped"),
            "running": len(self._running),
            "left": total - len(self._outcomes) - len(self._running),
        }
        always = ("finished", "running", "left")
        counts = ", ".join(f"{n} {what}" for what, n in told.items() if n or what in always)
        lines = [f"  {total} runs: {counts}; time left about {self._left()}"]
        return "\n".join(lines + [f"  {line}" for line in best_so_far(results, _BEST)])

    def _far(self) -> str:
        total = len(self._study.trials)
        width = len(str(total))
        return f"{len(self._outcomes):{width}d} / {total} runs, left {self._left()}"

    def _left(self) -> str:
        """Of the pace since this driver started."""
        done = len(self._outcomes) - self._before
        if not done:
            return "?"
        seconds = (time.monotonic() - self._started) / done
        left = int(seconds * (len(self._study.trials) - len(self._outcomes)))
        return f"{left // 3600}:{left % 3600 // 60:02d}:{left % 60:02d}"


def _said(outcome: RunResult) -> str:
    if outcome.status not in ("finished", "stopped"):
        return f"{outcome.status.upper()} {outcome.reason}".rstrip()
    known = [name for name in RANKED if name in outcome.values]
    scores = "  ".join(f"{name} {outcome.values[name]:.2f}" for name in known)
    return scores if outcome.status == "finished" else f"stopped  {scores}"


def best_so_far(results: Results, count: int) -> list[str]:
    """The cells of highest mean coverage, a line each; as yet without intervals."""
    coverage = results.array("coverage")
    runs = np.isfinite(coverage).sum(-1)
    means = np.nansum(coverage, -1) / np.maximum(runs, 1)
    order = [i for i in np.argsort(-means, axis=None, kind="stable") if runs.flat[i]]
    lines = []
    for place in order[:count]:
        where = np.unravel_index(place, means.shape)
        axes = zip(results.plan.axes, where, strict=True)
        labels = ", ".join(f"{axis.title} {axis.labels[i]}" for axis, i in axes)
        lines.append(f"coverage {means[where]:.3f} (n={runs[where]})  {labels}")
    return lines
