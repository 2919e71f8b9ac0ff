"""Endless batches of images on the device, gathered ahead by one background thread.

A thread and not worker processes: handing a batch from process to process costs 8 to 20 times what
gathering it does. Images travel as uint8, four times smaller than float32, and are scaled on the
device by ``to_float``.
"""

import itertools
import queue
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from ganray.data.order import rank_sample_ids, rank_slice
from ganray.data.reader import ShardReader


@dataclass
class _Slot:
    """One batch buffer of the ring."""

    host: torch.Tensor
    """uint8 (n, H, W, C), pinned where the device is a GPU."""
    batch: torch.Tensor
    """What the consumer gets: ``host`` itself, or its copy on the device."""
    copied: torch.cuda.Event | None = None
    """Fires when ``batch`` is there and ``host`` may be overwritten; None on the CPU."""


class Loader:
    """Endless iterator over this rank's part of each step's batch, from ``start_step`` on.

    Yields uint8 ``(n, H, W, C)`` tensors in [0, 255] on ``device``, n being this rank's slice of
    ``batch_size``. On the CPU a tensor is valid until the next ``next()``, which reuses its memory;
    on a GPU every batch has memory of its own. Use it as a context manager, or call ``close``.

    Args:
        reader: The images.
        batch_size: Images per step, summed over ranks.
        rng_seed: Together with the step it decides which images are read.
        rank: This process, from 0 on.
        world_size: How many processes share a batch.
        device: Where batches go.
        start_step: The step of the first batch: to resume is to start at the step that is due.
        prefetch: How many batches may wait, ready to be used.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        reader: ShardReader,
        *,
        batch_size: int,
        rng_seed: int,
        rank: int,
        world_size: int,
        device: torch.device | str,
        start_step: int = 0,
        prefetch: int = 3,
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
        for _ in range(prefetch + 1):  # one more is in the consumer's hands
            shape = (part.stop - part.start, *reader.image_shape)
            host = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
            self._free.put(_Slot(host, host))

        # The thread gets what it needs and not self, or the loader could never be collected.
        def ids_at(step: int) -> NDArray[np.int64]:
            return rank_sample_ids(len(reader), rng_seed, step, batch_size, rank, world_size)

        closed = threading.Event()
        work = reader, ids_at, start_step, device, self._free, self._ready, closed
        thread = threading.Thread(target=_fill, args=work, name="ganray-loader", daemon=True)
        # Also runs when the loader is collected and before the interpreter ends, where a thread
        # in the middle of a gather would abort the process.
        self._stop = weakref.finalize(self, _stop, thread, closed, self._free)
        thread.start()

    def __iter__(self) -> Self:
        """Return itself."""
        return self

    def __next__(self) -> torch.Tensor:
        """Return the next step's uint8 (n, H, W, C); raises what went wrong in the thread."""
        if not self._stop.alive:
            raise RuntimeError("this Loader is closed; make a new one with start_step")
        if self._held is not None:
            self._free.put(self._held)
        item = self._ready.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        self._held = item
        if item.copied is not None:
            stream = torch.cuda.current_stream(item.batch.device)
            stream.wait_event(item.copied)
            # The copy's memory belongs to the thread's stream; without this the allocator could
            # give it to a later copy while the consumer's kernels still read it.
            item.batch.record_stream(stream)
        return item.batch

    def close(self) -> None:
        """Stop the thread and wait for its end; may be called twice."""
        self._stop()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def _stop(
    thread: threading.Thread, closed: threading.Event, free: queue.SimpleQueue[_Slot | None]
) -> None:
    closed.set()
    free.put(None)  # wakes a thread that waits for a free buffer
    thread.join()


def _fill(
    reader: ShardReader,
    ids_at: Callable[[int], NDArray[np.int64]],
    start_step: int,
    device: torch.device,
    free: queue.SimpleQueue[_Slot | None],
    ready: queue.SimpleQueue[_Slot | BaseException],
    closed: threading.Event,
) -> None:
    """In the thread: gather step after step into whichever buffer is free."""
    try:
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        for step in itertools.count(start_step):
            slot = free.get()
            if slot is None or closed.is_set():
                return
            if slot.copied is not None:
                slot.copied.synchronize()
            reader.gather(ids_at(step), slot.host)
            if stream is not None:
                with torch.cuda.stream(stream):
                    slot.batch = slot.host.to(device, non_blocking=True)
                    slot.copied = torch.cuda.Event(blocking=True)  # waits without spinning
                    slot.copied.record(stream)
            elif device.type != "cpu":
                slot.batch = slot.host.to(device)
            ready.put(slot)
    except BaseException as error:
        ready.put(error)


def to_float(images: torch.Tensor, low: float = -1.0) -> torch.Tensor:
    """Scale images for a network, on the device they are on.

    Args:
        images: uint8 (B, H, W, C) in [0, 255].
        low: What 0 becomes; 255 becomes 1. Use -1 for a generator that ends in tanh, 0 for sigmoid.

    Returns:
        float32 (B, C, H, W) in [low, 1], in ``channels_last`` memory: (B, H, W, C) seen through
        permuted axes is just that, so nothing is moved, and convolutions like it best.
    """
    # A division, because 255 / 127.5 - 1 is exactly 1 while 255 * (2 / 255) - 1 need not be.
    return images.permute(0, 3, 1, 2).to(torch.float32).div_(255 / (1 - low)).add_(low)
