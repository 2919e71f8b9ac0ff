"""One driver per run: a lock on its folder, which names the driver that holds it."""

from __future__ import annotations

import errno
import getpass
import json
import logging
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ganray.data.storage import open_storage
from ganray.errors import UserError
from ganray.files import cannot_write, read_json, write_atomic
from ganray.training.run_folder import OWNER_FILE

logger = logging.getLogger(__name__)

_LOCK_FILE = ".driver.lock"
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""Errors of file systems without locks, where only the heartbeat excludes another driver."""
HEARTBEAT_S = 10.0
"""Interval at which a driver writes its owner file again, with the time."""
_CLAIM_S = 1.0
"""Time after which a driver looks whether another one has written the same owner file."""
_FORGOTTEN_S = 600.0
"""Age at which an owner file in the storage is certainly that of a killed driver."""


@contextmanager
def lock_folder(folder: Path, url: str | None = None) -> Iterator[None]:
    """Hold the folder of a run or sweep for this driver while the block runs.

    With a storage, at `url`, also against drivers on nodes with other folders, by an owner file
    there.

    The kernel releases the lock when the driver ends, however it ends. Where a file system does not
    lock across hosts, the heartbeat of a driver on another host shows that it is alive.

    Raises:
        UserError: Another driver holds the folder.
    """
    lock = FileLock(folder / _LOCK_FILE, timeout=0, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise _held(folder, _read_owner(folder)) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise cannot_write(folder, error) from error
    owner, stop = folder / OWNER_FILE, threading.Event()
    try:
        _check_heartbeat(folder, lock.is_locked)
        checked_at = _check_stored_owner(folder, url)
        content = {
            "folder": str(folder),
            "user": _user(),
            "host": platform.node(),
            "pid": os.getpid(),
            "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        }
        _claim(folder, content, url, checked_at)
        work = folder, content, url, stop
        thread = threading.Thread(target=_beat, args=work, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with suppress(OSError):
                owner.unlink()
            if (storage := open_storage(url)) is not None:
                with suppress(UserError):
                    if _is_own(storage.read(_stored_owner(folder)), content):
                        storage.delete(_stored_owner(folder))
    finally:
        lock.release()


def _check_heartbeat(folder: Path, is_locked: bool) -> None:
    """Raise UserError if another driver, which the lock cannot exclude, updates the owner file."""
    owner = _read_owner(folder)
    with suppress(OSError):
        path = folder / OWNER_FILE
        before = path.stat().st_mtime_ns
        is_recent = time.time() - before / 1e9 < 6 * HEARTBEAT_S
        is_here = owner.get("host", platform.node()) == platform.node()
        if owner and is_recent and not (is_here and is_locked):
            logger.info(
                "%s was held by a driver on %s; checking for %g s whether that is alive",
                folder,
                owner.get("host"),
                2.5 * HEARTBEAT_S,
            )
            time.sleep(2.5 * HEARTBEAT_S)
            if path.stat().st_mtime_ns != before:
                raise _held(folder, owner)


def _check_stored_owner(folder: Path, url: str | None) -> float:
    """Raise UserError if a driver with another folder updates the owner file in the storage.

    Returns the time when it looked last.
    """
    storage, checked_at = open_storage(url), time.monotonic()
    content = storage.read(_stored_owner(folder)) if storage else None
    if storage is None or content is None:
        return checked_at
    owner = _parse(content)
    is_here = (owner.get("host"), owner.get("folder")) == (platform.node(), str(folder))
    beat = owner.get("beat")
    is_recent = isinstance(beat, float) and time.time() - beat < _FORGOTTEN_S
    if is_here or not is_recent:  # its lock is released, or it was killed long ago
        return checked_at
    logger.info(
        "%s is held by a driver on %s, unless that was killed; checking for %g s",
        f"{storage}/{_stored_owner(folder)}",
        owner.get("host"),
        2.5 * HEARTBEAT_S,
    )
    time.sleep(2.5 * HEARTBEAT_S)
    checked_at = time.monotonic()
    if storage.read(_stored_owner(folder)) not in (content, None):
        raise _held(folder, owner)
    return checked_at


def _stored_owner(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}/{OWNER_FILE}"


def _parse(content: bytes) -> dict[str, object]:
    try:
        owner = json.loads(content)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _held(folder: Path, owner: dict[str, object]) -> UserError:
    known = {"user", "host", "pid", "since"} <= owner.keys()
    who = "{user}@{host}, process {pid}, since {since}".format(**owner) if known else "unknown"
    return UserError(
        f"{folder} is held by another driver ({who}); wait for its end, stop it, or use another"
        " --name"
    )


def _read_owner(folder: Path) -> dict[str, object]:
    try:
        return read_json(folder / OWNER_FILE, "")
    except UserError:
        return {}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        return str(os.getuid())


def _claim(folder: Path, content: dict[str, object], url: str | None, checked_at: float) -> None:
    """Write the owner files; raise UserError if another driver has claimed the folder meanwhile.

    If that took long, the other one may have found its own file before this one replaced it, and
    writes it again with its next heartbeat.
    """
    _write_owner(folder, content, url)
    if (storage := open_storage(url)) is not None:
        wait_s = _CLAIM_S
        if time.monotonic() - checked_at > _CLAIM_S:
            wait_s = 2.5 * HEARTBEAT_S
            logger.info("%s is slow; checking for %g s for another driver", storage, wait_s)
        time.sleep(wait_s)
        found = storage.read(_stored_owner(folder))
        if not _is_own(found, content):
            raise _held(folder, _parse(found or b""))


def _write_owner(folder: Path, content: dict[str, object], url: str | None) -> None:
    text = json.dumps(content | {"beat": time.time()})
    write_atomic(folder / OWNER_FILE, text)
    if (storage := open_storage(url)) is not None:
        storage.write(_stored_owner(folder), text.encode())


def _is_own(found: bytes | None, content: dict[str, object]) -> bool:
    return _parse(found or b"").items() >= content.items()


def _beat(folder: Path, content: dict[str, object], url: str | None, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        with suppress(UserError):
            _write_owner(folder, content, url)
