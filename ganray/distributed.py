"""Ranks, the DDP wrap and the one reduction per tick; true without a process group too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


def rank() -> int:
    """This process's number, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Processes that train together, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wrap(objective: nn.Module, device: torch.device) -> nn.Module:
    """Average the gradients of the objective's trainable parameters over all ranks.

    Parameters that are frozen now are left out for good: neither reduced nor sent. In a world
    of one the objective is returned as it is. Buffers are not sent: they must follow from what is
    alike on all ranks.
    """
    if world_size() == 1:
        return objective
    ids = [device.index] if device.type == "cuda" else None
    wrapped = DistributedDataParallel(objective, device_ids=ids, gradient_as_bucket_view=True)
    wrapped.broadcast_buffers = False  # set here, as the argument's name depends on the version
    return wrapped


def from_leader(value: T) -> T:
    """Collective: rank 0's value, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


class Means:
    """Means of per-image statistics over all steps and ranks since the last ``sync``.

    Sums stay on the device; nothing waits for it between two ticks.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Add per-image values, each (n,); n may differ between ranks."""
        for name, value in values.items():
            total = value.detach().sum(dtype=torch.float64)
            self._sums[name] = self._sums[name].add_(total) if name in self._sums else total
            self._counts[name] = self._counts.get(name, 0) + value.numel()

    def sync(self) -> dict[str, float]:
        """Collective: every rank calls it after the same steps. One all_reduce for all names."""
        if not self._sums:
            return {}
        sums = torch.stack(list(self._sums.values()))
        counts = sums.new_tensor(list(self._counts.values()))
        table = torch.stack([sums, counts], 1)
        if world_size() > 1:
            dist.all_reduce(table)
        means = (table[:, 0] / table[:, 1]).tolist()
        names = list(self._sums)
        self._sums, self._counts = {}, {}
        return dict(zip(names, means, strict=True))
