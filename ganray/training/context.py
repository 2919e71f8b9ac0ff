"""Where a worker runs: the three things the loop asks of its launcher."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist

from ganray.distributed import local_device, world_size


class WorkerContext(Protocol):
    """One rank's view of its launcher. Rank and world size come from torch.distributed."""

    device: torch.device

    def report(self, metrics: Mapping[str, float], step: int, checkpoint: Path | None) -> None:
        """Collective: every rank calls it after the same steps; only rank 0 brings a folder."""
        ...

    def latest_checkpoint(self) -> Path | None:
        """The folder to go on from, on storage that all ranks see; what rank 0 finds holds."""
        ...


class LocalContext:
    """No Ray: this process alone, or the processes that torchrun started."""

    def __init__(self, run_folder: Path, keep: int) -> None:
        self.device = local_device()
        self._folder, self._keep = run_folder, keep

    def report(self, metrics: Mapping[str, float], step: int, checkpoint: Path | None) -> None:
        """A barrier of all ranks, once rank 0's checkpoint is kept."""
        del metrics  # already in the journal; Ray alone has another use for them
        if checkpoint is not None:
            keep_checkpoint(checkpoint, self._folder, step, self._keep)
        if world_size() > 1:
            dist.barrier()

    def latest_checkpoint(self) -> Path | None:
        """The run's own."""
        return latest_checkpoint(self._folder)


def keep_checkpoint(checkpoint: Path, run_folder: Path, step: int, keep: int) -> None:
    """Copy a checkpoint to its place in the run folder, whole or not at all; drop the oldest.

    Args:
        checkpoint: the folder that was written.
        run_folder: where it goes, the same place under every launcher.
        step: that it was written after.
        keep: how many are kept, at least 1.
    """
    target = run_folder / f"checkpoint_{step:010d}"  # sorts by step
    part = target.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(checkpoint, part)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    for old in _checkpoints(run_folder)[:-keep]:
        shutil.rmtree(old)


def latest_checkpoint(run_folder: Path) -> Path | None:
    """The checkpoint of the highest step, whichever launcher left it; None where there is none."""
    return next(reversed(_checkpoints(run_folder)), None)


def _checkpoints(run_folder: Path) -> list[Path]:
    return sorted(run_folder.glob("checkpoint_*[0-9]"))  # one that is being written ends in .part
