"""Run the loop without Ray: in this process, or in all those that torchrun started."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from ganray.config import Config
from ganray.data.prepare import open_images
from ganray.distributed import rank
from ganray.training.context import LocalContext, WorkerContext
from ganray.training.journal import Journal
from ganray.training.loop import train


def launch(config: Config, images: str, judge: str = "") -> Path:
    """Collective over the process group, if there is one. Returns the last checkpoint's folder.

    Args:
        config: The run.
        images: Where the shards are: `DataPlan.where`.
        judge: The classifier's file: see `judge.prepare_judge`.
    """
    context = LocalContext(config.run_folder(), config.train.keep_checkpoints)
    work(config, images, judge, context)
    checkpoint = context.latest_checkpoint()
    assert checkpoint is not None, "the loop ends with a checkpoint"
    return checkpoint


def work(config: Config, images: str, judge: str, context: WorkerContext) -> None:
    """One rank's life, the same under every launcher."""
    with (
        closing(Journal(config.run_folder() if rank() == 0 else None)) as journal,
        closing(open_images(config.data, config.home, images)) as opened,
    ):
        train(config, opened, judge, context, journal)
