"""Shards that stand elsewhere (S3, GCS, HTTP, a network disk) come to a cache on this node's disk.

``remote_source`` reads their bytes, ``remote_cache`` lets the processes of a node share the work
and the room; this file says which shards are wanted, and when.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from ganray.data.format import MANIFEST, Manifest, Shard, publish
from ganray.data.remote_cache import CachedSet, Full, check_files, part_of, try_lock
from ganray.data.remote_source import RemoteFolder
from ganray.errors import UserError
from ganray.progress import Progress

THREADS = 4  # shards that one process stages at once
POLL_S = 0.02
FULL_S = 1.0  # how long staging rests when it finds no room
QUIET_S = 5.0  # nothing is printed of what takes less


class RemoteShards:
    """A set of shards somewhere else, and the folder of this node that its shards come to.

    Credentials and endpoints come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE``,
    ``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS``), as each fsspec package reads them.
    May be used from several threads. Is pickled by its arguments. A forked child makes its own; as
    long as it lives, what its parent held at the fork stays in the cache.

    Args:
        url: The folder that holds ``manifest.json``: anything that fsspec opens.
        cache: A folder on a local disk, which all processes of the node share.
        limit_bytes: What the shards of all sets in ``cache`` may take together; None is what the
            disk holds. Shards that were not fetched for the longest time go first.

    Raises:
        ValueError: There is no such set, no access to it, or no package for its protocol.
    """

    def __init__(self, url: str, cache: Path, *, limit_bytes: int | None = None) -> None:
        self.url, self.cache, self.limit_bytes = url, Path(cache).absolute(), limit_bytes
        self._pid = os.getpid()
        self._stop = threading.Event()
        self._remote = RemoteFolder(url, self._stop)
        data = self._remote.read_small(MANIFEST)
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            self.folder, self.manifest = self._keep_manifest(data)
        except OSError as error:
            raise UserError(
                f"{self.cache}: cannot be the cache ({error.strerror}); choose a folder on a local "
                "disk that this process may write to"
            ) from error
        self._place = CachedSet(self.folder, self._remote, limit_bytes)
        self._changed = threading.Condition()
        """Guards all below."""
        self._pins: dict[int, IO[str]] = {}
        """Locks of the shards that ``fetch`` gave out."""
        self._marks: dict[int, IO[bytes]] = {}
        """Locks of the shards that were staged and not fetched yet."""
        self._wanted: dict[int, None] = {}
        """Shards to stage, in order; those in ``_taken`` are in a thread's hands."""
        self._taken: set[int] = set()
        self._errors: dict[int, Exception] = {}
        """Why staging failed, for the ``fetch`` of that shard to raise."""
        self._threads: list[threading.Thread] = []
        self._full_until = 0.0
        """Until when staging rests, in seconds of the monotonic clock."""
        self._hurry = 0
        """Calls of ``fetch`` that are about to claim a shard; staging lets them go first."""
        self._claiming = False
        """A thread claims a shard; the others wait for it."""
        self._report: _Report | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments: locks and connections stay with their process."""
        return partial(RemoteShards, limit_bytes=self.limit_bytes), (self.url, self.cache)

    def __str__(self) -> str:
        """Return the URL without its password."""
        return str(self._remote)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _keep_manifest(self, data: bytes) -> tuple[Path, Manifest]:
        """Put ``manifest.json`` into the folder of its set, once it is found to be right."""
        with tempfile.TemporaryDirectory(dir=self.cache, prefix=".manifest-") as name:
            new = Path(name)
            (new / MANIFEST).write_bytes(data)
            try:
                manifest = Manifest.read(new)
                check_files(manifest.shards)
            except UserError as error:
                text = str(error).replace(str(new / MANIFEST), MANIFEST)
                raise UserError(f"{self._remote}: {text}") from None
            # Two versions of a set never mix, as the digest of every shard is in the manifest.
            title = re.sub(r"[^\w.-]", "_", str(self._remote).rpartition("/")[2])[:40]
            folder = self.cache / f"{title}-{hashlib.sha256(data).hexdigest()[:16]}"
            folder.mkdir(exist_ok=True)
            if not (folder / MANIFEST).exists():
                publish(new / MANIFEST, folder / MANIFEST)
        return folder, manifest

    def fetch(self, number: int) -> Path:
        """Return where shard ``number`` stands, whole and verified; wait until it does.

        It is not removed before ``release(number)``, ``close()`` or the end of the process. A
        shard fetched twice is released at once.

        Raises:
            ValueError: The shard cannot be had, or there is no room for it.
            RuntimeError: ``close`` was called, or this is a forked child.
        """
        self._check_usable()
        shard = self._shard(number)
        path = self.folder / shard.name
        with self._changed:
            if number in self._pins:
                return path
        report = None if self._place.has(shard) else self._start_report([number])
        try:
            while (pin := self._claim_now(number)) is None or not self._place.complete(shard, pin):
                time.sleep(POLL_S)
        finally:
            if report is not None:
                report.stop()
        with self._changed:
            if self._pins.setdefault(number, pin) is not pin:
                pin.close()  # another thread of this process was faster
            self._wanted.pop(number, None)
            if (mark := self._marks.pop(number, None)) is not None:
                mark.close()
        return path

    def release(self, number: int) -> None:
        """Let shard ``number`` be removed when room is needed; it stays until then."""
        with self._changed:
            if (pin := self._pins.pop(number, None)) is not None:
                pin.close()
            self._full_until = 0.0
            self._changed.notify_all()

    def stage(self, numbers: Iterable[int]) -> None:
        """Begin to fetch these in the background, in this order, behind those staged before.

        Ranks of one node that stage the same shards share the work. Where the cache is full of
        shards that are still to be fetched or read, staging waits. An error ends it, and is raised
        by ``fetch`` of that shard.
        """
        self._check_usable()
        numbers = [number for number in numbers if self._shard(number)]
        with self._changed:
            new = [n for n in numbers if n not in self._pins and n not in self._marks]
            self._wanted |= dict.fromkeys(new)
            for number in new:
                self._errors.pop(number, None)
            if new and self._report is None:
                self._report = self._start_report(list(self._wanted))
            while len(self._threads) < min(THREADS, len(self._wanted)):
                self._threads.append(threading.Thread(target=self._stage_some, daemon=True))
                self._threads[-1].start()

    def close(self) -> None:
        """Stop staging and release all shards; waits for requests under way, at most 10 s each."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
            threads = list(self._threads)
        for thread in threads:
            thread.join(10)
        with self._changed:
            self._end_report()
            for lock in (*self._pins.values(), *self._marks.values()):
                lock.close()
            self._pins.clear()
            self._marks.clear()

    def _check_usable(self) -> None:
        if self._stop.is_set():
            raise RuntimeError(f"{self._remote}: closed; make a new RemoteShards")
        if os.getpid() != self._pid:
            raise RuntimeError(f"{self._remote}: made before a fork; make one in this process")

    def _shard(self, number: int) -> Shard:
        if not 0 <= number < len(self.manifest.shards):
            count = len(self.manifest.shards)
            raise UserError(f"{self._remote}: no shard {number}; there are 0 to {count - 1}")
        return self.manifest.shards[number]

    def _claim_now(self, number: int) -> IO[str] | None:
        """Claim a shard before staging claims more: what room there is belongs to this one."""
        with self._changed:
            if (error := self._errors.pop(number, None)) is not None:
                raise error
            self._hurry += 1
            if number not in self._taken:
                self._wanted.pop(number, None)
            self._changed.wait_for(lambda: not self._claiming)
            self._claiming = True
        try:
            return self._place.claim(self.manifest.shards[number], self._in_use)
        finally:
            with self._changed:
                self._hurry -= 1
                self._claiming = False
                self._changed.notify_all()

    def _in_use(self) -> int:
        """Return how many bytes ``fetch`` gave out."""
        with self._changed:
            return sum(self.manifest.shards[number].bytes for number in self._pins)

    def _stage_some(self) -> None:
        """In a thread: bring what no other thread or process is at, until nothing is wanted."""
        busy: set[int] = set()
        while True:
            with self._changed:
                if self._stop.is_set() or not self._wanted:
                    self._threads.remove(threading.current_thread())
                    if not self._threads:
                        self._end_report()
                    return
                rest = self._full_until - time.monotonic()
                free = [n for n in self._wanted if n not in self._taken and n not in busy]
                if rest > 0 or not free:
                    busy.clear()
                # Claimed one by one: the first of them must be the first to get room.
                if rest > 0 or not free or self._hurry or self._claiming:
                    self._changed.wait(max(rest, POLL_S))
                    continue
                number = free[0]
                self._taken.add(number)
                self._claiming = True
            if not self._stage_one(number):
                busy.add(number)

    def _stage_one(self, number: int) -> bool:
        """Bring one shard and mark it as wanted; tell whether no other was at it."""
        shard, mark = self.manifest.shards[number], None
        try:
            try:
                lock = self._place.claim(shard)
            finally:
                with self._changed:
                    self._claiming = False
                    self._changed.notify_all()
            if lock is None or not self._place.complete(shard, lock):
                return False
            with lock:
                mark = (self.folder / shard.name).open("rb")
                try_lock(mark, fcntl.LOCK_SH)  # free: who removes it would hold the other lock
        except Full:
            with self._changed:
                self._full_until = time.monotonic() + FULL_S
                self._end_report()  # from here on it goes as slowly as the shards are used
        except Exception as error:
            with self._changed:
                if number in self._wanted:
                    self._errors[number] = error
                self._wanted.clear()
        finally:
            with self._changed:
                self._taken.discard(number)
                if mark is not None and number in self._wanted:
                    del self._wanted[number]
                    self._marks[number] = mark
                elif mark is not None:  # fetched meanwhile
                    mark.close()
        return True

    def _start_report(self, numbers: list[int]) -> _Report:
        shards = [self.manifest.shards[number] for number in numbers]
        files = {self.folder / shard.name: shard.bytes for shard in shards}
        return _Report(f"{self._remote} -> {self.folder}", files, self.folder / ".progress")

    def _end_report(self) -> None:
        if self._report is not None:
            self._report.stop()
            self._report = None


class _Report:
    """Prints how far these files have come, by any process; one process of a node prints."""

    def __init__(self, what: str, files: dict[Path, int], lock: Path) -> None:
        self._what, self._files, self._lock = what, files, lock
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Print the last line."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        if self._over.wait(QUIET_S):
            return
        with self._lock.open("a") as lock:
            if not try_lock(lock, fcntl.LOCK_EX):
                return
            here = self._here()
            with Progress(sum(self._files.values()) - here, self._what, "B") as progress:
                over = False
                while not over:
                    over = self._over.wait(1.0)
                    before, here = here, max(here, self._here())  # less where room was made
                    progress.add(here - before)

    def _here(self) -> int:
        """Return how many bytes have come."""
        sizes = 0
        for path in self._files:
            for file in (part_of(path), path):
                if file.exists():
                    sizes += file.stat().st_size
                    break
        return sizes
