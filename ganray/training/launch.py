"""Launch training without Ray, and what every launcher runs on each rank."""

from __future__ import annotations

import json
import logging
import os
import platform
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from ganray import log
from ganray.config.schema import Config, TrainConfig
from ganray.config.serialization import check_resumes, to_dict
from ganray.data.loader import ImageDataset
from ganray.data.prepare import open_dataset
from ganray.distributed import broadcast_from_rank0, rank, world_size
from ganray.errors import UserError
from ganray.evaluation.evaluator import Evaluator
from ganray.evaluation.reference import NO_ASSETS, EvaluationAssets
from ganray.files import cannot_write, read_json, write_atomic
from ganray.training.context import LocalContext, WorkerContext
from ganray.training.error_file import ERROR_FILE, append_error
from ganray.training.journal import Journal
from ganray.training.loop import train
from ganray.training.run_folder import RunFolder
from ganray.training.state import CONFIG_FILE, read_config
from ganray.training.stopping import STOP_FILE
from ganray.training.watchdog import Watchdog

IMAGES_FILE = "images.json"
"""File in the folder of a run or a sweep that identifies its training images."""
logger = logging.getLogger(__name__)


def launch(config: Config, images: str, assets: EvaluationAssets = NO_ASSETS) -> Path:
    """Train in this process, or in all processes of torchrun, and return the last checkpoint.

    Collective over the process group, if there is one. `images` is `DatasetPlan.location`.
    """
    context = LocalContext(config)
    run_worker(config, images, assets, context)
    checkpoint = broadcast_from_rank0(context.checkpoint())
    assert checkpoint is not None, "the loop ends with a checkpoint"
    return checkpoint


def run_worker(
    config: Config, images: str, assets: EvaluationAssets, context: WorkerContext
) -> None:
    """Run training on one rank. Tracebacks of unexpected errors go to `error.txt`."""
    log.configure(config.log_level, rank())
    if context.device.type == "cuda":
        choose_kernels(config.train)
    with (
        _record_errors(context.folder),
        closing(Watchdog(config.train.hang_timeout, context)) as watchdog,
        closing(open_dataset(config.data, images)) as dataset,
        _open_reference(config, dataset, assets.reference) as reference,
    ):
        reference_set = assets.reference_set(config, reference)
        evaluator = Evaluator(config.evaluation, reference_set, context.device)
        journal = Journal(context.folder if rank() == 0 else None)
        train(config, dataset, evaluator, context, journal, watchdog)


def choose_kernels(train: TrainConfig) -> None:
    """Choose precision and determinism of this process's GPU kernels, torch's global settings."""
    torch.set_float32_matmul_precision(train.matmul_precision)
    torch.backends.cudnn.allow_tf32 = train.matmul_precision == "high"
    # All batches have the same size, so the fastest algorithms are searched for once.
    torch.backends.cudnn.benchmark = not train.deterministic
    if train.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when cuBLAS starts
    # Only a warning, which names the operation: evaluations need not be deterministic.
    torch.use_deterministic_algorithms(train.deterministic, warn_only=True)


@contextmanager
def _record_errors(folder: RunFolder) -> Iterator[None]:
    """Append the traceback of any exception but UserError to the run's `error.txt`; log where."""
    try:
        yield
    except UserError:
        raise
    except Exception:
        worker = f"rank {rank()} of {world_size()} on {platform.node()}"
        path = folder.call(append_error, worker, traceback.format_exc())
        logger.error("training failed; the traceback is in %s", path)
        raise


@contextmanager
def _open_reference(config: Config, dataset: ImageDataset, location: str) -> Iterator[ImageDataset]:
    """Open the reference images; they are the training images if `location` is empty."""
    if not location:
        yield dataset
        return
    with closing(open_dataset(config.reference_data(), location)) as images:
        yield images


def create_run_folder(config: Config, changed: bool = False) -> None:
    """Create the run folder, or check that its run can be resumed unless it may be `changed`."""
    folder = config.run_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CONFIG_FILE).exists() and not changed:
            check_resumes(read_config(folder), config)
        write_atomic(folder / CONFIG_FILE, json.dumps(to_dict(config), indent=2))
        for name in (ERROR_FILE, STOP_FILE):  # of an earlier attempt
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def record_dataset(folder: Path, images: str, identity: str) -> None:
    """Record the training images of a run or sweep, or check that they are still the same.

    `images` is their description, `identity` the result of `prepare.dataset_identity`.
    """
    path, record = folder / IMAGES_FILE, {"identity": identity, "images": images}
    if path.exists():
        recorded = read_json(path, "delete the file if the images are still the same")
        if recorded.get("identity") != identity:
            raise UserError(
                f"{folder} was trained on {recorded.get('images')}, which differ from {images};"
                " give it the same images (--data.root), or use another --name"
            )
    write_atomic(path, json.dumps(record, indent=2))
