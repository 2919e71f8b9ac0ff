"""Run the loop without Ray: in this process, or in all those that torchrun started."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ganray.config.schema import Config
from ganray.config.serialization import check_resumes, from_dict, to_dict
from ganray.data.loader import ImageDataset
from ganray.data.prepare import open_dataset
from ganray.distributed import rank
from ganray.errors import UserError
from ganray.evaluation.evaluator import Evaluator
from ganray.evaluation.reference import NO_ASSETS, EvaluationAssets
from ganray.training.context import LocalContext, WorkerContext
from ganray.training.journal import Journal
from ganray.training.loop import train
from ganray.training.state import CONFIG_FILE

IMAGES_FILE = "images.json"
"""In the folder of a run or a study: which images it learns from."""


def create_run_folder(config: Config, changed: bool = False) -> None:
    """Make the run folder, or go on with the one that has this name.

    Args:
        config: of the run.
        changed: it may learn something else from now on.

    Raises:
        ValueError: it holds a run that learns something else, or cannot be written.
    """
    folder, path = config.run_folder(), config.run_folder() / CONFIG_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and not changed:
            check_resumes(from_dict(json.loads(path.read_text())), config)
        path.write_text(json.dumps(to_dict(config), indent=2))
    except OSError as error:
        raise UserError(
            f"home={config.home} cannot be written ({error.strerror}); give another --home"
            " or set GANRAY_HOME"
        ) from error


def record_dataset(folder: Path, images: str, identity: str) -> None:
    """Note which images a run learns from, or make sure that they are still the same.

    Args:
        folder: the run's, or the study's.
        images: in words.
        identity: what tells them from others; see `prepare.identity`.

    Raises:
        ValueError: it has learned from others.
    """
    path, now = folder / IMAGES_FILE, {"identity": identity, "images": images}
    if path.exists():
        before = json.loads(path.read_text())
        if before["identity"] != identity:
            raise UserError(
                f"{folder} has learned from {before['images']}, and these are others: {images};"
                " give it the same ones (--data.root), or use another --name"
            )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(now, indent=2))


def launch(config: Config, images: str, judge: EvaluationAssets = NO_ASSETS) -> Path:
    """Collective over the process group, if there is one. Returns the last checkpoint's folder.

    Args:
        config: The run.
        images: Where the shards are: `DatasetPlan.location`.
        judge: Who compares samples with what.
    """
    context = LocalContext(config.run_folder(), config.train.keep_checkpoints)
    run_worker(config, images, judge, context)
    checkpoint = context.latest_checkpoint()
    assert checkpoint is not None, "the loop ends with a checkpoint"
    return checkpoint


def run_worker(
    config: Config, images: str, judge: EvaluationAssets, context: WorkerContext
) -> None:
    """One rank's life, the same under every launcher."""
    with (
        closing(Journal(config.run_folder() if rank() == 0 else None)) as journal,
        closing(open_dataset(config.data, config.home, images)) as opened,
        _reals(config, opened, judge.reals) as reals,
    ):
        evaluator = Evaluator(config.evaluation, judge.reference_set(config, reals), context.device)
        train(config, opened, evaluator, context, journal)


@contextmanager
def _reals(config: Config, learned: ImageDataset, where: str) -> Iterator[ImageDataset]:
    """What samples are compared with: other images, or those that are learned."""
    if not where:
        yield learned
        return
    with closing(open_dataset(config.reference_data(), config.home, where)) as images:
        yield images
