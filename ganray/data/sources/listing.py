"""Helpers of sources of many files: folders and zip files, hashes of names, progress."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ganray.errors import UserError
from ganray.progress import Progress

T = TypeVar("T")
logger = logging.getLogger(__name__)

QUIET_S = 5.0
_MAX_LOGGED = 100
_MAX_FILE_BYTES = 2**28
"""Size of a file in a zip from which on it is taken for an attack on the memory."""


class BadImagesError(UserError):
    """Some images of a source cannot be read."""

    def __init__(self, problems: Mapping[int, str]) -> None:
        """Store the reason for each image by its index."""
        self.problems = dict(problems)
        first, count = next(iter(self.problems.values())), len(self.problems)
        more = f" and {count - 1:,} more cannot be read" if count > 1 else ""
        super().__init__(
            f"{first}{more}; replace or remove them, or leave them out: --data.bad_images skip"
            " (jobs/shard.py: --bad_images skip)"
        )

    def log(self) -> None:
        """Log each reason."""
        for problem in list(self.problems.values())[:_MAX_LOGGED]:
            logger.warning(problem)
        if len(self.problems) > _MAX_LOGGED:
            logger.warning(f"... and {len(self.problems) - _MAX_LOGGED:,} more")

    def __reduce__(self) -> tuple[type, tuple[dict[int, str]]]:
        """Pickle the reasons, from which the message follows."""
        return BadImagesError, (self.problems,)


class Tree:
    """The files in a folder or in a zip file, at any depth, without hidden ones.

    Links are followed. What is neither a file nor a folder is left out, as is what macOS leaves
    behind (``__MACOSX``, ``._1.jpg``). A tree can be pickled to other processes: each process opens
    the zip file itself.
    """

    def __init__(self, path: Path) -> None:
        """List the files.

        Raises:
            UserError: It does not exist, is no complete zip file, or has a link that is a loop.
        """
        self.path, self.is_folder = path, path.is_dir()
        self._handle: tuple[int, zipfile.ZipFile] | None = None
        self.names: list[str] = []
        """Path of each file inside the tree, with ``/``, sorted."""
        if self.is_folder:
            self.names = list(_find_files(path))
        elif path.is_file():
            infos = (info for info in self._zip().infolist() if not info.is_dir())
            names = (info.filename for info in infos)
            self.names = sorted(n for n in names if not any(map(_is_hidden, n.split("/"))))
        else:
            raise UserError(f"{printable(path)}: no such folder; give the folder of the images")

    def locate(self, name: str) -> str:
        """Return the path of a file for a message."""
        return printable(self.path / name)

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading."""
        if self.is_folder:
            return (self.path / name).open("rb")
        if self._zip().getinfo(name).file_size > _MAX_FILE_BYTES:
            raise UserError(f"{self.locate(name)}: larger than {_MAX_FILE_BYTES // 2**20} MiB")
        return self._zip().open(name)

    def read(self, name: str) -> bytes:
        """Return the bytes of a file."""
        with self.open(name) as file:
            return file.read()

    def size(self, name: str) -> int:
        """Return the size of a file in bytes, without reading it."""
        if self.is_folder:
            return (self.path / name).stat().st_size
        return self._zip().getinfo(name).file_size

    def stamp(self, name: str) -> str:
        """Return a text that changes if a file does, without reading it: its size, and its CRC."""
        crc = "" if self.is_folder else f" {self._zip().getinfo(name).CRC}"
        return f"{self.size(name)}{crc}"

    def _zip(self) -> zipfile.ZipFile:
        """Return this process's handle; a fork opens its own."""
        if self._handle is None or self._handle[0] != os.getpid():
            try:
                self._handle = os.getpid(), zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError) as error:
                raise UserError(
                    f"{printable(self.path)}: not a complete zip file ({error}); download it again,"
                    " or unpack it if it is another archive"
                ) from error
        return self._handle[1]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the handle: processes that share a file position read wrong bytes."""
        return self.__dict__ | {"_handle": None}


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _find_files(folder: Path, inside: str = "", above: tuple[object, ...] = ()) -> Iterator[str]:
    """Yield the paths of the files of a folder, depth first; `above` identifies its parents."""
    try:
        info = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{printable(folder)}: cannot be listed ({error.strerror})") from error
    above = (*above, (info.st_dev, info.st_ino))
    if len(set(above)) < len(above):
        raise UserError(
            f"{printable(folder)}: a link to a folder that contains it, a loop; remove it"
        )
    for entry in entries:
        if _is_hidden(entry.name):
            continue
        if entry.is_dir():
            yield from _find_files(Path(entry.path), f"{inside}{entry.name}/", above)
        elif entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):
            yield inside + entry.name  # also if it leads nowhere, so that it is not overlooked


def count_suffixes(names: Iterable[str]) -> str:
    """Return how many files there are of each type, such as "3 .txt, 1 without suffix"."""
    counts = Counter(PurePosixPath(name).suffix.lower() or "without suffix" for name in names)
    return ", ".join(f"{count:,} {printable(suffix)}" for suffix, count in counts.most_common(8))


def name_hash(name: str, key: bytes) -> int:
    """Return 64 bits that depend on ``name`` and ``key`` only.

    The hash is of the bytes of the name, which need not be UTF-8.
    """
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8, key=key).digest())


def split_by_name(names: Iterable[object]) -> NDArray[np.uint8]:
    """Return the split of images by their names, uint8 (N,): 2 (test) for a tenth, 0 for others.

    It does not depend on other images, so that no image changes its split when a set grows.
    """
    limit = 2**64 // 10
    return np.array([2 * (name_hash(str(n), b"held out") < limit) for n in names], np.uint8)


def printable(path: Path | str) -> str:
    """Return a path for a message, escaped if it contains line breaks or bytes that are no text."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def iter_with_progress(items: Sequence[T], what: str, unit: str) -> Iterator[T]:
    """Yield the items; log progress once they have taken ``QUIET_S`` seconds."""
    quiet_until = time.monotonic() + QUIET_S
    progress = None
    with contextlib.ExitStack() as stack:
        for done, item in enumerate(items):
            yield item
            if progress is not None:
                progress.add(1)
            elif time.monotonic() > quiet_until:
                progress = stack.enter_context(Progress(len(items), what, unit))
                progress.add(done + 1)
