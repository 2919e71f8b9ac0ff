"""The shards that all processes of a node share: locks on them, and room for new ones.

There is no server between the processes: the kernel's file locks decide who downloads, who waits
and what may be removed, and they end with their process, however that ends. For each shard:

    shard-00000.h5.part               what has come so far; the next download goes on behind it
    shard-00000.h5.lock, exclusive    someone downloads the shard, or removes it
    shard-00000.h5.lock, shared       someone reads the shard: it stays
    shard-00000.h5, shared            someone asked for the shard ahead of time: it goes last
    <cache>/.lock, exclusive          someone makes room; never held while bytes are on their way

The lock files stay: to remove one that another process has just opened would split the lock in two.
Only files that have one are ever removed, so a set that someone prepared here is safe.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ganray.data.format import MANIFEST, Shard, publish
from ganray.data.remote_source import RANGE, RemoteFolder
from ganray.errors import UserError

ROOM_POLL_S = 0.1
ROOM_WAIT_S = 30.0  # other processes of the node may be about to release a shard
ALIVE_S = 60.0  # a download that brought nothing for so long is not waited for


class Full(Exception):
    """There is no room for a shard that is not needed at once."""


class CachedSet:
    """The folder of one set in the cache.

    Args:
        folder: ``<cache>/<set>``; all of ``<cache>`` counts against the limit.
        remote: Where the shards come from.
        limit_bytes: What the shards of all sets may take; None is what the disk holds.
    """

    def __init__(self, folder: Path, remote: RemoteFolder, limit_bytes: int | None) -> None:
        self._folder, self._remote, self._limit = folder, remote, limit_bytes

    def has(self, shard: Shard) -> bool:
        """Tell whether a shard is here; its name alone says that it was verified."""
        try:
            return (self._folder / shard.name).stat().st_size == shard.bytes
        except FileNotFoundError:
            return False

    def claim(self, shard: Shard, in_use: Callable[[], int] | None = None) -> IO[str] | None:
        """Return the lock of a shard, for ``complete``; where it must be downloaded, with room.

        Args:
            shard: One of this set.
            in_use: Says how many bytes this process itself has in use. With it the call waits for
                room, and may take that of shards asked for ahead of time.

        Returns:
            The open lock; None where another thread or process downloads the shard.

        Raises:
            ValueError: There is no room for it, and none is about to come.
            Full: There is no room for it now, and the call does not wait.
            Stopped: The reader is being closed.
        """
        self._remote.check_open()
        lock = lock_of(self._folder / shard.name).open("a+")
        try:
            if try_lock(lock, fcntl.LOCK_SH):
                if self.has(shard):
                    os.utime(self._folder / shard.name)
                    return lock
                if try_lock(lock, fcntl.LOCK_EX):
                    if not self.has(shard):
                        self._make_room(shard, in_use)
                    return lock
        except BaseException:
            lock.close()
            raise
        lock.close()
        return None

    def complete(self, shard: Shard, lock: IO[str]) -> bool:
        """Download a claimed shard unless it is here; then hold its lock shared.

        Returns:
            Whether that went well; if not, another took the lock, which is closed: claim it again.

        Raises:
            ValueError: The shard cannot be had. The lock is closed.
            Stopped: The reader is being closed. The lock is closed.
        """
        try:
            if not self.has(shard):
                self._download(shard)
            # Another may take the lock while its kind changes, and remove the shard.
            if try_lock(lock, fcntl.LOCK_SH) and self.has(shard):
                return True
        except BaseException:
            lock.close()
            raise
        lock.close()
        return False

    def _make_room(self, shard: Shard, in_use: Callable[[], int] | None) -> None:
        """Return once there is room for a shard whose lock is held."""
        path, deadline = self._folder / shard.name, time.monotonic() + ROOM_WAIT_S
        while short := reserve(path, shard.bytes, self._limit, urgent=in_use is not None):
            if in_use is None:
                raise Full
            own, now = in_use(), time.monotonic()
            if short.arriving:
                deadline = now + ROOM_WAIT_S
            # This process cannot release its own shards while it waits here.
            if short.bytes > short.held - own or now > deadline:
                raise UserError(self._no_room(shard, short, own))
            self._remote.check_open()
            time.sleep(ROOM_POLL_S)

    def _no_room(self, shard: Shard, short: Shortage, own: int) -> str:
        """Say it, and the way out."""
        cache = self._folder.parent
        missing = (
            f"{self._remote}/{shard.name}: {_mb(shard.bytes)}, {_mb(short.bytes)} too many for"
        )
        if short.of_limit and self._limit is not None:
            return (
                f"{missing} {cache} with its limit of {_mb(self._limit)} beside the shards in use "
                f"({_mb(own)} by this process); raise data.cache_gb, or use data.shuffle=blocks, "
                "whose window needs fewer shards at once"
            )
        return (
            f"{missing} the disk of {cache} beside the shards in use; make room, or choose a cache "
            "folder on another disk"
        )

    def _download(self, shard: Shard) -> None:
        """Bring a shard here whose lock is held and whose room is reserved."""
        path = self._folder / shard.name
        part = part_of(path)
        claimed, found = part.stat(), ""
        for _ in range(2):  # what an earlier process left may be wrong; the second begins anew
            try:
                found = self._append(part, shard)
                if found == shard.sha256:
                    # Shards go in the order in which they were asked for, not that of arrival.
                    os.utime(part, ns=(claimed.st_atime_ns, claimed.st_mtime_ns))
                    publish(part, path)
                    return
                os.truncate(part, 0)
            except OSError as error:  # of this disk: those of the other side are ValueError
                raise UserError(
                    f"{part}: cannot be written ({error.strerror}); make room or give rights, or "
                    "choose another cache folder"
                ) from error
        part.unlink()
        raise UserError(
            f"{self._remote}/{shard.name}: came twice with SHA-256 {found[:12]}..., but its "
            f"manifest says {shard.sha256[:12]}...; it is damaged there, or was replaced: copy it "
            "there again, manifest.json last"
        )

    def _append(self, part: Path, shard: Shard) -> str:
        """Bring what a part still lacks; return the SHA-256 of the whole."""
        digest = hashlib.sha256()
        with part.open("ab+") as file:
            if file.tell() > shard.bytes:
                file.truncate(0)
            file.seek(0)
            while data := file.read(RANGE):
                digest.update(data)
            for data in self._remote.read(shard.name, file.tell(), shard.bytes):
                file.write(data)
                file.flush()  # after a kill the next download begins here
                digest.update(data)
        return digest.hexdigest()


def check_files(shards: tuple[Shard, ...]) -> None:
    """Raise where a manifest, which comes from elsewhere, would lead astray."""
    names = [shard.name for shard in shards]
    if len(set(names)) < len(names):
        raise UserError(f"{MANIFEST} names a shard twice; prepare the set again")
    for shard in shards:
        # A bool is an int, and so is -1.
        if type(shard.bytes) is not int or shard.bytes < 1:
            raise UserError(f"{MANIFEST}: {shard.name} has bytes={shard.bytes!r}; it must be > 0")
        if not re.fullmatch(r"[0-9a-f]{64}", str(shard.sha256)):
            raise UserError(f"{MANIFEST}: {shard.name} has no SHA-256; prepare the set again")


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def lock_of(path: Path) -> Path:
    """Return the lock file of a shard."""
    return path.with_name(f"{path.name}.lock")


def part_of(path: Path) -> Path:
    """Return the file that a shard is downloaded into."""
    return path.with_name(f"{path.name}.part")


def try_lock(file: IO[Any], kind: int) -> bool:
    """Lock an open file, ``fcntl.LOCK_SH`` or ``LOCK_EX``, unless another open file forbids it.

    On Linux a lock of the other kind that the file holds is given up first, and on failure lost.
    """
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True)
class Shortage:
    """Why there is no room for a shard."""

    bytes: int
    """How much is missing."""
    held: int
    """What the shards that could not be removed take."""
    of_limit: bool
    """Of what the cache may take; otherwise of the disk."""
    arriving: bool
    """Another shard is on its way, so there may be room when it has come."""


def reserve(path: Path, size: int, limit: int | None, *, urgent: bool) -> Shortage | None:
    """Set room aside for a shard; remove shards of the cache that nobody reads, the oldest first.

    The caller holds the shard's lock. The room is reserved as long as the ``.part`` file stands.

    Args:
        path: Where the shard will be, ``<cache>/<set>/shard-00000.h5``.
        size: Bytes of the whole shard.
        limit: Bytes that all shards of the cache may take; None is what the disk holds.
        urgent: Also remove shards that were asked for ahead of time, the last of them first.

    Returns:
        None where there is room now.
    """
    cache, part = path.parents[1], part_of(path)
    with (cache / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        others = [shard for shard in _cached(cache) if shard.path != path]
        here = part.stat().st_size if part.exists() else 0
        to_come = size - here + sum(shard.missing for shard in others)
        over_disk = to_come - shutil.disk_usage(cache).free
        over_limit = 0 if limit is None else size + sum(shard.bytes for shard in others) - limit
        short = max(over_disk, over_limit)
        for heed_marks in (True, False)[: 1 + urgent]:
            for shard in sorted(others, key=lambda shard: shard.used, reverse=not heed_marks):
                if short > 0 and shard.remove(heed_marks=heed_marks):
                    others.remove(shard)
                    short -= shard.bytes
        if short <= 0:
            lock_of(path).write_text(str(size))
            part.touch()
            return None
        recent = time.time() - ALIVE_S
        arriving = any(shard.missing and shard.used > recent for shard in others)
        held = sum(shard.bytes for shard in others)
        return Shortage(short, held, over_limit >= over_disk, arriving)


@dataclass(frozen=True)
class _Cached:
    """A shard of any set of the cache, whole or partly here."""

    path: Path
    bytes: int
    """What it takes when it is whole."""
    missing: int
    """Bytes that are still to come."""
    used: float
    """Time when it was last claimed; while it is on its way, when its last bytes came."""

    def remove(self, *, heed_marks: bool) -> bool:
        """Remove it unless someone uses it; tell whether it is gone."""
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(lock_of(self.path).open("a"))
            if not try_lock(lock, fcntl.LOCK_EX):
                return False
            if heed_marks and self.path.exists():
                shard = stack.enter_context(self.path.open("rb"))
                if not try_lock(shard, fcntl.LOCK_EX):
                    return False
            self.path.unlink(missing_ok=True)
            part_of(self.path).unlink(missing_ok=True)
        return True


def _cached(cache: Path) -> Iterator[_Cached]:
    # Unlike Path.glob this passes over folders that vanish meanwhile, such as a new manifest's.
    for name in glob.iglob(f"{glob.escape(str(cache))}/*/shard-*.h5.lock"):
        lock = Path(name)
        path = lock.with_suffix("")
        # In this order, as another process may give the part its final name between the looks.
        for file in (part_of(path), path):
            with contextlib.suppress(FileNotFoundError):
                found = file.stat()
                whole = found.st_size if file == path else int(lock.read_text() or 0)
                size = max(found.st_size, whole)
                yield _Cached(path, size, size - found.st_size, found.st_mtime)
                break
