"""Stop requests: training saves a checkpoint at the end of its step before it stops.

A process that trains itself gets a signal. Workers of Ray get none before they are killed, so their
driver writes a file into the run folder, which rank 0 deletes when the checkpoint is saved.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from ganray.distributed import rank
from ganray.errors import UserError
from ganray.training import journal
from ganray.training.run_folder import RunFolder

logger = logging.getLogger(__name__)

STOP_FILE = "stop"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL_S, _REMOTE_POLL_S = 0.1, 0.5
_WAIT_S, _UPLOAD_WAIT_S = 10.0, 60.0
"""Time for which a driver waits for the checkpoint of its workers, and for its upload; it may be
killed earlier."""

StopRequested = Callable[[], bool]
Wait = Callable[[], None]
"""Function that returns when a checkpoint is saved."""


@contextmanager
def defer_signals() -> Iterator[StopRequested]:
    """Yield a function that returns whether a signal came; raise as it would have, at the end.

    A second signal is raised at once. Does nothing outside of the main thread, which gets none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received: list[int] = []
    previous = {
        number: signal.getsignal(number)
        for number in _SIGNALS
        if signal.getsignal(number) != signal.SIG_IGN
    }

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def receive(number: int, _: FrameType | None) -> None:
        received.append(number)
        restore()
        logger.info(
            "stopping after this step, with a checkpoint; repeat the signal to stop at once"
        )

    for number in previous:
        signal.signal(number, receive)
    try:
        yield lambda: bool(received)
    except Exception:
        if not received:
            raise
        # Another rank stopped first, so that a collective failed here.
    finally:
        restore()
    if received:
        signal.raise_signal(received[0])


@contextmanager
def watch_stop_file(folder: RunFolder) -> Iterator[StopRequested]:
    """Yield a function that returns whether the driver requests a stop; see `request_stop`.

    Only rank 0 learns it.
    """
    if rank() != 0:
        yield lambda: False
        return
    requested, closed = threading.Event(), threading.Event()

    def watch() -> None:
        while not closed.wait(_REMOTE_POLL_S if folder.is_remote else _POLL_S):
            if folder.call(has_stop_file):
                requested.set()
                return

    thread = threading.Thread(target=watch, name="stop file", daemon=True)
    thread.start()
    try:
        yield requested.is_set
    finally:
        closed.set()
        folder.call(_end_training)


def _end_training(folder: Path) -> None:
    journal.add_end(folder)
    delete_stop_file(folder)  # the request came too late


@contextmanager
def confirm_stops(folder: RunFolder, wait: Wait) -> Iterator[None]:
    """Confirm requests while the block runs, which may wait for a driver that waits for this one.

    Args:
        folder: The run folder.
        wait: Waits for the last checkpoint; a ``UserError`` means that there is none.
    """
    closed = threading.Event()

    def confirm() -> None:
        while not closed.wait(_REMOTE_POLL_S if folder.is_remote else _POLL_S):
            if folder.call(has_stop_file):
                with suppress(UserError):
                    wait()
                folder.call(delete_stop_file)

    threading.Thread(target=confirm, name="confirm stops", daemon=True).start()
    try:
        yield
    finally:
        closed.set()


def request_stop(folder: Path) -> None:
    """Ask the workers of a run to save a checkpoint and stop; returns at once."""
    if journal.is_training(folder):
        with suppress(OSError):
            (folder / STOP_FILE).touch()
        if not journal.is_training(folder):  # it ended meanwhile, and would not confirm
            delete_stop_file(folder)


def has_stop_file(folder: Path) -> bool:
    """Return whether a stop was requested, and no checkpoint saved since."""
    return (folder / STOP_FILE).exists()


def confirm_stop(folder: RunFolder) -> None:
    """Tell the driver that the checkpoint is saved, and wait to be killed with it."""
    folder.call(record_stop)
    time.sleep(2 * _UPLOAD_WAIT_S)
    raise RuntimeError("the driver requested a stop, but still runs")


def record_stop(folder: Path) -> None:
    """Record that the checkpoint is saved, so that another request is not waited for."""
    journal.add_stop(folder)
    delete_stop_file(folder)


def delete_stop_file(folder: Path) -> None:
    """Tell who requested the stop that the checkpoint is saved, or withdraw the request."""
    with suppress(OSError):
        (folder / STOP_FILE).unlink()


@contextmanager
def wait_for_checkpoints(
    runs: Path, names: Callable[[], Iterable[str]], has_storage: bool = False
) -> Iterator[None]:
    """Wait until checkpoints are saved if a signal ends the block after `request_stop`.

    Args:
        runs: Parent of the run folders.
        names: Returns the names of the runs that train.
        has_storage: Whether checkpoints are uploaded, which takes longer.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        files = [runs / name / STOP_FILE for name in names()]
        wait_s = _UPLOAD_WAIT_S if has_storage else _WAIT_S
        deadline = time.monotonic() + wait_s
        if any(file.exists() for file in files):
            logger.info("saving a checkpoint (up to %g s; Ctrl-C: without one)", wait_s)
            while any(file.exists() for file in files) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
        for file in files:
            with suppress(OSError):
                file.unlink()
        raise
