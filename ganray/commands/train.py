"""A training job: plan, validate, prepare the data, train, report, print where the results are."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from ganray.config.presets import changed_options
from ganray.config.schema import Config
from ganray.data import prepare
from ganray.data.storage import open_storage
from ganray.distributed import (
    available_threads,
    broadcast_from_rank0,
    local_device,
    rank,
    rank0_first,
    torchrun_group,
    world_size,
)
from ganray.errors import UserError
from ganray.evaluation.datasets import RunDatasets, locate_datasets
from ganray.evaluation.reference import NO_ASSETS, EvaluationAssets
from ganray.evaluation.report import (
    PAGE,
    EvaluationReport,
    conclusion,
    evaluate_generator,
    table,
)
from ganray.integrations import mlflow_models, mlflow_runs, ray_cluster, ray_train
from ganray.integrations.mlflow_sync import JournalSync, sync_run
from ganray.training import launch, run_figures
from ganray.training.checkpoints import locate_initial_weights, resume_kimg
from ganray.training.discriminator_check import MAX_NOISE_PROB, MIN_REAL_PROB, check_discriminator
from ganray.training.journal import Journal, history, print_progress
from ganray.training.plan import (
    Workers,
    check_workers,
    describe_plan,
    few_images_warning,
    num_classes,
    resolve_workers,
)
from ganray.training.profiling import profile_files
from ganray.training.run_folder import RunFolder
from ganray.training.run_lock import lock_folder
from ganray.training.run_storage import pull_folder, share_run, upload_folders
from ganray.training.state import generator_from_checkpoint
from ganray.training.stopping import wait_for_checkpoints
from ganray.training.watchdog import ALLOWANCE

logger = logging.getLogger(__name__)

NOT_SENT = 3
"""Exit code of a job that succeeded, but whose results MLflow lacks."""


def run(config: Config) -> None:
    """Run a training job to its end.

    Raises:
        UserError: The input is invalid; found before workers are started where that is possible.
    """
    with torchrun_group(ALLOWANCE * config.train.hang_timeout):
        config = broadcast_from_rank0(config)  # the default name contains the time of one process
        _check_storage(config)
        mlflow_runs.check_store(config)
        if resume_kimg(config) is None:  # a run with a checkpoint of its own does not need it
            config = locate_initial_weights(config)
        if config.check_discriminator:
            if world_size() > 1:
                raise UserError(
                    f"check_discriminator=true needs one process, not {world_size()}; leave out"
                    " torchrun"
                )
            config = replace(config, launcher="torch")  # shorter than starting Ray
        with rank0_first() as is_rank0:
            if is_rank0 and not config.dry_run:
                config = replace(config, data=prepare.fetch(config.data, config.home))
        config = broadcast_from_rank0(config)  # digits may have replaced MNIST
        datasets = locate_datasets(config)
        workers = _resolve_workers(config)
        if rank() == 0:
            if datasets.images.procedural:
                warn_procedural_faces()
            if warning := few_images_warning(datasets):
                logger.warning(warning)
            logger.info(describe_plan(datasets, workers, mlflow_runs.store_uri(config)))
        if config.dry_run:
            return
        folder, url = config.run_folder(), config.storage
        with lock_folder(folder, url) if rank() == 0 else nullcontext():
            if rank() == 0 and url:
                pull_folder(folder, url)
            with upload_folders(url if rank() == 0 else None, lambda: [folder]):
                _run_locked(datasets, workers)


def _check_storage(config: Config) -> None:
    """Raise UserError if the storage cannot be written, or not be used by these processes."""
    storage = open_storage(config.storage)
    if storage is None:
        return
    if config.launcher == "ray" and (config.storage or "").startswith("memory:"):
        raise UserError(f"storage={config.storage} is the memory of one process; use another")
    processes = world_size()
    if config.launcher == "torch" and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) < processes:
        raise UserError(
            "storage: torchrun on several nodes needs a disk that they share; leave out --storage"
            " and put --home there, or use --launcher ray"
        )
    if not config.dry_run and rank() == 0:
        storage.check()
        share_run(config.run_folder(), config.storage)


def _run_locked(datasets: RunDatasets, workers: Workers) -> None:
    """Prepare, train and report, as the only driver of the run."""
    config = datasets.config
    with rank0_first() as is_rank0:
        digest, assets = _prepare(datasets) if is_rank0 else ("", NO_ASSETS)
    assets = broadcast_from_rank0(assets)
    if config.check_discriminator:
        _check_discriminator(datasets, digest, workers)
        return
    with rank0_first() as is_rank0:
        published = datasets.publish(assets) if is_rank0 else ("", NO_ASSETS)
    torch.set_num_threads(available_threads(config.ray.cpus_per_worker))
    if config.launcher == "ray":
        ray_cluster.connect(config.ray)
    if rank() == 0:
        _train_and_report(datasets, digest, assets, published, workers)
    else:
        launch.launch(config, datasets.images.location, assets)


def _prepare(datasets: RunDatasets) -> tuple[str, EvaluationAssets]:
    """Create the run folder, shards and classifier; return the training images' digest and both."""
    config, images = datasets.config, datasets.images
    launch.create_run_folder(config)
    digest = datasets.prepare()
    identity = prepare.dataset_identity(config.data, images)
    launch.record_dataset(config.run_folder(), str(images), identity)
    if config.check_discriminator:
        return digest, NO_ASSETS
    return digest, datasets.assets(datasets.prepare_classifier())


def warn_procedural_faces() -> None:
    """Log that training uses procedural faces because no CelebA was given."""
    logger.warning(
        "no CelebA was given, so this run trains on procedural faces in CelebA's layout;"
        " for real ones: --data.root FOLDER, or --data.download"
    )


def _resolve_workers(config: Config) -> Workers:
    if config.launcher == "ray":
        return resolve_workers(config, ray_cluster.cluster_resources(config.ray))
    if config.ray.is_elastic():
        raise UserError(
            f"ray.workers={config.ray.workers}: only Ray changes the number of workers; leave out"
            " --launcher torch, or the range"
        )
    threads = available_threads(config.ray.cpus_per_worker)
    workers = Workers(world_size(), torch.cuda.is_available(), threads)
    check_workers(config, workers.count)
    return workers


@contextmanager
def _sync_run(datasets: RunDatasets, digest: str, workers: Workers) -> Iterator[JournalSync]:
    """Send the run to MLflow while the block runs; exit with code 3 if MLflow lacks data then."""
    config = datasets.config
    tags = run_tags(config, workers)

    def open_run() -> mlflow_runs.Run:
        return mlflow_runs.open_run(config, datasets.info(digest), tags)

    uri = mlflow_runs.store_uri(config)
    with sync_run(uri, config.run_folder(), open_run, config.tracking.patience) as sync:
        yield sync
    if sync.has_given_up:
        sys.exit(NOT_SENT)


def _check_discriminator(datasets: RunDatasets, digest: str, workers: Workers) -> None:
    config, images = datasets.config, datasets.images
    with _sync_run(datasets, digest, workers) as sync:
        with (
            print_progress(config),
            closing(prepare.open_dataset(config.data, images.location)) as dataset,
        ):
            journal = Journal(RunFolder(config.run_folder()))
            result = check_discriminator(config, dataset, journal)
        logger.info(f"check       {result}")
        logger.info(f"picture     {result.figure}")

        def send_figure() -> str:
            (run,) = sync.unfinished()
            mlflow_runs.log_files(run, [result.figure])
            return mlflow_runs.run_url(run)

        mlflow_runs.log_addresses(mlflow_runs.store_uri(config), sync.flush_and_call(send_figure))
    if not result.separates:
        raise UserError(
            f"check_discriminator=true: D must reach {MIN_REAL_PROB} and {MAX_NOISE_PROB}; try more"
            " --train.kimg or another --optimizer.lr_D"
        )


def _train_and_report(
    datasets: RunDatasets,
    digest: str,
    assets: EvaluationAssets,
    published: tuple[str, EvaluationAssets],
    workers: Workers,
) -> None:
    """Train, evaluate and log; `published`: where other nodes find the images and `assets`."""
    config, images = datasets.config, datasets.images
    folder = config.run_folder()
    with (
        _log_stop(config),
        wait_for_checkpoints(folder.parent, lambda: [folder.name], bool(config.storage)),
        _sync_run(datasets, digest, workers) as sync,
    ):
        checkpoint = _train(datasets, assets, published, workers)
        figures = {
            "losses": run_figures.draw_losses(folder, config.loss.name),
            "samples": run_figures.last_samples(folder),
            "epochs": run_figures.draw_epochs(folder, images.image_shape),
        }
        figures = {name: path for name, path in figures.items() if path is not None}
        report, files = _evaluate(datasets, assets, generator_from_checkpoint(checkpoint)), []
        if report is not None:
            source = {"run": config.name, "checkpoint": str(checkpoint), "data": digest}
            source["reference"] = datasets.reference_digest()
            files = report.write(folder / "evaluation", source)
            logger.info(f"{table(report.metrics)}\n{conclusion(report)}")
            logger.info(f"page        {folder / 'evaluation' / PAGE}")
        logger.info(f"checkpoint  {checkpoint}")
        for name, figure in figures.items():
            logger.info(f"{name:11s} {figure}")
        for path in (profile := profile_files(folder)):
            logger.info(f"profile     {path}")
        if storage := open_storage(config.storage):
            logger.info(f"storage     {storage}/runs/{config.name}")

        def send_results() -> tuple[str, str]:
            (run,) = sync.unfinished()
            mlflow_runs.log_files(run, figures.values())
            mlflow_runs.log_files(run, files, "evaluation")
            mlflow_runs.log_files(run, profile, "profile")
            if report is not None:
                tags = report.tags() | {mlflow_runs.NOTE_TAG: report.diagnosis.text}
                mlflow_runs.log_summary(run, report.summary(), tags)
            return mlflow_models.log_generators(run, checkpoint), mlflow_runs.run_url(run)

        sent = sync.flush_and_call(send_results)  # last: MLflow may be unreachable by now
        if sent:
            logger.info(f"generator   {sent[0]}  (mlflow.pytorch.load_model)")
        mlflow_runs.log_addresses(mlflow_runs.store_uri(config), sent[1] if sent else None)
        if config.launcher == "ray" and (url := ray_cluster.job_url()):
            logger.info(f"ray         {url}")


@contextmanager
def _log_stop(config: Config) -> Iterator[None]:
    """Log how far the checkpoints are if a signal ends the block."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        kimg = resume_kimg(config)
        if kimg and getattr(error, "code", None) != NOT_SENT:
            logger.info(
                f"checkpoint  at {kimg:g} kimg, from which the same command with"
                f" --name {config.name} goes on"
            )
        raise


def _train(
    datasets: RunDatasets,
    assets: EvaluationAssets,
    published: tuple[str, EvaluationAssets],
    workers: Workers,
) -> Path:
    """Train and return the last checkpoint."""
    config = datasets.config
    if config.launcher == "torch":
        with print_progress(config):
            return launch.launch(config, datasets.images.location, assets)
    ray_cluster.wait_for_resources(config.ray, workers)
    with print_progress(config, lambda: ray_train.describe_resources(config.ray, workers)):
        return ray_train.launch(config, *published, workers)


def _evaluate(
    datasets: RunDatasets, assets: EvaluationAssets, generator: torch.nn.Module
) -> EvaluationReport | None:
    """Return the final report; None if none is configured or there are too few images."""
    config = datasets.config
    if not config.evaluation.report_samples:
        return None
    device = local_device()
    with datasets.open_reference() as images, datasets.open_training() as read_training:
        return evaluate_generator(
            config,
            generator.to(device),
            num_classes(config.network, datasets.images),
            assets.reference_set(config, images),
            samples=config.evaluation.report_samples,
            title=config.name,
            saturation=history(config.run_folder(), "discriminator/saturation")[1],
            read_training=read_training,
            device=device,
        )


def run_tags(config: Config, workers: Workers) -> dict[str, str]:
    """Return MLflow tags: what differs from the preset, hardware, versions, commit, job."""
    changed = changed_options(config)
    tags = {"changed": ", ".join(f"{k} {v}" for k, v in changed.items())[:1000]} if changed else {}
    tags |= {
        "world_size": f"{workers.count}:{workers.most}" if workers.most else str(workers.count),
        "device": _device_name(workers),
        "torch": torch.__version__,
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.type": "JOB",
    }
    if commit := git_commit():
        tags["mlflow.source.git.commit"] = commit
    if config.launcher == "ray":
        tags |= ray_cluster.job_tags()
    return tags


def _device_name(workers: Workers) -> str:
    """Return the workers' device; the driver's machine may have no GPU that could be named."""
    if not workers.gpu:
        return "cpu"
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cuda"


def git_commit() -> str | None:
    """Return the commit of the checkout; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
