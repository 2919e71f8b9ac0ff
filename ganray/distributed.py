"""Ranks, DDP and collectives; everything also works without a process group."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

_BUCKETS = 4
"""Buckets that DDP divides the gradients of a network into."""


def rank() -> int:
    """Return the rank of this process, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wrap_ddp(
    objective: nn.Module, device: torch.device, precision: Literal["fp32", "bf16"] = "fp32"
) -> nn.Module:
    """Wrap an objective in DDP to average the gradients of its trainable parameters over ranks.

    Parameters that are frozen at this time are never reduced. Buffers are not broadcast, so they
    must be computed from what is equal on all ranks. `precision` is that of the gradients while
    they are sent. With one rank the objective is returned unchanged.
    """
    if world_size() == 1:
        return objective
    ids = [device.index] if device.type == "cuda" else None
    # No static_graph: with lazy penalties the graph is not the same at each step.
    wrapped = DistributedDataParallel(
        objective,
        device_ids=ids,
        gradient_as_bucket_view=True,
        bucket_cap_mb=bucket_mib(objective),  # pyright: ignore[reportArgumentType]
    )
    wrapped.broadcast_buffers = False  # not an argument: its name depends on the torch version
    if precision == "bf16":
        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped


def bucket_mib(objective: nn.Module) -> float:
    """Return the size of DDP's buckets: a quarter of the gradients, at least 1 MiB.

    Each bucket is reduced while the backward pass computes the next one. Torch's default of 25 MiB
    puts all gradients of a GAN of 64x64 images into one bucket, which is ready at the end only.
    """
    sizes = (p.numel() * p.element_size() for p in objective.parameters() if p.requires_grad)
    return max(1, sum(sizes) / _BUCKETS / 2**20)


def broadcast_from_rank0(value: T) -> T:
    """Return rank 0's value on every rank. Collective."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def barrier() -> None:
    """Wait for all ranks. Collective."""
    if world_size() > 1:
        dist.barrier()


def all_gather_rows(rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Return the rows (n_rank, ...) of all ranks in rank order, on every rank. Collective.

    `counts` are the numbers of rows of all ranks, 0 or more.
    """
    if world_size() == 1:
        return rows
    # all_gather needs tensors of equal size.
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class Sums(NamedTuple):
    """Sums of per-image statistics over some images of this rank; a name may occur twice."""

    names: tuple[str, ...]
    totals: torch.Tensor
    """float64 (names,), on the device."""
    counts: tuple[int, ...]
    """Number of values in each total."""


def sum_values(values: Iterable[Mapping[str, torch.Tensor]]) -> Sums:
    """Return the sums of per-image values, each (n,)."""
    pairs = [pair for mapping in values for pair in mapping.items()]
    return Sums(
        tuple(name for name, _ in pairs),
        torch.stack([value.detach().sum(dtype=torch.float64) for _, value in pairs]),
        tuple(value.numel() for _, value in pairs),
    )


class Means:
    """Means of per-image statistics over all steps and ranks since the last ``sync``.

    Sums stay on the device, so that the host does not wait for it between two syncs.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Sums] = {}
        """Sums over steps with the same statistics, by their names."""

    def add(self, sums: Sums) -> None:
        """Add the sums of a step. Numbers of images may differ between ranks, names may not."""
        names, totals, counts = sums
        if names in self._sums:
            _, earlier, earlier_counts = self._sums[names]
            counts = tuple(a + b for a, b in zip(earlier_counts, counts, strict=True))
            self._sums[names] = Sums(names, earlier.add_(totals), counts)
        else:
            self._sums[names] = Sums(names, totals.clone(), counts)

    def sync(self) -> dict[str, float]:
        """Return the means by name and reset them. Collective: one all_reduce for all names."""
        if not self._sums:
            return {}
        parts, self._sums = list(self._sums.values()), {}
        totals = torch.cat([part.totals for part in parts])
        counts = totals.new_tensor([count for part in parts for count in part.counts])
        table = torch.stack([totals, counts])
        if world_size() > 1:
            dist.all_reduce(table)
        sums, sizes = defaultdict[str, float](float), defaultdict[str, float](float)
        names = (name for part in parts for name in part.names)
        for name, total, count in zip(names, *table.tolist(), strict=True):
            sums[name] += total
            sizes[name] += count
        return {name: total / sizes[name] for name, total in sums.items()}


def local_device() -> torch.device:
    """Return and select this process's GPU (LOCAL_RANK of torchrun), or return the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def available_threads(cpus: int) -> int:
    """Return `cpus`, or the number of threads that torch has now if that is smaller.

    Torch starts with all cores, with fewer if OMP_NUM_THREADS is set (torchrun sets 1). For small
    networks that is too many: beside one busy core, a step of an MLP takes 12 times as long with
    two threads, which wait for each other, as with one.
    """
    return min(cpus, torch.get_num_threads())


_patient_group: dist.ProcessGroup | None = None
"""Group of all ranks with a long timeout, if torchrun has started this process."""


@contextmanager
def torchrun_group(timeout_s: float) -> Iterator[None]:
    """Join the process group that torchrun has configured; do nothing without torchrun.

    Collectives fail after `timeout_s`, but for `rank0_first`, in which rank 0 may prepare data.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    # Select the GPU before any collective; until then all ranks of a machine use the first one.
    # Collectives of CPU objects, and barriers, use gloo.
    backend = "cpu:gloo,cuda:nccl" if local_device().type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    global _patient_group
    group = dist.new_group(backend="gloo", timeout=timedelta(days=7))
    _patient_group = cast("dist.ProcessGroup", group)  # every rank is a member
    try:
        yield
    finally:
        _patient_group = None
        dist.destroy_process_group()


@contextmanager
def rank0_first() -> Iterator[bool]:
    """Let rank 0 run the block before the other ranks do. Yields whether this is rank 0."""
    if world_size() > 1 and rank() != 0:
        dist.barrier(group=_patient_group)
    yield rank() == 0
    if world_size() > 1 and rank() == 0:
        dist.barrier(group=_patient_group)
