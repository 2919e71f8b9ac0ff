"""Progress of a long task: a bar on a terminal, a whole line now and then in a job log."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

LINE_EVERY_S = 10.0
LINE = (
    "{desc}: {percentage:3.0f}%  {n_fmt}/{total_fmt}{unit} "
    "[{elapsed}<{remaining}, {rate_noinv_fmt}]"
)


class Progress:
    """Context manager that shows what is done, how far, how fast and how long it will still take.

    Everything goes to standard output: job logs show standard error as if it were trouble. Where
    that is no terminal, a bar redrawn with carriage returns would be one endless line, so whole
    lines are printed instead, at most one every ``LINE_EVERY_S`` seconds, and one at the end.

    Args:
        total: How many units the task has.
        what: What is being done, for example ``"celeba -> shards"``.
        unit: What is counted, for example ``"images"``.
    """

    def __init__(self, total: int, what: str, unit: str) -> None:
        self.total, self.what, self.unit = total, what, unit
        self.done = 0
        self._started = self._last_line = time.monotonic()
        self._bar: tqdm | None = None

    def __enter__(self) -> Self:
        """Start the clock, and the bar where there is a terminal."""
        self._started = self._last_line = time.monotonic()
        if sys.stdout.isatty():
            self._bar = tqdm(
                total=self.total,
                desc=self.what,
                unit=f" {self.unit}",
                unit_scale=True,
                file=sys.stdout,
                dynamic_ncols=True,
            )
        return self

    def add(self, count: int) -> None:
        """Count ``count`` more units as done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._print_line()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last state standing, also when the task failed: it says how far it came."""
        if self._bar is not None:
            self._bar.close()
        else:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        line = tqdm.format_meter(
            n=self.done,
            total=self.total,
            elapsed=self._last_line - self._started,
            prefix=self.what,
            unit=f" {self.unit}",
            unit_scale=True,
            bar_format=LINE,
        )
        print(line, flush=True)
