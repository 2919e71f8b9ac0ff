"""Ranks, the DDP wrap and the one reduction per tick; true without a process group too."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
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


def wrap_ddp(objective: nn.Module, device: torch.device) -> nn.Module:
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


def broadcast_from_rank0(value: T) -> T:
    """Collective: rank 0's value, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def all_gather_rows(rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Collective: the rows of all ranks, in the order of ranks, on every rank.

    Args:
        rows: (n_rank, ...), n_rank being this rank's entry of `counts`; 0 will do.
        counts: Of each rank, the same list on all of them.
    """
    if world_size() == 1:
        return rows
    # Padded to one size, for that is what an all_gather of any backend takes.
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


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


def local_device() -> torch.device:
    """This process's GPU (torchrun's LOCAL_RANK), or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


@contextmanager
def torchrun_group() -> Iterator[None]:
    """Join the process group that torchrun's environment names; without one, do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    # The GPU before any collective: until it is set, all ranks of a machine would use the first.
    # Objects and barriers, which hold no tensor of a GPU's, go over gloo.
    backend = "cpu:gloo,cuda:nccl" if local_device().type == "cuda" else "gloo"
    # An hour: the other ranks wait in a barrier while rank 0 prepares the shards.
    dist.init_process_group(backend, timeout=timedelta(hours=1))
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def rank0_first() -> Iterator[bool]:
    """Rank 0 runs the block while the others wait, then they run it. Yields "I am the leader"."""
    if world_size() > 1 and rank() != 0:
        dist.barrier()
    yield rank() == 0
    if world_size() > 1 and rank() == 0:
        dist.barrier()
