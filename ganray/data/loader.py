"""Endless batches of images on the device, gathered ahead by one background thread.

There are no worker processes: sending a batch between processes costs 8 to 20 times as much as
gathering it. Images are copied as uint8, which is four times smaller than float32, and are scaled
on the device by ``to_float``.
"""

import itertools
import math
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ganray.data.format import Annotations, Shape
from ganray.data.sampler import DeterministicSampler, rank_slice

# A buffer holds the batches of a few steps, because handing it over has a fixed cost. Larger
# buffers, or more than two, exceed the processor's cache and are slower.
_SLOT_BYTES, _SLOT_STEPS = 6 * 2**20, 8


class ImageDataset(Protocol):
    """Interface between a set of images and the loader."""

    image_shape: Shape
    shard_rows: int
    """Images per shard; the last may have fewer."""
    class_names: tuple[str, ...]
    """Names of the labels; () if there are none."""
    attribute_names: tuple[str, ...]
    """Names of the attributes; () if there are none."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def read_batch(self, ids: NDArray[np.int64], out: torch.Tensor) -> None:
        """Copy the images at ``ids``, (n,), into ``out``, uint8 (n, H, W, C)."""
        ...

    def annotations(self, ids: NDArray[np.int64]) -> Annotations:
        """Return the annotations of the images that ``read_batch`` returns for ``ids``."""
        ...

    def prefetch(self, rows: Iterable[range]) -> None:
        """Start fetching these images in this order, if they are remote."""
        ...

    def close(self) -> None:
        """Stop fetching; no batch is read afterwards."""
        ...


@dataclass
class _Slot:
    """One buffer of the ring, with the batches of a few steps."""

    host: torch.Tensor
    """uint8 (steps, n, H, W, C), pinned if the device is a GPU."""
    batches: torch.Tensor
    """Batches of the consumer: ``host`` itself, or its copy on the device."""
    copied: torch.cuda.Event | None = None
    """Event after which ``batches`` is complete and ``host`` may be overwritten; None on CPU."""


class Loader:
    """Endless iterator over this rank's part of each step's batch, from ``start_step`` on.

    Yields uint8 ``(n, H, W, C)`` tensors in [0, 255] on ``device``, n being this rank's slice of
    ``batch_size``. On the CPU a tensor is valid until the next ``next()``, which reuses its memory;
    on a GPU every batch has memory of its own. Use it as a context manager, or call ``close``.

    Args:
        images: Dataset.
        order: Order in which images are read.
        batch_size: Images per step, summed over ranks.
        rank: Rank of this process.
        world_size: Number of ranks.
        device: Device of the batches.
        start_step: Step of the first batch; a resumed run starts at its next step.
        prefetch: Number of buffers that are filled ahead. A buffer holds the batches of 1 to 8
            steps, as many as fit into 6 MiB.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        images: ImageDataset,
        order: DeterministicSampler,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        start_step: int = 0,
        prefetch: int = 1,
    ) -> None:
        part = rank_slice(batch_size, rank, world_size)
        if batch_size < world_size:
            raise ValueError(
                f"batch_size={batch_size} leaves some of {world_size} ranks without an image; "
                f"use at least {world_size}"
            )
        if prefetch < 1 or start_step < 0:
            raise ValueError(
                f"prefetch={prefetch}, start_step={start_step}: must be at least 1 and 0"
            )
        device = torch.device(device)
        self._free: queue.SimpleQueue[_Slot | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[_Slot | BaseException] = queue.SimpleQueue()
        self._held: _Slot | None = None
        self._next_in_slot = 0
        shape = (part.stop - part.start, *images.image_shape)
        steps = min(max(1, _SLOT_BYTES // math.prod(shape)), _SLOT_STEPS)
        for _ in range(prefetch + 1):  # the consumer holds one more
            pinned = device.type == "cuda"
            host = torch.empty((steps, *shape), dtype=torch.uint8, pin_memory=pinned)
            self._free.put(_Slot(host, host))

        # The thread must not refer to self, or the loader could never be garbage-collected.
        def ids_at(step: int) -> NDArray[np.int64]:
            """Return the ids of the next buffer; prefetch for a new epoch at its start."""
            begin, end = step * batch_size, (step + steps) * batch_size
            if step == start_step or begin // len(images) != end // len(images):
                images.prefetch(order.rows_from(begin))
            steps_ids = (
                order.rank_indices(s, batch_size, rank, world_size)
                for s in range(step, step + steps)
            )
            return np.concatenate(list(steps_ids))

        closed = threading.Event()
        starts = itertools.count(start_step, steps)
        work = images, ids_at, starts, device, self._free, self._ready, closed
        thread = threading.Thread(target=_fill, args=work, name="ganray-loader", daemon=True)
        # Also runs when the loader is garbage-collected and before the interpreter ends, where a
        # thread that is gathering would abort the process.
        self._stop = weakref.finalize(self, _stop, thread, closed, self._free)
        thread.start()

    def __iter__(self) -> Self:
        """Return the loader."""
        return self

    def __next__(self) -> torch.Tensor:
        """Return the next step's uint8 (n, H, W, C), or raise the error of the thread."""
        if not self._stop.alive:
            raise RuntimeError("this Loader is closed; make a new one with start_step")
        if self._held is None or self._next_in_slot == len(self._held.batches):
            self._held = self._take()
            self._next_in_slot = 0
        batch = self._held.batches[self._next_in_slot]
        self._next_in_slot += 1
        return batch

    def _take(self) -> _Slot:
        """Return the used buffer to the ring and wait for the next one."""
        if self._held is not None:
            self._free.put(self._held)
            self._held = None
        slot = self._ready.get()
        if isinstance(slot, BaseException):
            self.close()
            raise slot
        if slot.copied is not None:
            stream = torch.cuda.current_stream(slot.batches.device)
            stream.wait_event(slot.copied)
            # The memory belongs to the thread's stream; without this the allocator could reuse it
            # for a later copy while the consumer's kernels still read it.
            slot.batches.record_stream(stream)
        return slot

    def close(self) -> None:
        """Stop the thread and wait for its end; may be called twice."""
        self._stop()

    def __enter__(self) -> Self:
        """Return the loader."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def _stop(
    thread: threading.Thread, closed: threading.Event, free: queue.SimpleQueue[_Slot | None]
) -> None:
    closed.set()
    free.put(None)  # wakes a thread that waits for a free buffer
    thread.join()


def _fill(
    images: ImageDataset,
    ids_at: Callable[[int], NDArray[np.int64]],
    starts: Iterator[int],
    device: torch.device,
    free: queue.SimpleQueue[_Slot | None],
    ready: queue.SimpleQueue[_Slot | BaseException],
    closed: threading.Event,
) -> None:
    """Gather the next steps into free buffers; runs in the thread."""
    try:
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        for step in starts:
            slot = free.get()
            if slot is None or closed.is_set():
                return
            if slot.copied is not None:
                slot.copied.synchronize()
            images.read_batch(ids_at(step), slot.host.flatten(0, 1))
            if stream is not None:
                with torch.cuda.stream(stream):
                    slot.batches = slot.host.to(device, non_blocking=True)
                    slot.copied = torch.cuda.Event(blocking=True)  # waits without spinning
                    slot.copied.record(stream)
            elif device.type != "cpu":
                slot.batches = slot.host.to(device)
            ready.put(slot)
    except BaseException as error:
        ready.put(error)
