"""Storage behind a URL, through which nodes without a common disk share files."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from ganray.data.remote_source import RemoteFolder
from ganray.errors import UserError
from ganray.files import cannot_write, publish

T = TypeVar("T")

_ATOMIC = {"s3", "gs", "az", "memory"}
"""File systems of fsspec that replace a file at once and have no folders to be created."""
_ANSWER_S, _MIN_BYTES_PER_S = 60.0, 2**17
"""Time that each call may take, plus that of its bytes at this rate. A server that takes no request
would hold it forever: the timeout of s3fs begins when the request has been sent."""


class Storage:
    """Files behind a URL, each complete or absent; names are relative to it, with slashes.

    Credentials and endpoints come from the environment of each process, as for `RemoteShards`. All
    methods try again if the connection fails, and threads may share an object.

    Args:
        url: Folder: anything that fsspec opens and can write to, or a path.

    Raises:
        UserError: The protocol is unknown, or its package is not installed. Methods raise it if the
            connection keeps failing or access is denied.
    """

    def __init__(self, url: str) -> None:
        self._folder = RemoteFolder(url, threading.Event(), "storage")
        self._url = url.rstrip("/")
        self.fs = self._folder.fs
        """The file system, of fsspec."""
        protocols = self._folder.fs.protocol
        names = {protocols} if isinstance(protocols, str) else {*protocols}
        self._is_atomic = not names.isdisjoint(_ATOMIC)

    def __str__(self) -> str:
        """Return the URL without its password."""
        return str(self._folder)

    def check(self) -> None:
        """Raise UserError unless files can be written and replaced."""
        try:
            for content in (b"", b"yes"):
                self.write(".writable", content)
            is_there = self.read(".writable") == b"yes"
        except UserError as error:
            raise UserError(
                f"storage={self}: cannot be written ({error}); create the bucket, or use another"
                " --storage"
            ) from error
        if not is_there:
            raise UserError(f"storage={self}: what is written cannot be read; use another store")

    def url(self, name: str) -> str:
        """Return the URL of a file or folder, with the password, if there is one."""
        return f"{self._url}/{name}"

    def path(self, name: str) -> str:
        """Return the path of a file or folder in the file system."""
        return f"{self._folder.path}/{name}"

    def upload(self, source: Path, name: str) -> None:
        """Upload a file."""

        def put(path: str) -> None:
            self.fs.put_file(str(source), path, **self._limit(source.stat().st_size))

        self._put(name, put)

    def write(self, name: str, content: bytes) -> None:
        """Write a file."""
        limit = self._limit(len(content))
        self._put(name, lambda path: self.fs.pipe_file(path, content, **limit))

    def read(self, name: str) -> bytes | None:
        """Return a file's content; None if it does not exist."""
        return self._call(name, lambda path: self.fs.cat_file(path, **self._limit()), None)

    def download(self, name: str, target: Path) -> bool:
        """Download a file; return False if it does not exist."""
        part = target.with_name(f"{target.name}.{os.getpid()}.part")

        def get(path: str) -> bool:
            self.fs.invalidate_cache()  # which knows the size of an earlier version
            size = self.fs.info(path, **self._limit())["size"]
            self.fs.get_file(path, str(part), **self._limit(size))
            if part.stat().st_size != size:
                raise ConnectionError(f"{part.stat().st_size} of {size} bytes came")
            return True

        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if found := self._call(name, get, False):
                publish(part, target)
            return found
        except OSError as error:
            raise cannot_write(target, error) from error
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the size of each file below a folder, without unfinished ones, by name, sorted."""

        def find(path: str) -> dict[str, Any]:
            self.fs.invalidate_cache()  # other nodes write too
            return self.fs.find(path, detail=True, **self._limit())

        root = self._folder.path.lstrip("/") + "/"
        found = {
            path.lstrip("/").removeprefix(root): info["size"]
            for path, info in self._call(folder, find, {}).items()
        }
        return {name: found[name] for name in sorted(found) if not name.endswith(".part")}

    def delete(self, name: str) -> None:
        """Delete a file, or a folder with all that is in it."""
        self._call(name, lambda path: self.fs.rm(path, recursive=True, **self._limit()), None)

    def _limit(self, size: int = 0) -> dict[str, float]:
        """Return the time limit of a call, which fsspec has for asynchronous file systems."""
        return {"timeout": _ANSWER_S + size / _MIN_BYTES_PER_S} if self.fs.async_impl else {}

    def _put(self, name: str, put: Callable[[str], None]) -> None:
        def replace(_: int) -> None:
            path = self.path(name)
            if self._is_atomic:
                put(path)
                return
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            part = f"{path}.{os.getpid()}-{threading.get_ident()}.part"
            put(part)
            self.fs.mv(part, path)

        self._folder.retry(name, "", replace)

    def _call(self, name: str, call: Callable[[str], T], absent: T) -> T:
        """Return the result of a call with the file's path; `absent` if there is no such file."""

        def try_call(_: int) -> T:
            try:
                return call(self.path(name))
            except FileNotFoundError:
                return absent

        return self._folder.retry(name, "", try_call)


@lru_cache
def open_storage(url: str | None) -> Storage | None:
    """Return the storage at a URL, one object per process; None if there is no URL."""
    return Storage(url) if url else None


def fetch(path: Path, home: Path, url: str | None) -> None:
    """Download a file of the home, if it is not there, but in the storage."""
    storage = open_storage(url)
    if storage and not path.exists():
        storage.download(name_of(path, home), path)


def name_of(path: Path, home: Path) -> str:
    """Return the name that a file or folder of the home has in the storage.

    Raises:
        UserError: It is not in the home.
    """
    if not path.is_relative_to(home):
        raise UserError(f"{path} must lie in the home folder {home} to be shared by --storage")
    return path.relative_to(home).as_posix()
