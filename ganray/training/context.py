"""The interface between the training loop and its launcher."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch

from ganray.config.schema import Config
from ganray.data.storage import open_storage
from ganray.distributed import local_device, rank, world_size
from ganray.training import journal
from ganray.training.checkpoints import find_checkpoint
from ganray.training.run_folder import RunFolder
from ganray.training.stopping import (
    StopRequested,
    Wait,
    confirm_stop,
    defer_signals,
    watch_stop_file,
)

logger = logging.getLogger(__name__)


class WorkerContext(Protocol):
    """One rank's view of its launcher. Rank and world size come from torch.distributed."""

    device: torch.device
    folder: RunFolder
    is_supervised: bool
    """Whether all ranks are ended, and perhaps restarted, if this process ends."""

    def announce(self, text: str, *, is_training: bool = False) -> None:
        """Show a line to the user. Called on one rank."""
        ...

    def stop_requests(self) -> AbstractContextManager[StopRequested]:
        """Yield a function that returns whether rank 0 is to save a checkpoint and stop."""
        ...

    def stop(self) -> None:
        """Stop after the checkpoint for a stop request is saved. Called on rank 0."""
        ...

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None, wait: Wait) -> None:
        """Report metrics and rank 0's new checkpoint. Collective: all ranks call it.

        The checkpoint may still be written; `wait` returns when it is, and is uploaded.
        """
        ...

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Show metrics to whoever monitors the cluster. Other ranks have fewer than rank 0."""
        ...

    def checkpoint(self) -> Path | None:
        """Return the folder of the checkpoint to resume from. Rank 0's result is used."""
        ...


class LocalContext:
    """Context of a process without Ray: a plain call, or one of torchrun's processes."""

    def __init__(
        self, config: Config, device: torch.device | None = None, folder: RunFolder | None = None
    ) -> None:
        self.device = device or local_device()
        self.folder = folder or RunFolder(config.run_folder())
        self.is_supervised = world_size() > 1
        self._config = config

    def announce(self, text: str, *, is_training: bool = False) -> None:
        """Log the line."""
        logger.log(logging.INFO if is_training else logging.WARNING, text)

    def stop_requests(self) -> AbstractContextManager[StopRequested]:
        """Yield a function that returns whether this process got a signal."""
        return defer_signals()

    def stop(self) -> None:
        """Do nothing: the end of `stop_requests` raises the signal."""

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None, wait: Wait) -> None:
        """Do nothing: metrics and checkpoints are in the run folder; only Ray uses reports."""

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Do nothing: without Ray, nothing monitors the processes."""

    def checkpoint(self) -> Path | None:
        """Return the newest undamaged checkpoint in the run folder, or in the storage."""
        storage, strict = open_storage(self._config.storage), self._config.train.strict_resume
        if storage and rank():  # rank 0 downloads it
            return None
        return find_checkpoint(self._config.run_folder(), strict, storage)


class DrivenContext(LocalContext):
    """Context of a worker whose driver is another process, which follows the run folder."""

    def __init__(
        self, config: Config, device: torch.device | None = None, folder: RunFolder | None = None
    ) -> None:
        super().__init__(config, device, folder)
        self.is_supervised = True

    def announce(self, text: str, *, is_training: bool = False) -> None:
        """Add the line to the journal, as the driver prints nothing of its workers."""
        self.folder.call(journal.add_status, text, is_training=is_training)

    def stop_requests(self) -> AbstractContextManager[StopRequested]:
        """Yield a function that returns whether the driver requests a stop."""
        return watch_stop_file(self.folder)

    def stop(self) -> None:
        """Tell the driver that the checkpoint is saved."""
        confirm_stop(self.folder)
