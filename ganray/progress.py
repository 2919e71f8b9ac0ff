"""Progress of a long task: a bar on a terminal, one log line every few seconds in a job log."""

import logging
import sys
import time
from typing import Self

from tqdm import tqdm

logger = logging.getLogger(__name__)

LOG_INTERVAL_S = 10.0
_MAX_NAME = 40
"""Maximum length of a task's name; a line of a job log has at most 100 columns."""
_FORMAT = (
    "{desc}: {percentage:3.0f}%  {n_fmt}/{total_fmt}{unit} "
    "[{elapsed}<{remaining}, {rate_noinv_fmt}]"
)
_BAR_FORMAT = "{l_bar}{bar}| [{elapsed}<{remaining}, {rate_noinv_fmt}]"
"""Format in a terminal: 80 columns have no room for the counts."""


class Progress:
    """Context manager that shows the progress, speed and remaining time of a task.

    A terminal gets a bar on standard output, because job logs mark standard error as errors. In a
    job log, where a bar's carriage returns would make one endless line, a line is logged at most
    every ``LOG_INTERVAL_S`` seconds and once at the end.

    Args:
        total: Number of units of the task.
        what: Name of the task, for example ``"celeba -> shards"``; shortened to 40 characters.
        unit: Name of the units, for example ``"images"``.
    """

    def __init__(self, total: int, what: str, unit: str) -> None:
        if len(what) > _MAX_NAME:  # the ends of a name or of an address tell most
            what = f"{what[: _MAX_NAME // 2 - 3]}...{what[-_MAX_NAME // 2 :]}"
        self.total, self.what, self.unit = total, what, unit
        self.done = 0
        self._started = self._last_log = time.monotonic()
        self._bar: tqdm | None = None

    def __enter__(self) -> Self:
        """Start the clock, and the bar if standard output is a terminal."""
        self._started = self._last_log = time.monotonic()
        if sys.stdout.isatty():
            self._bar = tqdm(
                total=self.total,
                desc=self.what,
                unit=f" {self.unit}",
                unit_scale=True,
                file=sys.stdout,
                dynamic_ncols=True,
                bar_format=_BAR_FORMAT,
            )
        return self

    def add(self, count: int) -> None:
        """Count ``count`` more units as done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._last_log >= LOG_INTERVAL_S:
            self._log()

    def __exit__(self, *_: object) -> None:
        """Show the final state, also if the task failed."""
        if self._bar is not None:
            self._bar.close()
        else:
            self._log()

    def _log(self) -> None:
        self._last_log = time.monotonic()
        line = tqdm.format_meter(
            n=self.done,
            total=self.total,
            elapsed=self._last_log - self._started,
            prefix=self.what,
            unit=f" {self.unit}",
            unit_scale=True,
            bar_format=_FORMAT,
        )
        logger.info(line)
