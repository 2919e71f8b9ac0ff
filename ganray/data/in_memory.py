"""A dataset kept in device memory, so that no step copies from the host."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Self

import numpy as np
import torch

from ganray.data.loader import ImageDataset
from ganray.data.mapping import free_bytes
from ganray.data.sampler import DeterministicSampler, rank_slice
from ganray.data.transforms import upload
from ganray.errors import UserError
from ganray.progress import Progress

_STEPS = 64  # whose indices are sent to the device at once
_CHUNK_BYTES = 64 * 2**20


class InMemoryDataset:
    """Endless iterator over this rank's part of each step's batch, like ``Loader``.

    Yields the same uint8 ``(n, H, W, C)`` tensors as ``Loader``, each valid until the next
    ``next()``. Every rank keeps all images.

    Args:
        images: Dataset, which is copied at once.
        order: Order in which images are read.
        batch_size: Images per step, summed over ranks.
        rank: Rank of this process.
        world_size: Number of ranks.
        device: Device that keeps the images.
        start_step: Step of the first batch.

    Raises:
        UserError: The images do not fit into the memory of the device.
    """

    def __init__(
        self,
        images: ImageDataset,
        order: DeterministicSampler,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        device: torch.device | str,
        start_step: int = 0,
    ) -> None:
        self._images = _copy(images, torch.device(device), quiet=rank > 0)
        part = rank_slice(batch_size, rank, world_size)
        shape = part.stop - part.start, *images.image_shape
        self._batch = torch.empty(shape, dtype=torch.uint8, device=device)
        self._order, self._share = order, (batch_size, rank, world_size)
        self._step = start_step
        self._ids = torch.empty(0, shape[0], dtype=torch.int64, device=device)
        self._first_step = start_step

    def __iter__(self) -> Self:
        """Return the iterator."""
        return self

    def __next__(self) -> torch.Tensor:
        """Return the next step's uint8 (n, H, W, C)."""
        if self._step == self._first_step + len(self._ids):
            steps = range(self._step, self._step + _STEPS)
            ids = np.stack([self._order.rank_indices(step, *self._share) for step in steps])
            self._ids, self._first_step = upload(ids, self._batch.device), self._step
        ids = self._ids[self._step - self._first_step]
        self._step += 1
        return torch.index_select(self._images, 0, ids, out=self._batch)

    def close(self) -> None:
        """Free the memory."""
        self._images = self._images[:0].clone()


def _copy(images: ImageDataset, device: torch.device, *, quiet: bool) -> torch.Tensor:
    """Return all images on ``device``, uint8 (N, H, W, C)."""
    count, image_bytes = len(images), math.prod(images.image_shape)
    need, free = count * image_bytes, _free_bytes(device)
    if need > 0.9 * free:
        raise UserError(
            f"data.residence=device: {count:,} images need {need / 1e9:.1f} GB, but {device} has "
            f"{free / 1e9:.1f} GB free; use data.residence=stream, a smaller data.size or fewer "
            "data.images"
        )
    copy = torch.empty((count, *images.image_shape), dtype=torch.uint8, device=device)
    rows = max(1, _CHUNK_BYTES // image_bytes)
    shape = (min(rows, count), *images.image_shape)
    chunk = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    context = nullcontext() if quiet else Progress(count, f"images -> {device}", "images")
    with context as progress:
        for first in range(0, count, rows):
            ids = np.arange(first, min(first + rows, count))
            images.read_batch(ids, chunk[: len(ids)])
            copy[first : first + len(ids)] = chunk[: len(ids)]
            if progress is not None:
                progress.add(len(ids))
    return copy


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_bytes()
