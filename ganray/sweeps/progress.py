"""Progress of a sweep in the terminal: a line per finished run and, once a minute, a table."""

from __future__ import annotations

import logging
import time
from datetime import timedelta

import numpy as np

from ganray import log
from ganray.sweeps.design import Trial
from ganray.sweeps.results import RANKED, Results, RunResult

_TABLE_EVERY_S = 60.0
_NUM_BEST = 5
logger = logging.getLogger(__name__)


class SweepProgress:
    """Counts of the runs by status, logged as they change.

    Args:
        known: Results of the runs that have ended.
        running: Set that is filled with the names of the runs that train.
    """

    def __init__(self, known: Results, running: set[str]) -> None:
        self.plan = known.plan
        # Failed runs are tried again when a sweep is resumed.
        self._results = {n: r for n, r in known.by_trial.items() if r.status != "failed"}
        self._resumed = len(self._results)
        self._running = running
        self._started = self._table_at = time.monotonic()

    def begin(self, trial: Trial) -> None:
        """Count a run as running."""
        self._running.add(trial.name)

    def retry(self, trial: Trial, reason: str) -> None:
        """Log that a run crashed and continues from its last checkpoint."""
        logger.info("%s  %s: crashed, retrying: %s", self._position(), trial.label, reason)

    def pause(self, reason: str) -> None:
        """Log that all runs wait to be started again."""
        self._running.clear()
        logger.info("%s  %s", self._position(), reason)

    def end(self, trial: Trial, result: RunResult) -> None:
        """Log the result of a run."""
        self._running.discard(trial.name)
        self._results[trial.name] = result
        scores = [f"{m} {log.two_digits(result.values[m])}" for m in RANKED if m in result.values]
        if result.status in ("failed", "diverged"):
            scores = [result.reason]
        status = "" if result.status == "finished" else f"{result.status} "
        start = f"{self._position()}  {trial.label}: {status}"
        counts = range(len(scores), 0, -1)
        lines = [start + "  ".join(scores[:count]) for count in counts] or [start]
        logger.info(log.first_that_fits(*lines).rstrip())
        if time.monotonic() - self._table_at > _TABLE_EVERY_S:
            self._table_at = time.monotonic()
            logger.info(self.table())

    def table(self) -> str:
        """Return counts, the remaining time, and the best settings so far."""
        results = Results(self.plan, self._results)
        total = len(self.plan.trials)
        counts = {s: results.count(s) for s in ("finished", "diverged", "failed", "stopped")}
        counts["running"] = len(self._running)
        counts["left"] = total - len(self._results) - len(self._running)
        always = ("finished", "running", "left")
        shown = ", ".join(f"{n} {s}" for s, n in counts.items() if n or s in always)
        lines = [f"  {total} runs: {shown}; time left about {self._time_left()}"]
        return "\n".join(lines + [f"  {line}" for line in best_settings(results, _NUM_BEST)])

    def _position(self) -> str:
        total = len(self.plan.trials)
        return f"{len(self._results):{len(str(total))}d} / {total} runs, left {self._time_left()}"

    def _time_left(self) -> str:
        """Return the remaining time at the speed since this process started."""
        done = len(self._results) - self._resumed
        if not done:
            return "?"
        seconds_per_run = (time.monotonic() - self._started) / done
        seconds = round(seconds_per_run * (len(self.plan.trials) - len(self._results)))
        return str(timedelta(seconds=seconds))


def best_settings(results: Results, count: int) -> list[str]:
    """Return a line for each of the settings with the highest mean coverage."""
    coverage = results.array("coverage")
    runs = np.isfinite(coverage).sum(-1)
    means = np.nansum(coverage, -1) / np.maximum(runs, 1)
    order = [i for i in np.argsort(-means, axis=None, kind="stable") if runs.flat[i]]
    lines = []
    for index in (np.unravel_index(i, means.shape) for i in order[:count]):
        levels = zip(results.plan.axes, index, strict=True)
        labels = ", ".join(f"{axis.title} {axis.labels[i]}" for axis, i in levels)
        lines.append(f"coverage {means[index]:.3f} (n={runs[index]})  {labels}")
    return lines
