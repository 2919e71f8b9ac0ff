"""Read a set of shards as one memory-mapped array from which batches are gathered.

HDF5 is used once to find where the images are. After that they are plain memory, from which a batch
is copied without HDF5 and without a system call.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ganray.data.format import REPAIR, Annotations, Manifest, Shape
from ganray.data.integrity import BlockVerifier, ShardHeader, open_shard
from ganray.data.mapping import Mapping
from ganray.data.remote import RemoteShards
from ganray.data.transforms import decode_jpegs
from ganray.errors import UserError


class ShardedDataset:
    """A set of shards as one array of images.

    The images stay on disk and in the page cache, which all processes of a machine share. Do not
    change or delete the files while they are open: reading a truncated mapped file raises SIGBUS.
    One thread at a time may read batches, and another annotations. A dataset can be used after a
    fork, and is pickled by its path.

    Args:
        folder: Folder written by ``write_shards``, or remote shards, fetched as needed.
        size: For JPEG shards: side in pixels to resize and crop to; 0 keeps their size.
        threads: Number of threads that copy or decode the images of a batch.
        verify: ``sizes`` compares sizes and structure when a shard is opened, in milliseconds;
            ``first-touch`` also compares the digest of each block of 64 images at its first read.
        side_by_side: Whether to map all shards as one array, so that one call gathers over all of
            them, if the machine can. Otherwise reading is up to half as fast.

    Raises:
        UserError: The set is incomplete, damaged or of another format; names the file.
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
            raise UserError(f"size={size}: {self.folder} contains images of {self.image_shape}")
        self.shard_rows = self.manifest.shards[0].rows
        """Images per shard; the last may have fewer."""
        self.class_names = self.manifest.class_names
        self.attribute_names = self.manifest.attribute_names
        self._specs = self.manifest.shard_specs(self.folder)
        self._first_rows = np.array([spec.first for spec in self._specs])
        self._headers: list[ShardHeader | None] = [None] * len(self._specs)
        """Headers of the open shards."""
        self._mapping = Mapping(self._specs, side_by_side and not self._is_jpeg)
        self._joined: torch.Tensor | None = None
        if self._mapping.joined is not None:
            self._joined = torch.from_numpy(self._mapping.joined).view(-1, *self.image_shape)
        self._verifier = None
        if verify == "first-touch":
            self._verifier = BlockVerifier(self._specs, self._headers, self._mapping)
        self._is_ready = self.remote is None and self._verifier is None
        """Whether images can be read without fetching or verifying them. torch itself rejects an
        index that is out of range, and a check here would cost 3 % at 64x64."""
        self._last_used: dict[int, None] = {}
        """Shards of a remote set, least recently used first."""
        self._in_use: list[int] = []
        """Shards of the images that are being read, which must not be dropped."""
        self._lock = threading.Lock()
        """Held while shards are fetched, verified or dropped, because one thread may read batches
        and another annotations."""
        self._threads, self._pid = threads, os.getpid()
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        if not self.remote:
            for number in range(len(self._specs)):
                self._open(number)

    def __len__(self) -> int:
        """Return the number of images."""
        return self.manifest.num_images

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path: the other process opens the files itself."""
        return partial(ShardedDataset, **self._options), (self.remote or self.folder,)

    def read_batch(self, ids: NDArray[np.int64], out: torch.Tensor) -> None:
        """Copy the images at ``ids`` into ``out``.

        Args:
            ids: int64 (n,) in ``[0, len(self))``.
            out: Contiguous uint8 (n, H, W, C) on the CPU; pinned or not.

        Raises:
            ValueError: ``out`` has another shape or type, or an index is out of range.
            UserError: An image is damaged.
        """
        shape = (len(ids), *self.image_shape)
        if out.dtype != torch.uint8 or out.shape != shape or not out.is_contiguous():
            raise ValueError(
                f"out is {out.dtype} {tuple(out.shape)}; it must be contiguous uint8 {shape}"
            )
        if self._joined is not None and self._is_ready:
            return self._select(self._joined, ids, out)
        with self._lock:
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
        for task in [self._submit(copy, ids[a:b], out[a:b]) for a, b in pairs]:
            task.result()

    def annotations(self, ids: NDArray[np.int64]) -> Annotations:
        """Return the annotations of the images that ``read_batch`` returns for ``ids``.

        Args:
            ids: int64 (n,) in ``[0, len(self))``.
        """
        arrays: dict[str, NDArray[Any]] = {}
        for number, positions in self._by_shard(ids):  # the cache may not have room for all shards
            with self._lock:
                self._prepare(ids[positions])
                header = self._headers[number]
                assert header is not None
                rows = ids[positions] - self._first_rows[number]
                for name in Annotations.__annotations__:
                    part = getattr(header, name)[rows]
                    shape = len(ids), *part.shape[1:]
                    arrays.setdefault(name, np.empty(shape, part.dtype))[positions] = part
        return Annotations(**arrays)

    def prefetch(self, rows: Iterable[range]) -> None:
        """Start fetching these images in this order, if they are remote."""
        if self.remote is None:
            return
        numbers: dict[int, None] = {}
        for part in rows:
            first, last = np.searchsorted(self._first_rows, [part[0], part[-1]], side="right") - 1
            numbers |= dict.fromkeys(range(int(first), int(last) + 1))
        self.remote.stage(n for n in numbers if self._headers[n] is None)

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
            self._in_use = [number for number, _ in self._by_shard(ids)]
            for number in self._in_use:
                self._use_remote(number)

    def _out_of_range(self, ids: NDArray[np.int64]) -> ValueError:
        return ValueError(
            f"ids are from {ids.min()} to {ids.max()}, but there are {len(self)} images"
        )

    def _by_shard(self, ids: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
        """Return the number of each shard with some of ``ids``, and their positions."""
        numbers = np.searchsorted(self._first_rows, ids, side="right") - 1
        return [(int(n), np.flatnonzero(numbers == n)) for n in np.unique(numbers)]

    def _select(self, images: torch.Tensor, ids: NDArray[np.int64], out: torch.Tensor) -> None:
        # torch's threads spin for a while, whereas waking a Python thread takes as long as copying
        # a batch. Their number is a setting of this thread. A forked child has none of these
        # threads, and OpenMP would wait for them forever.
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
        for number, positions in self._by_shard(ids):
            piece = self._mapping.pieces[number]
            assert piece is not None
            images = piece.reshape(-1, *self.image_shape)
            out.numpy()[positions] = images[ids[positions] - self._first_rows[number]]

    def _decode(self, ids: NDArray[np.int64], out: torch.Tensor) -> None:
        numbers = np.searchsorted(self._first_rows, ids, side="right") - 1
        files = []
        for number, row in zip(numbers, ids - self._first_rows[numbers], strict=True):
            piece, header = self._mapping.pieces[number], self._headers[number]
            assert piece is not None
            assert header is not None
            files.append(piece[header.offsets[row] : header.offsets[row + 1]])
        try:
            decode_jpegs(files, self.manifest.image_shape, self._options["size"], out)
        except ValueError as error:
            raise UserError(
                f"{self.folder}: one of the images {ids.tolist()} is no complete JPEG ({error}); "
                f"{REPAIR}"
            ) from None

    def _submit(self, copy: Any, ids: NDArray[np.int64], out: torch.Tensor) -> Any:
        """Copy in a thread of this process; a forked child has none of its parent's threads."""
        if self._pool is None or self._pool[0] != os.getpid():
            self._pool = os.getpid(), ThreadPoolExecutor(self._threads, "ganray-gather")
        return self._pool[1].submit(copy, ids, out)

    def _open(self, number: int) -> None:
        """Validate and map a shard on this machine."""
        header = open_shard(self._specs[number], self.manifest.shards[number])
        self._headers[number] = header
        self._mapping.add(number, header.start)

    def _use_remote(self, number: int) -> None:
        """Fetch and map a shard; drop the least recently used ones if the cache has no room."""
        assert self.remote is not None
        if self._headers[number] is None:
            limit, shards = self.remote.limit_bytes, self.manifest.shards
            for old in [n for n in self._last_used if n not in self._in_use]:
                used = sum(shards[n].bytes for n in (*self._last_used, number))
                if limit is None or used <= limit:
                    break
                self._drop(old)
            self.remote.fetch(number)
            self._open(number)
        self._last_used.pop(number, None)
        self._last_used[number] = None

    def _drop(self, number: int) -> None:
        assert self.remote is not None
        del self._last_used[number]
        self._headers[number] = None
        self._mapping.drop(number)
        self.remote.release(number)
