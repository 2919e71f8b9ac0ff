"""The interface between the training loop and its launcher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from ganray.config.schema import Config
from ganray.distributed import local_device
from ganray.training.checkpoints import find_checkpoint


class WorkerContext(Protocol):
    """One rank's view of its launcher. Rank and world size come from torch.distributed."""

    device: torch.device
    reads_checkpoints: bool
    """Whether `report` reads the checkpoint, which must be written before."""

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        """Report metrics and rank 0's new checkpoint. Collective: all ranks call it."""
        ...

    def checkpoint(self) -> Path | None:
        """Return the folder of the checkpoint to resume from. Rank 0's result is used."""
        ...


class LocalContext:
    """Context of a process without Ray: a plain call, or one of torchrun's processes."""

    reads_checkpoints = False

    def __init__(self, config: Config) -> None:
        self.device = local_device()
        self._config = config

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        """Do nothing: metrics and checkpoints are in the run folder; only Ray uses reports."""

    def checkpoint(self) -> Path | None:
        """Return the newest undamaged checkpoint in the run folder."""
        return find_checkpoint(self._config.run_folder(), self._config.train.strict_resume)
