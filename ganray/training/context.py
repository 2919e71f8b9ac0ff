"""Where a worker runs: the three things the loop asks of its launcher."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist

from ganray.distributed import rank, world_size


class WorkerContext(Protocol):
    """One rank's view of its launcher. Rank and world size come from torch.distributed."""

    device: torch.device

    def report(self, metrics: Mapping[str, float], step: int, checkpoint: Path | None) -> None:
        """Collective: every rank calls it after the same steps; only rank 0 brings a folder."""
        ...

    def latest_checkpoint(self) -> Path | None:
        """The folder to go on from, readable by this rank."""
        ...


class LocalContext:
    """No Ray: this process alone, or the processes that torchrun started."""

    def __init__(self, run_folder: Path, keep: int) -> None:
        self.device = local_device()
        self._folder, self._keep = run_folder, keep

    def report(self, metrics: Mapping[str, float], step: int, checkpoint: Path | None) -> None:
        """Move rank 0's checkpoint to its final name, whole or not at all; drop the oldest."""
        del metrics  # already in the journal; Ray alone has another use for them
        if checkpoint is not None:
            target = self._folder / checkpoint_name(step)
            part = target.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(checkpoint, part)
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
            for old in self._checkpoints()[: -self._keep]:
                shutil.rmtree(old)
        if world_size() > 1:
            dist.barrier()

    def latest_checkpoint(self) -> Path | None:
        """The checkpoint of the highest step."""
        return next(reversed(self._checkpoints()), None)

    def _checkpoints(self) -> list[Path]:
        found = self._folder.glob("checkpoint_*")
        return sorted(path for path in found if path.is_dir() and path.suffix != ".part")


def checkpoint_name(step: int) -> str:
    """Folder name; sorts by step."""
    return f"checkpoint_{step:010d}"


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
    # An hour: the other ranks wait in a barrier while rank 0 prepares the shards.
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(hours=1)
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def leader_first() -> Iterator[bool]:
    """Rank 0 runs the block while the others wait, then they run it. Yields "I am the leader"."""
    if world_size() > 1 and rank() != 0:
        dist.barrier()
    yield rank() == 0
    if world_size() > 1 and rank() == 0:
        dist.barrier()
