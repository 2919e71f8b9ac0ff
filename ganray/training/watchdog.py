"""Watchdog: notices that training hangs, names the rank that the others wait for, ends the attempt.

Each rank writes every few seconds to a file in the run folder where it is, and reads where the
others are. A stopped process, a dead network and a stuck disk show alike: the file of a rank is no
longer written, or its phase does not end.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ganray.distributed import rank, world_size
from ganray.errors import UserError
from ganray.files import read_json
from ganray.training.context import WorkerContext
from ganray.training.error_file import append_error
from ganray.training.run_folder import RANKS_FOLDER

logger = logging.getLogger(__name__)

ALLOWANCE = 10
"""Phases that may be long end within this many times `train.hang_timeout`."""
_LONG = {"start", "first step", "sample grid", "evaluation", "checkpoint", "end"}
_MAX_INTERVAL_S = 5.0


@dataclass(frozen=True)
class Position:
    """Position of a rank in training."""

    host: str
    pid: int
    step: int
    phase: str
    phases: int
    """Number of phases that it has entered; the rank that others wait for has the fewest."""
    stack: str
    """Python stack of the training thread."""

    def __str__(self) -> str:
        return f"on {self.host} (process {self.pid}), at step {self.step} in phase {self.phase!r}"


class Watchdog:
    """Watches the ranks from a thread of each. Training calls `enter` at each phase.

    Args:
        timeout_s: Time after which a phase hangs, or a rank whose file is not written is lost.
        context: Receiver of the message; it has the run folder, and says whether the process is to
            be ended.
    """

    def __init__(self, timeout_s: float, context: WorkerContext) -> None:
        self._timeout_s, self._context = timeout_s, context
        self._interval_s = min(_MAX_INTERVAL_S, timeout_s / 10)
        self._thread_id = threading.get_ident()
        self._step, self._phase, self._phases = 0, "start", 0
        self._seen = [_Seen(time.monotonic()) for _ in range(world_size())]
        self._beats, self._reported = 0, False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def enter(self, phase: str, step: int) -> None:
        """Begin a phase of training."""
        self._phase, self._step = phase, step
        self._phases += 1

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._write()
            self._read()
            if not all(seen.is_overdue(self._timeout_s) for seen in self._seen):
                self._reported = False
            elif not self._reported and not self._stop.is_set():
                self._reported = True
                self._report()

    def _write(self) -> None:
        frame = sys._current_frames().get(self._thread_id)
        stack = "".join(traceback.format_stack(frame)) if frame else ""
        position = Position(
            platform.node(), os.getpid(), self._step, self._phase, self._phases, stack
        )
        self._seen[rank()].update(position, self._beats)
        self._beats += 1
        content = json.dumps(asdict(position) | {"beat": self._beats})
        self._context.folder.call(_write_position, rank(), content)

    def _read(self) -> None:
        for other, values in self._context.folder.call(_read_positions, world_size()).items():
            if other != rank():
                with suppress(TypeError, KeyError):  # damaged
                    beat = values.pop("beat")
                    self._seen[other].update(Position(**values), beat)

    def _report(self) -> None:
        """Name the rank that the others wait for, and end this process if it is restarted then."""
        alive = [r for r, seen in enumerate(self._seen) if not seen.is_lost(self._timeout_s)]
        guilty = min(
            range(world_size()),
            key=lambda r: (r in alive, self._seen[r].phases),  # lost ones first
        )
        if rank() == min(alive):
            seen = self._seen[guilty]
            state = "hangs" if guilty in alive else "no longer answers"
            since = f"{seen.since(self._timeout_s):%H:%M:%S}"
            text = f"rank {guilty} of {world_size()} {state} since {since}, {seen}"
            stacks = [
                f"rank {r} {one}\n{one.position.stack if one.position else ''}"
                for r, one in enumerate(self._seen)
            ]
            path = self._context.folder.call(append_error, text, "\n".join(stacks))
            end = "this attempt ends" if self._context.is_supervised else "still waiting"
            self._context.announce(
                f"{text}; {end} (train.hang_timeout={self._timeout_s:g}; all stacks: {path})"
            )
        else:
            time.sleep(4 * self._interval_s)  # the end of a rank would end the one that reports
        if self._context.is_supervised:
            os._exit(1)


def _write_position(folder: Path, rank: int, content: str) -> None:
    path = folder / RANKS_FOLDER / f"{rank}.json"
    part = path.with_suffix(".part")
    with suppress(OSError):  # the others see that it is not written
        path.parent.mkdir(exist_ok=True)
        part.write_text(content)
        part.replace(path)


def _read_positions(folder: Path, count: int) -> dict[int, dict[str, Any]]:
    """Return what the ranks below `count` have written, without damaged files."""
    positions = {}
    for number in range(count):
        with suppress(UserError):
            positions[number] = read_json(folder / RANKS_FOLDER / f"{number}.json", "")
    return positions


class _Seen:
    """Last known position of a rank, and when it changed by the clock of this process."""

    def __init__(self, now: float) -> None:
        self.position: Position | None = None
        self._beat: int | None = None
        self._beat_at = self._phase_at = now

    def update(self, position: Position, beat: int) -> None:
        now = time.monotonic()
        if beat != self._beat:
            self._beat, self._beat_at = beat, now
        if position.phases != self.phases:
            self._phase_at = now
        self.position = position

    @property
    def phases(self) -> int:
        return self.position.phases if self.position else -1

    def is_lost(self, timeout_s: float) -> bool:
        """Return whether the rank has not written its file for that time."""
        return time.monotonic() - self._beat_at > timeout_s

    def is_overdue(self, timeout_s: float) -> bool:
        """Return whether the rank is lost, or its phase lasts too long."""
        phase = self.position.phase if self.position else "start"
        limit = timeout_s * (ALLOWANCE if phase in _LONG else 1)
        return self.is_lost(timeout_s) or time.monotonic() - self._phase_at > limit

    def since(self, timeout_s: float) -> datetime:
        """Return when the phase began, or when a lost rank wrote its file."""
        began = self._beat_at if self.is_lost(timeout_s) else self._phase_at
        return datetime.now() - timedelta(seconds=time.monotonic() - began)

    def __str__(self) -> str:
        return str(self.position or "which never began")
