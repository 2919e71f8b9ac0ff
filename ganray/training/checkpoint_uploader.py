"""Upload of checkpoints to the storage, from a thread of rank 0, while training goes on."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from ganray.data.storage import Storage
from ganray.errors import UserError
from ganray.training.run_storage import (
    BEST_FOLDER,
    checkpoint_name,
    delete_checkpoint,
    stored_checkpoints,
    upload_checkpoint,
)

_SNAPSHOTS = ".uploads"
"""Subfolder of the run folder with links to the files of checkpoints that are to be uploaded."""
_LAST_UPLOAD_S, _RETRY_S = 300.0, 5.0
"""Time for which the upload of the last checkpoint is tried, and the wait between two tries."""


class CheckpointUploader:
    """Uploads the checkpoints of a run, one at a time.

    If they are written faster than they can be uploaded, those between are left out. One that
    cannot be uploaded is announced, and tried again with the next.

    Args:
        storage: Where to.
        run_folder: The run folder, on this node.
        flush: Uploads the events up to now, which a checkpoint must not precede.
        announce: Receiver of a line for the user.
        surplus: Returns those of some checkpoints that are no longer kept beside a newer one.
    """

    def __init__(
        self,
        storage: Storage,
        run_folder: Path,
        flush: Callable[[], None],
        announce: Callable[[str], None],
        surplus: Callable[[Sequence[Path], Path], Sequence[Path]],
    ) -> None:
        self._storage, self._run_folder = storage, run_folder
        self._flush, self._announce, self._surplus = flush, announce, surplus
        self._snapshots = run_folder / _SNAPSHOTS
        shutil.rmtree(self._snapshots, ignore_errors=True)  # of a worker that was killed
        self._lock = threading.Lock()  # of the next field
        self._waiting: dict[bool, Path] = {}
        """The newest snapshot that is not uploaded: of the best state, and of the latest."""
        self._error: UserError | None = None
        self._has_given_up = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._done: Future[None] = Future()
        self._done.set_result(None)

    def add(self, checkpoint: Path) -> None:
        """Upload a checkpoint in the thread; it may be deleted or replaced meanwhile."""
        snapshot = self._snapshots / checkpoint.name / str(time.monotonic_ns())
        snapshot.mkdir(parents=True)
        for path in checkpoint.iterdir():
            os.link(path, snapshot / path.name)
        with self._lock:
            before = self._waiting.get(_is_best(snapshot))
            self._waiting[_is_best(snapshot)] = snapshot
        if before:
            shutil.rmtree(before)
        self._done = self._thread.submit(self._upload_waiting)

    def finish(self) -> None:
        """Wait until all is uploaded.

        Raises:
            UserError: It could not be uploaded for five minutes.
        """
        deadline = time.monotonic() + _LAST_UPLOAD_S
        self._wait_until(deadline)
        while self._waiting:
            if self._error and time.monotonic() > deadline:
                raise self._error
            time.sleep(_RETRY_S)
            self._done = self._thread.submit(self._upload_waiting)
            self._wait_until(deadline)

    def _wait_until(self, deadline: float) -> None:
        try:
            self._done.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError as error:
            self._has_given_up = True
            raise self._error or UserError(
                f"{self._storage}: an upload did not end within {_LAST_UPLOAD_S:g} s; the last"
                f" checkpoint is in {self._run_folder}; check the store and start again"
            ) from error

    def wait(self) -> None:
        """Wait for the uploads under way."""
        self._done.result()

    def close(self) -> None:
        """End the thread after the uploads under way, unless `finish` has given them up."""
        self._thread.shutdown(wait=not self._has_given_up)
        shutil.rmtree(self._snapshots, ignore_errors=True)

    def _upload_waiting(self) -> None:
        for is_best in (True, False):
            with self._lock:
                snapshot = self._waiting.pop(is_best, None)
            if snapshot is None:
                continue
            try:
                self._upload(snapshot)
                self._error = None
            except UserError as error:
                self._error = error
                name = snapshot.parent.name
                self._announce(f"{error}; {name} is not uploaded yet, and training goes on")
                with self._lock:
                    if self._waiting.setdefault(is_best, snapshot) is snapshot:
                        continue
            shutil.rmtree(snapshot)

    def _upload(self, snapshot: Path) -> None:
        checkpoint = self._run_folder / snapshot.parent.name
        self._flush()
        upload_checkpoint(self._storage, snapshot, checkpoint_name(checkpoint))
        if not _is_best(snapshot):
            stored = stored_checkpoints(self._storage, self._run_folder)
            for old in self._surplus(stored, checkpoint):
                with suppress(UserError):  # it is deleted after the next upload
                    delete_checkpoint(self._storage, old)


def _is_best(snapshot: Path) -> bool:
    return snapshot.parent.name == BEST_FOLDER
