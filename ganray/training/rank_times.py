"""Times of a rank without those in which it waits for others, by which a slow rank is found.

DDP makes every step of every rank as long as that of the slowest one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import fmean
from typing import Any

import torch
from torch import nn

from ganray.distributed import world_size


class RankTimes:
    """Measures how long this rank waits for data and computes, between two log lines.

    The gradients of D's first layer are computed last, and DDP waits for those of other ranks after
    them. So the time from a batch to these gradients is of this rank alone. The update of G is not
    part of it, because it begins when all ranks have the gradients of D.
    """

    def __init__(self, D: nn.Module, device: torch.device) -> None:
        self._has_gpu, self._is_alone = device.type == "cuda", world_size() == 1
        self._waits: list[float] = []
        self._steps: list[tuple[Any, Any]] = []
        """Begin and end of the computation: events of a GPU, which is behind the host, or times."""
        self._begin = self._end = None
        if not self._is_alone:  # otherwise it is in a CUDA graph, and speed/step_ms suffices
            next(D.parameters()).register_post_accumulate_grad_hook(self._note_end)

    def fetch(self, batches: Iterator[torch.Tensor]) -> torch.Tensor:
        """Return the next batch, with which a step begins."""
        self._close_step()
        start = time.perf_counter()
        batch = next(batches)
        self._waits.append(time.perf_counter() - start)
        if not self._is_alone:
            self._begin = self._now()
        return batch

    def update(self) -> dict[str, float]:
        """Return means per step since the last call. The device must have finished its work."""
        self._close_step()
        metrics = {"speed/data_wait_ms": 1000 * fmean(self._waits)}
        if self._steps:
            metrics["speed/D_compute_ms"] = fmean(map(self._milliseconds, self._steps))
        self._waits.clear()
        self._steps.clear()
        return metrics

    def _note_end(self, _: torch.Tensor) -> None:
        self._end = self._now()  # the last part of a batch, if there are several

    def _close_step(self) -> None:
        if self._end is not None:
            self._steps.append((self._begin, self._end))
            self._end = None

    def _now(self) -> Any:
        if not self._has_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _milliseconds(self, step: tuple[Any, Any]) -> float:
        begin, end = step
        return begin.elapsed_time(end) if self._has_gpu else 1000 * (end - begin)
