"""Shards on remote storage (S3, GCS, HTTP, a network disk), cached on a disk of each node.

All processes of a node share the cache without a server between them:

    shard-00000.h5            a complete, verified shard; processes that use it hold a shared flock
    shard-00000.h5.SIZE.part  the bytes received so far; the next download resumes from there
    shard-00000.h5.lock       locked while a process downloads the shard
    <cache>/.lock             locked while a process makes room, never while bytes are received

The kernel drops these locks when a process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Self

from filelock import FileLock, Timeout

from ganray.data.format import MANIFEST, Manifest, Shard
from ganray.data.remote_source import RANGE_BYTES, RemoteFolder, StoppedError
from ganray.errors import UserError
from ganray.files import publish
from ganray.progress import Progress

DOWNLOADS = 4
"""Shards that one process downloads at once."""
POLL_S = 0.05
ROOM_WAIT_S = 30.0  # other processes of the node may be about to release a shard
PREFETCHED_S = 600.0  # for which a prefetched shard is kept before others that were used
QUIET_S = 5.0  # shorter downloads are not logged


class RemoteShards:
    """A set of shards on remote storage, and the folder of this node's cache that they come to.

    Credentials and endpoints come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE``,
    ``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS``), as each fsspec package reads them.
    Threads may share an object. It is pickled by its arguments; a forked process must make its own.

    Args:
        url: Folder that contains ``manifest.json``: anything that fsspec opens.
        cache: Folder on a local disk, shared by all processes of the node.
        limit_bytes: Maximum size of all shards in ``cache``; None: the free space of the disk. The
            least recently used shards are removed first.

    Raises:
        UserError: There is no such set, no access to it, or no package for its protocol.
    """

    def __init__(self, url: str, cache: Path, *, limit_bytes: int | None = None) -> None:
        self.url, self.cache, self.limit_bytes = url, Path(cache).absolute(), limit_bytes
        self._pid = os.getpid()
        self._stop = threading.Event()
        self._source = RemoteFolder(url, self._stop)
        manifest = self._source.read_manifest()
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            self.folder, self.manifest = self._save_manifest(manifest)
        except OSError as error:
            raise UserError(
                f"{self.cache}: cannot be the cache ({error.strerror}); choose a folder on a local"
                " disk that this process may write to"
            ) from error
        self._lock = threading.Lock()  # of the fields below
        self._pins: dict[int, IO[bytes]] = {}
        """Open shards with a shared lock, from `fetch` to `release`."""
        self._requests: dict[int, Future[None]] = {}
        """Shards that were staged and not fetched yet; done once they are in the cache."""
        self._queue: list[int] = []
        """Requests whose download did not start, in order."""
        self._urgent: set[int] = set()
        """Requests that `fetch` waits for."""
        self._active = 0
        """Number of downloads under way."""
        self._dispatcher: threading.Thread | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments: locks and connections belong to their process."""
        return partial(RemoteShards, limit_bytes=self.limit_bytes), (self.url, self.cache)

    def __str__(self) -> str:
        """Return the URL without its password."""
        return str(self._source)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fetch(self, number: int) -> Path:
        """Return the path of a complete and verified shard; download it if necessary.

        It is not removed before ``release(number)``, ``close()`` or the end of the process.

        Raises:
            UserError: The shard cannot be downloaded, or there is no room for it.
            RuntimeError: ``close`` was called, or this is a forked process.
        """
        self._check_usable()
        shard = self.manifest.shards[number]
        while (pin := self._pin(shard)) is None:  # it may be removed before it is pinned
            (request,) = self._request([number], is_urgent=True)
            self._wait_for(request)
            self._drop_request(number)
            request.result()
        self._drop_request(number)
        with self._lock:
            if self._pins.setdefault(number, pin) is not pin:
                pin.close()  # it was fetched before
        return self.folder / shard.name

    def release(self, number: int) -> None:
        """Allow a shard to be removed when room is needed."""
        with self._lock:
            if (pin := self._pins.pop(number, None)) is not None:
                pin.close()

    def stage(self, numbers: Iterable[int]) -> None:
        """Start downloading shards in the background, in this order, after those staged before.

        Processes of a node that stage the same shards share the work. If the cache is full of
        shards that are used or were staged, staging waits. `fetch` of a shard raises its error.
        """
        self._check_usable()
        self._request(numbers, is_urgent=False)

    def close(self) -> None:
        """Stop staging and release all shards; waits at most 10 s for requests under way."""
        self._stop.set()
        deadline = time.monotonic() + 10
        while (self._active or self._dispatcher) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        with self._lock:
            for pin in self._pins.values():
                pin.close()
            self._pins.clear()

    def _check_usable(self) -> None:
        if self._stop.is_set():
            raise RuntimeError(f"{self}: closed; make a new RemoteShards")
        if os.getpid() != self._pid:
            raise RuntimeError(f"{self}: made before a fork; make one in this process")

    def _save_manifest(self, data: bytes) -> tuple[Path, Manifest]:
        """Validate the manifest and save it in the set's folder of the cache."""
        with tempfile.TemporaryDirectory(dir=self.cache, prefix=".manifest-") as name:
            new = Path(name) / MANIFEST
            new.write_bytes(data)
            try:
                manifest = Manifest.read(new.parent)
                _validate(manifest.shards)
            except UserError as error:
                raise UserError(f"{self}: {str(error).replace(str(new), MANIFEST)}") from None
            # Versions of a set never mix, because the manifest contains the digest of each shard.
            title = re.sub(r"[^\w.-]", "_", str(self).rpartition("/")[2])[:40]
            folder = self.cache / f"{title}-{hashlib.sha256(data).hexdigest()[:16]}.remote"
            folder.mkdir(exist_ok=True)
            publish(new, folder / MANIFEST)
        return folder, manifest

    def _pin(self, shard: Shard) -> IO[bytes] | None:
        """Open a complete shard and lock it against removal; None if it is not in the cache."""
        path = self.folder / shard.name
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(path.open("rb"))
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                # A process may have removed the file between these calls.
                is_current = path.stat().st_ino == os.fstat(file.fileno()).st_ino
            except (FileNotFoundError, BlockingIOError):
                return None
            if not is_current or os.fstat(file.fileno()).st_size != shard.bytes:
                return None
            now = time.time_ns()  # os.utime(path) has the resolution of the kernel's timer only
            os.utime(path, ns=(now, now))
            stack.pop_all()
            return file

    def _request(self, numbers: Iterable[int], *, is_urgent: bool) -> list[Future[None]]:
        """Append shards to the queue, unless they are in it, and return their requests."""
        numbers = [number for number in numbers if is_urgent or number not in self._pins]
        with self._lock:
            for number in numbers:
                if number not in self._requests:
                    self._requests[number] = Future()
                    self._queue.append(number)
                if is_urgent:
                    self._urgent.add(number)
            if self._queue and self._dispatcher is None:
                self._dispatcher = threading.Thread(target=self._dispatch, daemon=True)
                self._dispatcher.start()
            return [self._requests[number] for number in numbers]

    def _drop_request(self, number: int) -> None:
        with self._lock:
            self._requests.pop(number, None)
            self._urgent.discard(number)
            if number in self._queue:
                self._queue.remove(number)

    def _wait_for(self, request: Future[None]) -> None:
        """Wait for a request; log the progress if it takes long, in one process of the node."""
        if wait([request], QUIET_S).done:
            return
        with contextlib.suppress(Timeout), FileLock(self.folder / ".progress", timeout=0):
            with self._lock:
                shards = [self.manifest.shards[number] for number in self._requests]
            received = self._received(shards)
            total = sum(shard.bytes for shard in shards) - received
            with Progress(total, f"download {self.folder.name}", "B") as progress:
                is_done = False
                while not is_done:
                    is_done = bool(wait([request], 1.0).done)
                    before, received = received, max(received, self._received(shards))
                    progress.add(received - before)
        wait([request])

    def _received(self, shards: list[Shard]) -> int:
        size = 0
        for path, total in ((self.folder / shard.name, shard.bytes) for shard in shards):
            files = [file for file in (_part(path, total), path) if file.exists()]
            size += files[0].stat().st_size if files else 0
        return size

    def _dispatch(self) -> None:
        """Start a thread for each request, in order, as soon as there is room for its shard."""
        deadline = time.monotonic() + ROOM_WAIT_S
        while not self._stop.is_set():
            with self._lock:
                if not self._queue:
                    self._dispatcher = None
                    return
                queue = sorted(self._queue, key=lambda number: number not in self._urgent)
            try:
                if self._start_first(queue):
                    deadline = time.monotonic() + ROOM_WAIT_S
                    continue
            except NoRoomError as error:
                number, now = error.number, time.monotonic()
                own = sum(self.manifest.shards[pinned].bytes for pinned in list(self._pins))
                if error.is_arriving or number not in self._urgent:
                    deadline = now + ROOM_WAIT_S
                # No other process can make room, as this one uses too many shards at once.
                elif error.missing_bytes > error.other_bytes - own or now > deadline:
                    shortage = self._describe_shortage(self.manifest.shards[number], error, own)
                    self._finish(number, UserError(shortage))
            self._stop.wait(POLL_S)
        with self._lock:
            self._dispatcher = None
            for request in self._requests.values():
                if not request.done():
                    request.set_exception(StoppedError(f"{self}: closed"))

    def _start_first(self, queue: list[int]) -> bool:
        """Start the first download that no other process does; return False if there is none."""
        for number in queue:
            shard, is_urgent = self.manifest.shards[number], number in self._urgent
            if self._active >= DOWNLOADS and not is_urgent:
                return False
            try:
                lock = self._claim(shard, is_urgent)
            except NoRoomError as error:
                error.number = number
                raise  # those behind must not take the room that it waits for
            except Exception as error:
                self._finish(number, error)
                return True
            if lock is not None:
                with self._lock:
                    if number not in self._queue:  # `fetch` has found it meanwhile
                        lock.release()
                        return True
                    self._queue.remove(number)
                    self._active += 1
                download = threading.Thread(
                    target=self._run_download, args=(number, lock, time.time_ns()), daemon=True
                )
                download.start()
                return True
            if self._is_cached(shard):
                self._finish(number)
                return True
        return False

    def _run_download(self, number: int, lock: FileLock, claimed_ns: int) -> None:
        shard, error = self.manifest.shards[number], None
        try:
            self._download(shard, claimed_ns)
        except Exception as caught:
            error = caught
        finally:
            lock.release()
        self._finish(number, error)
        with self._lock:
            self._active -= 1

    def _finish(self, number: int, error: Exception | None = None) -> None:
        with self._lock:
            if number in self._queue:
                self._queue.remove(number)
            request = self._requests.get(number)
            if request is not None and not request.done():
                request.set_exception(error) if error else request.set_result(None)

    def _claim(self, shard: Shard, is_urgent: bool) -> FileLock | None:
        """Lock a shard for download and reserve room for it.

        Returns None if the shard is in the cache or another thread or process downloads it.

        Raises:
            NoRoomError: There is no room now.
        """
        lock = FileLock(self.folder / f"{shard.name}.lock", timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            return None
        try:
            if not self._is_cached(shard):
                reserve(self.folder / shard.name, shard.bytes, self.limit_bytes, is_urgent)
                return lock
        except BaseException:
            lock.release()
            raise
        lock.release()
        return None

    def _is_cached(self, shard: Shard) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / shard.name).stat().st_size == shard.bytes
        return False

    def _download(self, shard: Shard, claimed_ns: int) -> None:
        """Download a shard that was claimed at this time, and verify it."""
        path = self.folder / shard.name
        part, digest = _part(path, shard.bytes), ""
        for _ in range(2):  # the bytes of an earlier process may be damaged: then start from zero
            try:
                digest = self._append(part, shard)
                if digest == shard.sha256:
                    # Unused shards have access time 0 and the order in which they were claimed. The
                    # times are set first, as another process may remove the shard at once.
                    os.utime(part, ns=(0, claimed_ns))
                    publish(part, path)
                    return
                os.truncate(part, 0)
            except OSError as error:  # of the cache's disk; errors of the source are UserError
                raise UserError(
                    f"{part}: cannot be written ({error.strerror}); make room or give rights, or"
                    " choose another cache folder"
                ) from error
        part.unlink()
        raise UserError(
            f"{self}/{shard.name}: downloaded twice with SHA-256 {digest[:12]}..., but its manifest"
            f" has {shard.sha256[:12]}...; it is damaged there, or was replaced: copy it there"
            " again, manifest.json last"
        )

    def _append(self, part: Path, shard: Shard) -> str:
        """Download the bytes that a part lacks; return the SHA-256 of the shard."""
        digest = hashlib.sha256()
        with part.open("ab+") as file:
            if file.tell() > shard.bytes:
                file.truncate(0)
            file.seek(0)
            while data := file.read(RANGE_BYTES):
                digest.update(data)
            for data in self._source.read(shard.name, file.tell(), shard.bytes):
                file.write(data)
                file.flush()  # after a kill the next download resumes here
                digest.update(data)
        return digest.hexdigest()

    def _describe_shortage(self, shard: Shard, error: NoRoomError, own: int) -> str:
        missing = (
            f"{self}/{shard.name}: {_mb(shard.bytes)}, {_mb(error.missing_bytes)} too many for"
        )
        if error.is_over_limit and self.limit_bytes is not None:
            return (
                f"{missing} {self.cache} with its limit of {_mb(self.limit_bytes)} beside the"
                f" shards in use ({_mb(own)} by this process); raise data.cache_gb, or use"
                " data.shuffle=blocks, whose window needs fewer shards at once"
            )
        return (
            f"{missing} the disk of {self.cache} beside the shards in use; make room, or choose a"
            " cache folder on another disk"
        )


@dataclass(eq=False)
class NoRoomError(Exception):
    """There is no room in the cache for a shard now."""

    missing_bytes: int
    other_bytes: int
    """Size of the shards that could not be removed."""
    is_over_limit: bool
    """Whether the limit of the cache is exceeded; otherwise the disk is full."""
    is_arriving: bool
    """Whether another shard is being downloaded, after which there may be room."""
    number: int = -1
    """The shard."""


def reserve(path: Path, size: int, limit: int | None, is_urgent: bool) -> None:
    """Reserve room for a shard; remove shards that nobody uses, the least recently used first.

    The caller holds the shard's lock. The room is reserved as long as the ``.part`` file exists.

    Args:
        path: Path of the shard, ``<cache>/<set>/shard-00000.h5``.
        size: Size of the shard.
        limit: Maximum size of all shards in the cache; None: the free space of the disk.
        is_urgent: Whether to remove prefetched shards as well, the latest first.

    Raises:
        NoRoomError: The shards that remain leave no room.
    """
    cache, part = path.parents[1], _part(path, size)
    with FileLock(cache / ".lock"):
        others = [shard for shard in _cached_shards(cache) if shard.path != path]
        received = part.stat().st_size if part.exists() else 0
        over_limit = 0 if limit is None else size + sum(o.bytes for o in others) - limit
        to_receive = size - received + sum(o.bytes - o.received for o in others)
        over_disk = to_receive - shutil.disk_usage(cache).free
        missing = max(over_limit, over_disk)
        used = sorted((o for o in others if not o.is_prefetched), key=lambda o: o.time)
        prefetched = sorted((o for o in others if o.is_prefetched), key=lambda o: -o.time)
        for shard in used + prefetched * is_urgent:
            if missing > 0 and shard.remove():
                others.remove(shard)
                missing -= shard.bytes
        if missing > 0:
            is_arriving = any(o.received < o.bytes for o in others)
            other_bytes = sum(o.bytes for o in others)
            raise NoRoomError(missing, other_bytes, over_limit >= over_disk, is_arriving)
        part.touch()


class _CachedShard:
    """A shard of any set in the cache, complete or not."""

    def __init__(self, file: Path) -> None:
        status = file.stat()
        self.file, self.received = file, status.st_size
        self.path, self.bytes = file, status.st_size
        """Path and size of the complete shard."""
        self.time = status.st_mtime_ns
        self.is_prefetched = status.st_atime == 0 and time.time() - status.st_mtime < PREFETCHED_S
        if file.suffix == ".part":
            self.path = file.with_name(file.name.split(".h5.")[0] + ".h5")
            self.bytes = int(file.suffixes[-2][1:])

    def remove(self) -> bool:
        """Remove the shard unless a process uses or downloads it; return whether it is gone."""
        if self.file.suffix == ".part":
            # FileNotFoundError: it was completed meanwhile.
            with (
                contextlib.suppress(Timeout, FileNotFoundError),
                FileLock(f"{self.path}.lock", timeout=0),
            ):
                self.file.unlink()
                return True
            return False
        with contextlib.suppress(FileNotFoundError), self.file.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self.file.unlink()
        return True


def _cached_shards(cache: Path) -> list[_CachedShard]:
    """Return the shards of all sets in the cache; a set that a user put there is left alone."""
    shards = {}
    # Parts come first: one that is renamed meanwhile is found under its final name.
    for pattern in ("*.remote/shard-*.h5.*.part", "*.remote/shard-*.h5"):
        for file in cache.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                shard = _CachedShard(file)
                shards[shard.path] = shard
    return list(shards.values())


def _part(path: Path, size: int) -> Path:
    return path.with_name(f"{path.name}.{size}.part")


def _validate(shards: tuple[Shard, ...]) -> None:
    """Reject entries of a manifest, which is foreign, that would write to other files."""
    names = [shard.name for shard in shards]
    if len(set(names)) < len(names):
        raise UserError(f"{MANIFEST} names a shard twice; prepare the set again")
    for shard in shards:
        if shard.bytes < 1:
            raise UserError(f"{MANIFEST}: {shard.name} has bytes={shard.bytes!r}; it must be > 0")
        if not re.fullmatch(r"[0-9a-f]{64}", str(shard.sha256)):
            raise UserError(f"{MANIFEST}: {shard.name} has no SHA-256; prepare the set again")


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
