"""Run the loop without Ray: in this process, or in all those that torchrun started."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ganray.config import Config
from ganray.config_json import check_resumes, from_dict, to_dict
from ganray.data.loader import Images
from ganray.data.prepare import open_images
from ganray.distributed import rank
from ganray.training.context import LocalContext, WorkerContext
from ganray.training.evaluation import Evaluator
from ganray.training.journal import Journal
from ganray.training.judge import NO_CLASSIFIER, Judge
from ganray.training.loop import train
from ganray.training.state import CONFIG_FILE

IMAGES_FILE = "images.json"
"""In the folder of a run or a study: which images it learns from."""


def claim(config: Config, changed: bool = False) -> None:
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
        raise ValueError(
            f"home={config.home} cannot be written ({error.strerror}); give another --home"
            " or set GANRAY_HOME"
        ) from error


def claim_images(folder: Path, images: str, identity: str) -> None:
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
            raise ValueError(
                f"{folder} has learned from {before['images']}, and these are others: {images};"
                " give it the same ones (--data.root), or use another --name"
            )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(now, indent=2))


def launch(config: Config, images: str, judge: Judge = NO_CLASSIFIER) -> Path:
    """Collective over the process group, if there is one. Returns the last checkpoint's folder.

    Args:
        config: The run.
        images: Where the shards are: `DataPlan.where`.
        judge: Who compares samples with what.
    """
    context = LocalContext(config.run_folder(), config.train.keep_checkpoints)
    work(config, images, judge, context)
    checkpoint = context.latest_checkpoint()
    assert checkpoint is not None, "the loop ends with a checkpoint"
    return checkpoint


def work(config: Config, images: str, judge: Judge, context: WorkerContext) -> None:
    """One rank's life, the same under every launcher."""
    with (
        closing(Journal(config.run_folder() if rank() == 0 else None)) as journal,
        closing(open_images(config.data, config.home, images)) as opened,
        _reals(config, opened, judge.reals) as reals,
    ):
        evaluator = Evaluator(config, judge.reference_set(config, reals), context.device)
        train(config, opened, evaluator, context, journal)


@contextmanager
def _reals(config: Config, learned: Images, where: str) -> Iterator[Images]:
    """What samples are compared with: other images, or those that are learned."""
    if not where:
        yield learned
        return
    with closing(open_images(config.reference_data(), config.home, where)) as images:
        yield images
