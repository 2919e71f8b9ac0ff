"""Read a finished set of shards: as one array in memory that batches are gathered from.

HDF5 is asked once where the pixels are; after that they are plain memory, which a batch is copied
from without HDF5 and without a system call. ``verify_shards`` reads all of it and compares.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ganray.data.shards import (
    PAGE,
    REPAIR,
    Manifest,
    Place,
    Shape,
    Shard,
    damaged_rows,
    describe,
    open_shard,
)
from ganray.progress import Progress


class ShardReader:
    """A set of shards as one array of images that a batch is gathered from.

    The pixels stay on disk and in the page cache, shared by all processes of a machine. Do not
    change or delete the files while a reader is open: memory that has lost its file raises SIGBUS.
    May be used from several threads, survives a fork, and is pickled by its path.

    Args:
        folder: A folder made by ``write_shards``.
        verify: Read every byte and compare its digests first.
        side_by_side: Map all shards as one array, so that one call gathers over all of them, where
            the machine can (Linux with pages of 4 KiB). Otherwise they are mapped one by one and a
            batch visits each: the same bytes, up to half as fast.

    Raises:
        ValueError: The set is incomplete, damaged or not of this format; names the file.
    """

    def __init__(self, folder: Path, *, verify: bool = False, side_by_side: bool = True) -> None:
        self.folder = Path(folder).absolute()
        self.manifest = verify_shards(self.folder) if verify else Manifest.read(self.folder)
        self.image_shape: Shape = self.manifest.image_shape
        places = self.manifest.places(self.folder)
        shards = [
            open_shard(place, shard.bytes)
            for place, shard in zip(places, self.manifest.shards, strict=True)
        ]
        self.attributes = np.concatenate([shard.attributes for shard in shards])
        """uint8 (N, A)"""
        self.ids = np.concatenate([shard.ids for shard in shards])
        """int64 (N,)"""
        self.split = np.concatenate([shard.split for shard in shards])
        """uint8 (N,)"""
        whole_pages = all(place.num_bytes % PAGE == 0 for place in places[:-1])
        can_join = sys.platform == "linux" and mmap.PAGESIZE == PAGE and whole_pages
        self._side_by_side = side_by_side and can_join
        map_images = _map_side_by_side if self._side_by_side else _map_one_by_one
        self._pieces = map_images(places, [shard.offset for shard in shards])
        """Images in uint8 (n, H, W, C) arrays that follow each other"""
        self._firsts = np.cumsum([0, *(len(piece) for piece in self._pieces[:-1])])

    def __len__(self) -> int:
        """Return the number of images."""
        return self.manifest.num_images

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path: the other process opens the files itself."""
        return partial(ShardReader, side_by_side=self._side_by_side), (self.folder,)

    def gather(self, ids: NDArray[np.int64], out: torch.Tensor) -> None:
        """Copy the images at ``ids`` into ``out``.

        Args:
            ids: int64 (n,) in ``[0, len(self))``.
            out: Contiguous uint8 (n, H, W, C) on the CPU; pinned or not.

        Raises:
            ValueError: ``out`` has another shape or type, or an id is out of range.
        """
        shape = (len(ids), *self.image_shape)
        if out.dtype != torch.uint8 or out.shape != shape or not out.is_contiguous():
            raise ValueError(
                f"out is {out.dtype} {tuple(out.shape)}; it must be contiguous uint8 {shape}"
            )
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self):
            raise ValueError(f"ids reach from {ids.min()} to {ids.max()}; there are {len(self)}")
        if len(self._pieces) == 1:
            images = torch.from_numpy(self._pieces[0])
            torch.index_select(images, 0, torch.from_numpy(ids), out=out)
            return
        rows = out.numpy()
        piece_of = np.searchsorted(self._firsts, ids, side="right") - 1
        for row, (piece, index) in enumerate(
            zip(piece_of, ids - self._firsts[piece_of], strict=True)
        ):
            rows[row] = self._pieces[piece][index]


def _map_one_by_one(places: list[Place], offsets: list[int]) -> list[NDArray[np.uint8]]:
    """Map every shard by itself."""
    pieces = []
    for place, offset in zip(places, offsets, strict=True):
        with place.path.open("rb") as file:
            # From the file's start, as an offset must be a multiple of this machine's page size.
            # Copy on write: nothing is written, but torch warns of memory that is read-only.
            size = offset + place.num_bytes
            memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
        pieces.append(_as_images(memory, place, place.rows, offset))
    return pieces


def _map_side_by_side(places: list[Place], offsets: list[int]) -> list[NDArray[np.uint8]]:
    """Map all shards into one reserved range of addresses, as if they were one file."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    prot_none, map_fixed, failed = 0, 0x10, ctypes.c_void_p(-1).value

    def map_at(address: int | None, size: int, prot: int, flags: int, fd: int, offset: int) -> int:
        result = libc.mmap(address, size, prot, flags, fd, offset)
        if result == failed:
            number = ctypes.get_errno()
            raise OSError(number, f"mmap of {size} bytes: {os.strerror(number)}")
        return result

    total = sum(place.num_bytes for place in places)
    base = map_at(None, total, prot_none, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    memory = (ctypes.c_uint8 * total).from_address(base)
    # Lives as long as a tensor needs it. Not undone at exit: a thread may still be gathering then.
    weakref.finalize(memory, libc.munmap, base, total).atexit = False
    address = base
    for place, offset in zip(places, offsets, strict=True):
        with place.path.open("rb") as file:
            flags = mmap.MAP_SHARED | map_fixed
            map_at(address, place.num_bytes, mmap.PROT_READ, flags, file.fileno(), offset)
        address += place.num_bytes
    return [_as_images(memory, places[0], sum(place.rows for place in places), 0)]


def _as_images(memory: Any, place: Place, rows: int, offset: int) -> NDArray[np.uint8]:
    """View mapped bytes as uint8 (rows, H, W, C). Never write to it: that would be a SIGSEGV."""
    count = rows * math.prod(place.image_shape)
    flat = np.frombuffer(memory, np.uint8, count, offset)
    return flat.reshape(rows, *place.image_shape)


def verify_shards(folder: Path) -> Manifest:
    """Read every byte of a set and compare it with its digests.

    Raises:
        ValueError: Something is missing or damaged; names every such shard and its rows.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    places = manifest.places(folder)
    problems = []
    with (
        Progress(manifest.num_images, f"verify {folder}", "images") as progress,
        ThreadPoolExecutor() as pool,  # hashing releases the GIL
    ):
        checks = pool.map(_verify_shard, places, manifest.shards)
        for shard, problem in zip(manifest.shards, checks, strict=True):
            problems += [problem] if problem else []
            progress.add(shard.rows)
    if problems:
        raise ValueError(f"{folder}: {'; '.join(problems)}; {REPAIR}")
    return manifest


def _verify_shard(place: Place, shard: Shard) -> str | None:
    """Say in which rows a shard is damaged, if it is."""
    if place.path.exists() and describe(place.path, place) == shard:
        return None
    try:
        damage = damaged_rows(place)
    except ValueError as error:
        return str(error).removesuffix(f"; {REPAIR}")
    rows = ", ".join(f"{rows.start}-{rows.stop - 1}" for rows in damage)
    return f"{shard.name} is damaged in {f'rows {rows}' if rows else 'its header or labels'}"
