"""Read the source text's HDF5 file in place, at the speed of shards: one dataset for each image.

HDF5 is asked once where each image lies, and the answers are kept in a small file. After that the
pixels are plain memory, as in ``reader``.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from ganray.data.format import Annotations, publish
from ganray.data.sources.listing import patiently
from ganray.data.sources.source_text import list_images, open_group, open_image, split_of
from ganray.errors import UserError


class SourceTextReader:
    """An uncompressed file of the source text as one array of images to gather batches from.

    Offers what ``ShardedDataset`` does, without the copy on disk. The file may lie in a folder that is
    read-only. Do not change it while a reader is open: memory that has lost its file raises SIGBUS.
    May be used from several threads, survives a fork, and is pickled by its path.

    Args:
        path: The HDF5 file; its images must be neither compressed nor chunked.
        cache_folder: Where the index is kept, 16 bytes an image; made where missing. The first
            opening of a file takes 0.3 ms for each image of it.

    Raises:
        ValueError: The file is damaged, laid out in another way or compressed, or the cache folder
            cannot be written.
    """

    def __init__(self, path: Path, cache_folder: Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self.cache_folder = Path(cache_folder).expanduser().absolute()
        index = _cached_index(self.path, self.cache_folder)
        self.image_shape = index.image_shape
        """(218, 178, 3), or what the first image has"""
        self.ids = index.ids
        """int64 (N,) the numbers in the datasets' names, rising"""
        self.labels = np.full(len(index.ids), -1)
        """int64 (N,) -1, as there are no classes"""
        self.attributes = np.zeros((len(index.ids), 0), np.uint8)
        """uint8 (N, 0), as there are none"""
        self.split = split_of(index.ids)
        """uint8 (N,) 0 train, 2 test: as ``SourceTextHDF5`` says"""
        self.shard_rows = len(index.ids)
        """It is one file"""
        self.counts_replaced, self.replaced = False, 0
        """It has no digests, so no image is known to be damaged"""
        self.class_names: tuple[str, ...] = ()
        self.attribute_names: tuple[str, ...] = ()
        self._offsets = index.offsets
        with self.path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), index.file_bytes, access=mmap.ACCESS_READ)
        self._file = np.frombuffer(memory, np.uint8)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path: the other process maps the file itself, and finds the index made."""
        return SourceTextReader, (self.path, self.cache_folder)

    def read_batch(self, ids: NDArray[np.int64], out: torch.Tensor) -> None:
        """Copy the images at ``ids`` into ``out``.

        Args:
            ids: int64 (n,) in ``[0, len(self))``: rows, and not the numbers in the names.
            out: Contiguous uint8 (n, H, W, C) on the CPU; pinned or not.

        Raises:
            ValueError: ``out`` has another shape or type, or an id is out of range.
        """
        shape = (len(ids), *self.image_shape)
        if out.dtype != torch.uint8 or out.shape != shape or not out.is_contiguous():
            raise UserError(
                f"out is {out.dtype} {tuple(out.shape)}; it must be contiguous uint8 {shape}"
            )
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self):
            raise UserError(f"ids reach from {ids.min()} to {ids.max()}; there are {len(self)}")
        size = math.prod(self.image_shape)
        rows = out.numpy().reshape(len(ids), size)
        for row, start in zip(rows, self._offsets[ids].tolist(), strict=True):
            row[:] = self._file[start : start + size]

    def annotations(self, ids: NDArray[np.int64]) -> Annotations:
        """Return what is known of the images at ``ids``, (n,): nothing but their numbers."""
        return Annotations(self.labels[ids], self.attributes[ids], self.ids[ids], self.split[ids])

    def fingerprint(self) -> str:
        """Return 16 hex digits: of where the images are, and of the bytes of 64 of them."""
        some = np.linspace(0, len(self) - 1, 64).astype(int)
        parts = [np.array(self.image_shape), self.ids, self._offsets]
        size = math.prod(self.image_shape)
        parts += [self._file[start : start + size] for start in self._offsets[some]]
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]

    def prefetch(self, rows: Iterable[range]) -> None:
        """Nothing is to be fetched: the file stands on this node."""

    def close(self) -> None:
        """Nothing is to be closed: memory goes with the last array that uses it."""


@dataclass(frozen=True)
class _Index:
    """Where the images of a file are."""

    image_shape: tuple[int, int, int]
    ids: NDArray[np.int64]
    """(N,)"""
    offsets: NDArray[np.int64]
    """(N,) byte of the file at which each image begins."""
    file_bytes: int

    def is_sound(self) -> bool:
        """Return whether no image reaches out of the file: that would be a SIGBUS, or nonsense."""
        last = self.file_bytes - math.prod(self.image_shape)
        return (
            self.ids.dtype == self.offsets.dtype == np.int64
            and len(self.image_shape) == 3
            and min(self.image_shape) > 0
            and self.ids.ndim == 1
            and self.ids.shape == self.offsets.shape
            and len(self.ids) > 0
            and 0 <= int(self.offsets.min()) <= int(self.offsets.max()) <= last
        )

    def save(self, path: Path) -> None:
        """Write it, whole or not at all, though other processes may do the same just now."""
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        with part.open("wb") as file:
            np.savez(file, image_shape=self.image_shape, ids=self.ids, offsets=self.offsets)
        publish(part, path)

    @classmethod
    def load(cls, path: Path, file_bytes: int) -> Self | None:
        """Read it; None where it is missing or damaged, as it can be made again."""
        try:
            # Opened here, as numpy would leave it open where it is damaged.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                height, width, channels = arrays["image_shape"].tolist()
                index = cls((height, width, channels), arrays["ids"], arrays["offsets"], file_bytes)
                return index if index.is_sound() else None
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None


def _cached_index(path: Path, cache_folder: Path) -> _Index:
    """Return the index of a file, made now where this file was not seen before."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the HDF5 file of the source text")
    stat = path.stat()
    key = hashlib.sha256(os.fsencode(path) + f"\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
    cache = cache_folder / f"source-text-{key.hexdigest()[:32]}.npz"
    index = _Index.load(cache, stat.st_size)
    if index is None:
        index = _make_index(path, stat.st_size)
        try:
            cache_folder.mkdir(parents=True, exist_ok=True)
            index.save(cache)
        except OSError as error:
            raise UserError(
                f"{cache_folder}: the index of {path} cannot be kept there ({error}); give a "
                "cache folder that can be written"
            ) from error
    return index


def _make_index(path: Path, file_bytes: int) -> _Index:
    """Ask HDF5 where each image is; no HDF5 object outlives this."""
    with open_group(path) as group:
        names, ids = list_images(group, path)
        shape = open_image(group, names[0], path).shape
        offsets = np.empty(len(names), np.int64)
        for row, name in enumerate(patiently(names, f"index of {path}", "images")):
            offsets[row] = _offset(open_image(group, name, path, shape), name, path)
    index = _Index(shape, ids, offsets, file_bytes)
    if not index.is_sound():
        row = int(offsets.argmax())
        raise UserError(
            f"{path}: {names[row]} begins at byte {offsets[row]} of {file_bytes} and reaches past "
            "the end; the file was cut short, make or fetch it again"
        )
    return index


def _offset(dataset: h5py.h5d.DatasetID, name: str, path: Path) -> int:
    """Return the byte of the file at which an image begins."""
    start = dataset.get_offset()
    if start is None:
        raise UserError(
            f"{path}: {name} is compressed, chunked or without pixels of its own, so it cannot be "
            f"read in place; convert it by `python jobs/shard.py source-text {path}`"
        )
    return start
