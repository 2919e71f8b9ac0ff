"""MLflow: send the journals of runs as they grow, from one thread, and keep trying.

A slow or dead server never delays training: journals keep everything, and what MLflow missed is
sent when it is back, or by the next driver of the same run or sweep.
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
from mlflow.entities import Metric
from PIL import Image

from ganray.errors import UserError
from ganray.files import read_json, write_atomic
from ganray.integrations.mlflow_runs import MLFLOW_ERRORS, Run, StoreError, end_run, first_line
from ganray.log import redact
from ganray.training import journal

logger = logging.getLogger(__name__)
T = TypeVar("T")

COLLAPSE_WARNING_TAG = "ganray.collapse_warning"
"""Tag with the last collapse warning of a run."""
_RETRIED = (*MLFLOW_ERRORS, StoreError)
"""Errors after which a request is repeated."""
_BOOKMARK_FILE = "mlflow-sent.json"
_BATCH_SIZE = 500
"""Metrics per request, about; MLflow's limit is 1,000."""
_MAX_WAIT_S = 60.0
_PROGRESS_S = 5.0
"""Interval of lines while the job only waits for MLflow."""
_START_S = 15.0
"""Time for which a run waits for MLflow before it trains, to have its URL from the start."""
_FAILED_S = 10.0
"""Time that MLflow has at the end of a job that failed."""
_KILL_GRACE_S = 1.0
"""Wait for a request that is under way when the job is killed. SIGKILL follows after 3 s."""


class JournalSync:
    """Thread that sends the journals of one or many runs to MLflow while a block runs.

    At the end of the block the rest is sent. `follow` and `finish` return at once and never raise.

    Args:
        uri: Store.
        folder: Folder that contains all results, for messages.
        end: Function that sets the status of the runs: FINISHED, FAILED or KILLED.
        patience_s: Time that MLflow has in all once there is nothing else to do.
        poll_s: Interval at which journals are read.
    """

    def __init__(
        self,
        uri: str,
        folder: Path,
        end: Callable[[str], None],
        patience_s: float = 60.0,
        poll_s: float = 2.0,
    ) -> None:
        self._uri, self._folder, self._end, self._poll_s = uri, folder, end, poll_s
        self._patience_s, self._deadline = patience_s, math.inf
        self._journals: dict[str, _Journal] = {}
        self._lock = threading.Lock()  # of _journals and their fields that callers set
        self._sending = threading.Lock()
        self._stop = threading.Event()
        self._warned = False
        self.has_given_up = False
        """Whether MLflow lacks data, because it was unreachable at the end."""
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Send the rest; the final status follows from how the block ends."""
        if kind is None:
            self._close("FINISHED")
        elif issubclass(kind, KeyboardInterrupt | SystemExit):  # or SIGTERM from `ray job stop`
            self._close("KILLED")
        else:
            self._close("FAILED")

    def follow(self, name: str, open_run: Callable[[], Run]) -> None:
        """Send a run's journal from now on. `open_run` creates the MLflow run, in the thread."""
        with self._lock:
            entry = self._journals.setdefault(name, _Journal(open_run))
            entry.open_run, entry.finish = open_run, None

    def finish(self, name: str, finish: Callable[[Run], None]) -> None:
        """Send the rest of a journal, which no longer changes, then call `finish` in the thread."""
        with self._lock:
            if name in self._journals:
                self._journals[name].finish = finish

    def unfinished(self) -> list[Run]:
        """Return the MLflow runs that are followed and not finished."""
        with self._lock:
            entries = list(self._journals.values())
        return [entry.run for entry in entries if entry.run and not entry.finish]

    def send(self) -> None:
        """Send what is new, once.

        Raises:
            MlflowException, OSError, StoreError: MLflow is unreachable; the next call continues.
        """
        with self._sending:
            for name, entry in list(self._journals.items()):
                if self._stop.is_set() and threading.current_thread() is self._thread:
                    return  # the end of the block needs the lock
                try:
                    finish = entry.send()
                except _RETRIED:
                    with self._lock:  # so that the next attempt begins with another run
                        self._journals[name] = self._journals.pop(name)
                    raise
                with self._lock:
                    if finish is not None and entry.finish is finish:
                        del self._journals[name]
                    elif finish is not None:  # followed again meanwhile
                        entry.run = None

    def send_once(self, timeout_s: float) -> None:
        """Send what is new once, or go on after `timeout_s`, while the thread still sends."""
        with suppress(TimeoutError):
            self._in_time(self._try_send, timeout_s)

    def flush_and_call(self, function: Callable[[], T]) -> T | None:
        """Send everything that is new, then call `function`, which writes to MLflow.

        From the first such call on MLflow has `tracking.patience` seconds in all. If it does not
        answer until then, log that once, return None, and do not try again: the next driver of the
        same run or sweep sends everything.
        """
        limit = f"tracking.patience={self._patience_s:g} s"
        too_late = f" (not done within {limit}; a slow server needs more)"

        def send_and_call() -> T | None:
            while not self._try_send():
                if time.monotonic() > self._deadline:
                    return self._give_up(too_late)
                time.sleep(min(1.0, max(0.0, self._deadline - time.monotonic())))
            return self._call(function)

        if self.has_given_up:
            return None
        self._deadline = min(self._deadline, time.monotonic() + self._patience_s)
        try:
            return self._in_time(send_and_call, self._deadline - time.monotonic())
        except TimeoutError:
            return self._give_up(too_late)

    def _close(self, status: str) -> None:
        """Stop the thread, send the rest and set the final status.

        If the job is killed, there may be no time for the rest, so that the status comes first.
        """
        killed = status == "KILLED"
        self._stop.set()
        self._thread.join(_KILL_GRACE_S if killed else self._patience_s)
        if not killed:
            if status == "FAILED":  # the error of the job is not shown before
                self._patience_s = min(self._patience_s, _FAILED_S)
            self.flush_and_call(lambda: self._end(status))
            return
        with self._lock:  # do not create runs that nobody would end
            self._journals = {k: v for k, v in self._journals.items() if v.run or v.finish}
        with suppress(TimeoutError):
            self._in_time(lambda: self._call(lambda: self._end(status)), self._patience_s)
            if not self.has_given_up:
                self._in_time(self._try_send, self._patience_s)

    def _in_time(self, function: Callable[[], T], timeout_s: float) -> T:
        """Return the result of a call in a thread of its own; it may go on after TimeoutError."""
        future: Future[T] = Future()

        def call() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=call, name="mlflow", daemon=True).start()
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > _PROGRESS_S:
            with suppress(TimeoutError):
                return future.result(_PROGRESS_S)
            logger.info("waiting for MLflow (up to %.0f s)", left - _PROGRESS_S)
        return future.result(max(0.0, left))

    def _call(self, function: Callable[[], T]) -> T | None:
        try:
            return function()
        except _RETRIED as error:
            return self._give_up(f" ({first_line(error)})")

    def _give_up(self, reason: str) -> None:
        with self._lock:
            first, self.has_given_up = not self.has_given_up, True
        if first:
            logger.warning(
                "MLflow at %s is unreachable%s: %s contains all results; the same command sends the"
                " rest",
                self._uri,
                reason,
                self._folder,
            )

    def _run(self) -> None:
        wait = self._poll_s
        while not self._stop.wait(wait):
            wait = self._poll_s if self._try_send() else min(2 * wait, _MAX_WAIT_S)

    def _try_send(self) -> bool:
        try:
            self.send()
        except _RETRIED as error:
            if not self._warned:  # once per outage
                logger.warning("MLflow at %s: %s; trying again", self._uri, first_line(error))
            self._warned = True
            return False
        self._warned = False
        return True


@contextmanager
def sync_run(
    uri: str,
    folder: Path,
    open_run: Callable[[], Run],
    patience_s: float = 60.0,
    poll_s: float = 2.0,
) -> Iterator[JournalSync]:
    """Send the journal of one run while the block runs; see `JournalSync`.

    `open_run` creates the MLflow run: at once if MLflow is reachable, else as soon as it is.
    """

    def end(status: str) -> None:
        for run in sync.unfinished():
            end_run(run, status)

    with JournalSync(uri, folder, end, patience_s, poll_s) as sync:
        sync.follow(folder.name, open_run)
        sync.send_once(_START_S)
        yield sync


class _Journal:
    """A run's journal, and how much of it MLflow has.

    The position is saved beside the journal with the run it belongs to, so that a restarted driver
    continues from there. In another store, in one that was restored from an older copy, or after a
    request whose answer was lost, MLflow is asked for the points and images that it has, and they
    are not sent twice.
    """

    def __init__(self, open_run: Callable[[], Run]) -> None:
        self.open_run = open_run
        self.finish: Callable[[Run], None] | None = None
        self.run: Run | None = None
        self._offset = 0
        self._last: tuple[str, int] | None = None
        """The last point that MLflow has: metric and step."""
        self._known: dict[str, set[int]] = {}

    def send(self) -> Callable[[Run], None] | None:
        """Send what is new; return the `finish` function if it was set and has been called."""
        finish, open_run = self.finish, self.open_run
        if self.run is None:
            self.run = open_run()
            self._offset = self._read_offset(self.run)
        try:
            self._send_events(self.run)
        except _RETRIED:
            self._known = {}  # MLflow may have received the request
            raise
        if finish is not None:
            finish(self.run)
        return finish

    def _send_events(self, run: Run) -> None:
        client, events = run.client(), list(journal.read(run.folder, self._offset))
        points: list[Metric] = []
        for event, offset in events:
            is_image, is_status = "path" in event, "text" in event
            is_new = not (is_status or self._has(run, event))
            if is_new and is_image:
                _send_image(run, event)
            elif is_new:
                points += event_metrics(event)
                if event.get("warning"):
                    client.set_tag(run.run_id, COLLAPSE_WARNING_TAG, event["warning"])
            if (is_new and is_image) or len(points) >= _BATCH_SIZE or offset == events[-1][1]:
                client.log_batch(run.run_id, metrics=points)
                if points:
                    self._last = points[-1].key, points[-1].step
                points, self._offset = [], offset
                mark = json.dumps(_owner(run) | {"offset": offset, "last": self._last})
                with suppress(UserError):  # without it, the next driver asks MLflow what it has
                    write_atomic(run.folder / _BOOKMARK_FILE, mark)

    def _read_offset(self, run: Run) -> int:
        try:
            mark = read_json(run.folder / _BOOKMARK_FILE, "")
            metric, step = mark["last"]
            is_own = mark.items() >= _owner(run).items()
            if not is_own or step not in _steps(run, metric):  # the store may be an older copy
                return 0
            self._last = metric, step
            return int(mark["offset"])
        except (UserError, KeyError, TypeError, ValueError):  # MLflow is asked what it has
            return 0

    def _has(self, run: Run, event: journal.Event) -> bool:
        """Return whether MLflow had the event when one of its kind was first sent from here."""
        kind = event["name"]
        if kind not in self._known:
            self._known[kind] = _sent_steps(run, event)
        return event["images"] in self._known[kind]


def _send_image(run: Run, event: journal.Event) -> None:
    path = run.folder / event["path"]
    try:
        image = np.asarray(Image.open(path))
    except (OSError, SyntaxError, ValueError) as error:
        logger.warning("%s: damaged (%s); not sent to MLflow", path, error)
        return
    run.client().log_image(
        run.run_id, image, key=event["name"], step=event["images"], synchronous=True
    )


def event_metrics(event: journal.Event, model_id: str | None = None) -> list[Metric]:
    """Return the metrics of an event, as those of a logged model if its id is given."""
    timestamp, step = int(event["time"] * 1000), event["images"]
    return [
        Metric(name, value, timestamp, step, model_id=model_id)
        for name, value in event["values"].items()
    ]


def _owner(run: Run) -> dict[str, str]:
    return {"uri": redact(run.uri), "run_id": run.run_id}


def _steps(run: Run, metric: str) -> set[int]:
    return {point.step for point in run.client().get_metric_history(run.run_id, metric)}


def _sent_steps(run: Run, event: journal.Event) -> set[int]:
    """Return the steps at which MLflow has events of this kind."""
    if "values" in event:
        return _steps(run, next(iter(event["values"])))
    # `log_image` sends the thumbnail last.
    name = re.compile(rf"images/{event['name']}\+step\+(\d+)\+.*compressed\.webp")
    files = run.client().list_artifacts(run.run_id, "images")
    return {int(match[1]) for file in files if (match := name.fullmatch(file.path))}
