"""Read a finished set of shards as one memory-mapped array that batches are gathered from.

HDF5 is asked once where the pictures are; after that they are plain memory, which a batch is
copied from without HDF5 and without a system call.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ganray.data import jpeg
from ganray.data.format import REPAIR, Annotations, Manifest, Shape, ShardHeader, open_shard
from ganray.data.integrity import BlockVerifier
from ganray.data.mapping import Mapping
from ganray.data.remote import RemoteShards
from ganray.errors import UserError


class ShardedDataset:
    """A set of shards as one array of images that a batch is gathered from.

    The pictures stay on disk and in the page cache, shared by all processes of a machine. Do not
    change or delete the files while a reader is open: memory that has lost its file raises SIGBUS.
    One thread at a time may gather, and another ask for rows. It survives a fork, and is pickled
    by its path.

    Args:
        folder: A folder made by ``write_shards``, or shards that come to this node as needed.
        size: For a set of JPEGs: resize and crop to this many pixels a side; 0 keeps their size.
        threads: How many copy, or decode, the images of one batch.
        verify: ``sizes`` compares sizes and structure when a shard is opened, in milliseconds;
            ``first-touch`` also the digest of every 64 images the first time they are read.
        side_by_side: Map all shards as one array, so that one call gathers over all of them, where
            the machine can. Otherwise a batch visits each: the same bytes, up to half as fast.

    Raises:
        ValueError: The set is incomplete, damaged or not of this format; names the file.
    """

    def __init__(
        self,
        folder: Path | RemoteShards,
        *,
        size: int = 0,
        threads: int = 1,
        verify: Literal["sizes", "first-touch"] = "sizes",
        side_by_side: bool = True,
    ) -> None:
        if isinstance(folder, RemoteShards):
            self.remote, self.folder = folder, folder.folder
        else:
            self.remote, self.folder = None, Path(folder).absolute()
        self._options: dict[str, Any] = {"size": size, "threads": threads, "verify": verify}
        self._options["side_by_side"] = side_by_side
        self.manifest = Manifest.read(self.folder)
        self.image_shape: Shape = self.manifest.image_shape
        self._is_jpeg = self.manifest.recipe.encoding == "jpeg"
        if self._is_jpeg and size:
            self.image_shape = size, size, self.image_shape[2]
        elif size not in (0, self.image_shape[0]):
            raise UserError(f"size={size}: {self.folder} holds images of {self.image_shape}")
        self.shard_rows = self.manifest.shards[0].rows
        """Images of one shard; the last may have fewer."""
        self.class_names = self.manifest.class_names
        self.attribute_names = self.manifest.attribute_names
        self._places = self.manifest.places(self.folder)
        self._first_rows = np.array([place.first for place in self._places])
        self._contents: list[ShardHeader | None] = [None] * len(self._places)
        self._mapping = Mapping(self._places, side_by_side and not self._is_jpeg)
        self._joined: torch.Tensor | None = None
        if self._mapping.joined is not None:
            self._joined = torch.from_numpy(self._mapping.joined).view(-1, *self.image_shape)
        self._verifier = (
            BlockVerifier(self._places, self._mapping) if verify == "first-touch" else None
        )
        self._is_here = self.remote is None and self._verifier is None
        """Nothing is to be fetched or verified before images are read: torch itself
        rejects an id that is out of range, and a check here would cost 3 % at 64x64."""
        self._last_used: dict[int, None] = {}
        """Shards of a remote set, least recently used first."""
        self._in_hand: list[int] = []
        """Shards of the images that are being read, which must not be dropped."""
        self._turn = threading.Lock()
        """Held while shards are fetched, verified or dropped, because annotations are read by
        another thread than the one that gathers batches."""
        self._threads, self._pid = threads, os.getpid()
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        if not self.remote:
            for number in range(len(self._places)):
                self._open(number)

    def __len__(self) -> int:
        """Return the number of images."""
        return self.manifest.num_images

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path: the other process opens the files itself."""
        return _open_again, (self.remote or self.folder, self._options)

    def read_batch(self, ids: NDArray[np.int64], out: torch.Tensor) -> None:
        """Copy the images at ``ids`` into ``out``.

        Args:
            ids: int64 (n,) in ``[0, len(self))``.
            out: Contiguous uint8 (n, H, W, C) on the CPU; pinned or not.

        Raises:
            ValueError: ``out`` has another shape or type, an id is out of range, or there is
                damage.
        """
        shape = (len(ids), *self.image_shape)
        if out.dtype != torch.uint8 or out.shape != shape or not out.is_contiguous():
            raise UserError(
                f"out is {out.dtype} {tuple(out.shape)}; it must be contiguous uint8 {shape}"
            )
        if self._joined is not None and self._is_here:
            return self._select(self._joined, ids, out)
        with self._turn:
            self._read_prepared(ids, out)

    def _read_prepared(self, ids: NDArray[np.int64], out: torch.Tensor) -> None:
        self._prepare(ids)
        if self._verifier:
            self._verifier.verify(ids)
        if self._joined is not None:
            return self._select(self._joined, ids, out)
        copy = self._decode if self._is_jpeg else self._copy
        if self._threads == 1 or len(ids) < 2 * self._threads:
            return copy(ids, out)
        parts = np.linspace(0, len(ids), self._threads + 1).astype(int)
        pairs = itertools.pairwise(parts)
        for done in [self._start(copy, ids[a:b], out[a:b]) for a, b in pairs]:
            done.result()

    def annotations(self, ids: NDArray[np.int64]) -> Annotations:
        """Return the annotations of the images that ``read_batch`` returns for ``ids``.

        Args:
            ids: int64 (n,) in ``[0, len(self))``.
        """
        found: dict[str, NDArray[Any]] = {}
        every = [np.arange(len(ids))]
        if self.remote:  # one shard at a time: their cache may have no room for all of them
            every = [which for _, which in self._by_shard(ids)]
        for asked in every:
            with self._turn:
                self._prepare(ids[asked])
                for number, which in self._by_shard(ids[asked]):
                    contents = self._contents[number]
                    assert contents is not None
                    local = ids[asked][which] - self._first_rows[number]
                    for name in Annotations.__annotations__:
                        part = getattr(contents, name)[local]
                        shape = len(ids), *part.shape[1:]
                        found.setdefault(name, np.empty(shape, part.dtype))[asked[which]] = part
        return Annotations(**found)

    def prefetch(self, rows: Iterable[range]) -> None:
        """Start fetching these images in this order, if they are not on this node."""
        if self.remote is None:
            return
        numbers: dict[int, None] = {}
        for some in rows:
            first, last = np.searchsorted(self._first_rows, [some[0], some[-1]], side="right") - 1
            numbers |= dict.fromkeys(range(int(first), int(last) + 1))
        self.remote.stage(n for n in numbers if self._contents[n] is None)

    def close(self) -> None:
        """Release the shards of a remote set and stop fetching."""
        if self.remote:
            self.remote.close()
        if self._pool:
            self._pool[1].shutdown()
            self._pool = None

    def _prepare(self, ids: NDArray[np.int64]) -> None:
        """Check that ids are in range and fetch their shards."""
        # One comparison for both ends: as unsigned, a negative number is larger than any other.
        if len(ids) and ids.view(np.uint64).max() >= len(self):
            raise self._out_of_range(ids)
        if self.remote:
            self._bring(ids)

    def _out_of_range(self, ids: NDArray[np.int64]) -> ValueError:
        return ValueError(f"ids reach from {ids.min()} to {ids.max()}; there are {len(self)}")

    def _by_shard(self, ids: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
        """Return the number of each shard with some of ``ids``, and their positions."""
        numbers = np.searchsorted(self._first_rows, ids, side="right") - 1
        return [(int(n), np.flatnonzero(numbers == n)) for n in np.unique(numbers)]

    def _select(self, images: torch.Tensor, ids: NDArray[np.int64], out: torch.Tensor) -> None:
        # By torch's own threads: they spin a while for work, where one of Python's would sleep, and
        # to be woken takes as long as to copy a batch. The number is this thread's alone. A forked
        # child has none of them, and OpenMP would wait for them for ever.
        threads = self._threads if os.getpid() == self._pid else 1
        before = torch.get_num_threads()
        if before != threads:
            torch.set_num_threads(threads)
        try:
            torch.index_select(images, 0, torch.from_numpy(ids), out=out)
        except IndexError:
            raise self._out_of_range(ids) from None
        finally:
            if before != threads:
                torch.set_num_threads(before)

    def _copy(self, ids: NDArray[np.int64], out: torch.Tensor) -> None:
        for number, which in self._by_shard(ids):
            piece = self._mapping.pieces[number]
            assert piece is not None
            images = piece.reshape(-1, *self.image_shape)
            out.numpy()[which] = images[ids[which] - self._first_rows[number]]

    def _decode(self, ids: NDArray[np.int64], out: torch.Tensor) -> None:
        numbers = np.searchsorted(self._first_rows, ids, side="right") - 1
        files = []
        for number, local in zip(numbers, ids - self._first_rows[numbers], strict=True):
            piece, contents = self._mapping.pieces[number], self._contents[number]
            assert piece is not None
            assert contents is not None
            files.append(piece[contents.offsets[local] : contents.offsets[local + 1]])
        try:
            jpeg.decode(files, self.manifest.image_shape, self._options["size"], out)
        except ValueError as error:
            raise UserError(
                f"{self.folder}: one of the images {ids.tolist()} is no whole JPEG ({error}); "
                f"{REPAIR}"
            ) from None

    def _start(self, copy: Any, ids: NDArray[np.int64], out: torch.Tensor) -> Any:
        """Copy in a thread of this process; a forked child has none of its parent's threads."""
        if self._pool is None or self._pool[0] != os.getpid():
            self._pool = os.getpid(), ThreadPoolExecutor(self._threads, "ganray-gather")
        return self._pool[1].submit(copy, ids, out)

    def _open(self, number: int) -> None:
        """Validate and map a shard on this machine."""
        contents = open_shard(self._places[number], self.manifest.shards[number].bytes)
        self._contents[number] = contents
        self._mapping.add(number, contents.start)
        if self._verifier:
            self._verifier.add(number, contents)

    def _bring(self, ids: NDArray[np.int64]) -> None:
        """Fetch and map the shards of ``ids``, and drop the least recently used ones for room."""
        assert self.remote is not None
        self._in_hand = np.unique(np.searchsorted(self._first_rows, ids, side="right") - 1).tolist()
        for number in self._in_hand:
            self._bring_one(number)

    def _bring_one(self, number: int) -> None:
        if self._contents[number] is None:
            self._fetch(number)
        self._last_used.pop(number, None)
        self._last_used[number] = None

    def _fetch(self, number: int) -> None:
        assert self.remote is not None
        held, limit = self._held_bytes(), self.remote.limit_bytes
        for old in [n for n in self._last_used if n not in self._in_hand]:
            if limit is None or held + self.manifest.shards[number].bytes <= limit:
                break
            self._drop(old)
            held = self._held_bytes()
        self.remote.fetch(number)
        self._open(number)

    def _held_bytes(self) -> int:
        return sum(self.manifest.shards[number].bytes for number in self._last_used)

    def _drop(self, number: int) -> None:
        assert self.remote is not None
        del self._last_used[number]
        self._contents[number] = None
        self._mapping.drop(number)
        self.remote.release(number)


def _open_again(folder: Path | RemoteShards, options: dict[str, Any]) -> ShardedDataset:
    return ShardedDataset(folder, **options)
