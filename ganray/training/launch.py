"""Run the loop without Ray: in this process, or in all those that torchrun started."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

from ganray.config import Config
from ganray.data.shards import ShardReader
from ganray.distributed import rank
from ganray.training.context import LocalContext, WorkerContext
from ganray.training.journal import Journal, narrated
from ganray.training.loop import train

Follow = Callable[[], AbstractContextManager[object]]
"""Makes what follows the journal beside the training (to MLflow); called on rank 0 only."""


def launch(config: Config, shards: Path, follow: Follow) -> Path:
    """Collective over the process group, if there is one. Returns the last checkpoint's folder."""
    context = LocalContext(config.run_folder(), config.train.keep_checkpoints)
    with narrated(config) if rank() == 0 else nullcontext():
        work(config, shards, context, follow)
    checkpoint = context.latest_checkpoint()
    assert checkpoint is not None, "the loop ends with a checkpoint"
    return checkpoint


def work(config: Config, shards: Path, context: WorkerContext, follow: Follow) -> None:
    """One rank's life, the same under every launcher."""
    leads = rank() == 0
    with (
        closing(Journal(config.run_folder() if leads else None)) as journal,
        follow() if leads else nullcontext(),
    ):
        train(config, ShardReader(shards), context, journal)
