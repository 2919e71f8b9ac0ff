"""The interface between the training loop and its launcher, and checkpoints in the run folder."""

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
        """Report metrics and keep rank 0's checkpoint folder. Collective: all ranks call it."""
        ...

    def latest_checkpoint(self) -> Path | None:
        """Return the folder of the checkpoint to resume from. Rank 0's result is used."""
        ...


class LocalContext:
    """Context of a process without Ray: a plain call, or one of torchrun's processes."""

    def __init__(self, run_folder: Path, keep: int) -> None:
        self.device = local_device()
        self._folder, self._keep = run_folder, keep

    def report(self, metrics: Mapping[str, float], step: int, checkpoint: Path | None) -> None:
        """Keep rank 0's checkpoint, then wait for all ranks."""
        del metrics  # already in the journal; only Ray uses them
        if checkpoint is not None:
            keep_checkpoint(checkpoint, self._folder, step, self._keep)
        if world_size() > 1:
            dist.barrier()

    def latest_checkpoint(self) -> Path | None:
        """Return the latest checkpoint in the run folder."""
        return latest_checkpoint(self._folder)


def keep_checkpoint(checkpoint: Path, run_folder: Path, step: int, keep: int) -> None:
    """Copy a checkpoint folder atomically into the run folder; keep the latest `keep` of them."""
    target = run_folder / f"checkpoint_{step:010d}"  # sorts by step
    partial = target.with_suffix(".part")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(checkpoint, partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    for old in _checkpoints(run_folder)[:-keep]:
        shutil.rmtree(old)


def latest_checkpoint(run_folder: Path) -> Path | None:
    """Return the checkpoint with the highest step; None if there is none."""
    return next(reversed(_checkpoints(run_folder)), None)


def _checkpoints(run_folder: Path) -> list[Path]:
    return sorted(run_folder.glob("checkpoint_*[0-9]"))  # without incomplete ones, named .part
