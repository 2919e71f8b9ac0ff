"""Opening HDF5 files that may come from anywhere.

Whatever would make HDF5 read another file is rejected: links, and datasets that are virtual or
stored elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import h5py

from ganray.errors import UserError

_NUM_SAMPLES, _SAMPLE_BYTES = 16_384, 256


def open_file(path: Path, advice: str, cache_bytes: int = 2**20) -> tuple[BinaryIO, h5py.File]:
    """Open a file for reading; the caller closes both.

    `advice` ends the error messages; `cache_bytes` is the size of HDF5's cache of chunks.

    Raises:
        UserError: It is no HDF5 file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; {advice}")
    with contextlib.ExitStack() as stack:
        # HDF5 gets an open file: it would lock a path, which network file systems may refuse, and
        # could not open it at all beside a handle of this process that locks in another way.
        raw = stack.enter_context(path.open("rb"))
        try:
            file = h5py.File(raw, "r", rdcc_nbytes=cache_bytes)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be opened as HDF5 ({one_line(error)}); {advice}"
            ) from error
        stack.pop_all()
    return raw, file


def is_hdf5(path: Path) -> bool:
    """Return whether a file begins as HDF5 files do."""
    with path.open("rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


def is_elsewhere(dataset: h5py.h5d.DatasetID) -> bool:
    """Return whether the data are in another file, which could be any file of this machine."""
    layout = dataset.get_create_plist()
    return bool(layout.get_external_count()) or layout.get_layout() == h5py.h5d.VIRTUAL


def sample_digest(path: Path) -> str:
    """Return a SHA-256 in hex of the file's size and of a sample of its bytes.

    The sample is 256 bytes at each of about 16,384 offsets, 4 MB in all: it detects another set of
    images, but not every change of single images in a file of more than 2 GB.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in range(0, size, max(_SAMPLE_BYTES, size // _NUM_SAMPLES)):
            digest.update(os.pread(file.fileno(), _SAMPLE_BYTES, start))
    return digest.hexdigest()


def one_line(error: Exception) -> str:
    """Return an error's message as one line."""
    return " ".join(str(error).split())
