"""What every training job does: plan, show, check, prepare, train, say where to look.

Sits above the vendors: here Ray meets MLflow, neither of which knows the other.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from ganray.config.schema import Config
from ganray.data import prepare
from ganray.data.prepare import DatasetPlan
from ganray.data.transforms import to_uint8
from ganray.distributed import (
    broadcast_from_rank0,
    local_device,
    rank,
    rank0_first,
    torchrun_group,
    world_size,
)
from ganray.errors import UserError
from ganray.evaluation import reference
from ganray.evaluation.reference import NO_ASSETS, EvaluationAssets, RunDatasets
from ganray.evaluation.report import PAGE, EvaluationReport, evaluate_generator, table
from ganray.integrations import mlflow_sync, ray_train
from ganray.training import launch, run_figures
from ganray.training.discriminator_check import MAX_NOISE_PROB, MIN_REAL_PROB, check_discriminator
from ganray.training.journal import Journal, history, print_progress
from ganray.training.plan import Workers, check_workers, describe_plan, num_classes, resolve_workers
from ganray.training.state import generator_from_checkpoint


def run(config: Config) -> None:
    """Run one training job to its end.

    Raises:
        ValueError: bad input, found before a worker is held where that is possible.
    """
    with torchrun_group():
        config = broadcast_from_rank0(config)  # a default name holds the time of one process
        if config.check_discriminator:
            if world_size() > 1:
                raise UserError(
                    f"check_discriminator=True is for one process, not {world_size()}; leave"
                    " torchrun out"
                )
            config = replace(config, launcher="torch")  # it is over before Ray has started
        with rank0_first() as leads:
            if leads and not config.dry_run:
                config = replace(config, data=prepare.fetch(config.data, config.home))
        config = broadcast_from_rank0(config)  # digits may stand in for MNIST
        found = reference.locate_datasets(config)
        workers = _workers(config)
        if rank() == 0:
            if found.images.procedural:
                warn_procedural_faces()
            print(describe_plan(found, workers, mlflow_sync.store_uri(config)), flush=True)
        if config.dry_run:
            return
        with rank0_first() as leads:
            digest, judge = _ready(found) if leads else ("", NO_ASSETS)
        judge = broadcast_from_rank0(judge)
        if config.check_discriminator:
            _check_discriminator(found, digest, workers)
            return
        if config.launcher == "ray":
            ray_train.connect(config.ray)
        if rank() == 0:
            _train_and_report(found, digest, judge, workers)
        else:
            launch.launch(config, found.images.location, judge)


def _ready(found: RunDatasets) -> tuple[str, EvaluationAssets]:
    """Make the run's folder, its shards and its judge; returns the digest and the judge."""
    config, images = found.config, found.images
    launch.create_run_folder(config)
    digest = reference.prepare_datasets(found)
    identity = prepare.dataset_identity(config.data, images, config.home)
    launch.record_dataset(config.run_folder(), str(images), identity)
    if config.check_discriminator:
        return digest, NO_ASSETS
    return digest, found.judge(reference.prepare_run_classifier(found))


def warn_procedural_faces() -> None:
    """Loudly: what is learned is not what was asked for."""
    print(
        "NO CELEBA WAS GIVEN: this run learns procedural faces, a stand-in in CelebA's layout."
        " For real ones: --data.root FOLDER, or --data.download",
        flush=True,
    )


def _workers(config: Config) -> Workers:
    if config.launcher == "ray":
        return resolve_workers(config, ray_train.cluster_resources(config.ray))
    workers = Workers(world_size(), torch.cuda.is_available(), torch.get_num_threads())
    check_workers(config, workers.count)
    return workers


def _check_discriminator(found: RunDatasets, digest: str, workers: Workers) -> None:
    config, images = found.config, found.images
    dataset = reference.dataset_info(found, digest)
    run = mlflow_sync.open_run(config, dataset, tags_of(config, workers))
    with mlflow_sync.sync_run(run) as follower:
        with (
            print_progress(config),
            closing(Journal(config.run_folder())) as log,
            closing(prepare.open_dataset(config.data, config.home, images.location)) as opened,
        ):
            verdict = check_discriminator(config, opened, log)
        print(f"check       {verdict}")
        print(f"picture     {verdict.figure}", flush=True)
        follower.deliver(lambda: mlflow_sync.log_file(run, verdict.figure))
    if not verdict.separates:
        raise UserError(
            f"check_discriminator=True: D must reach {MIN_REAL_PROB} and {MAX_NOISE_PROB}; try more"
            " --train.kimg or another --optimizer.lr_D"
        )


def _train_and_report(
    found: RunDatasets, digest: str, judge: EvaluationAssets, workers: Workers
) -> None:
    config, images = found.config, found.images
    dataset = reference.dataset_info(found, digest)
    run = mlflow_sync.open_run(config, dataset, tags_of(config, workers))
    with mlflow_sync.sync_run(run) as follower:
        checkpoint = _train(config, images, judge, workers)
        pictures = {
            "losses": run_figures.draw_losses(config.run_folder(), config.loss.name),
            "samples": run_figures.last_samples(config.run_folder()),
            "epochs": run_figures.draw_epochs(
                config.run_folder(), images.count, images.image_shape
            ),
        }
        assessment, files = _assess(found, judge, generator_from_checkpoint(checkpoint)), []
        if assessment is not None:
            about = {"run": config.name, "checkpoint": str(checkpoint), "data": digest}
            about["reals"] = reference.reference_digest(found)
            files = assessment.write(config.run_folder() / "evaluation", about)
            print(f"{table(assessment.report)}\nverdict     {assessment.verdict}")
            print(f"page        {config.run_folder() / 'evaluation' / PAGE}")
        print(f"checkpoint  {checkpoint}")
        for name, picture in pictures.items():
            print(f"{name:11s} {picture}", flush=True)

        def send() -> str:
            for picture in pictures.values():
                mlflow_sync.log_file(run, picture)
            for file in files:
                mlflow_sync.log_file(run, file, "evaluation")
            if assessment is not None:
                mlflow_sync.log_report(run, assessment.summary(), assessment.tags())
            inputs = config.latent.size + num_classes(config, images)
            generator = generator_from_checkpoint(
                checkpoint
            )  # on the CPU, unlike the one that was assessed
            return mlflow_sync.log_generator(run, generator, inputs, images.image_shape)

        if model := follower.deliver(send):  # last, as MLflow may be gone by now
            print(f"generator   {model}  (mlflow.pytorch.load_model)")
    print(f"look        mlflow ui --backend-store-uri {run.uri}", flush=True)


def _train(config: Config, images: DatasetPlan, judge: EvaluationAssets, workers: Workers) -> Path:
    """The last checkpoint."""
    with print_progress(config):
        if config.launcher == "ray":
            return ray_train.launch(config, images.location, judge, workers)
        return launch.launch(config, images.location, judge)


def _assess(
    found: RunDatasets, judge: EvaluationAssets, generator: torch.nn.Module
) -> EvaluationReport | None:
    """The report at the end of the run; None where none is wanted, or images are too few."""
    config = found.config
    if not config.evaluation.report_samples:
        return None
    device = local_device()
    generator = generator.to(device)

    def generate(z: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return to_uint8(generator(z.to(device)), config.pixel_min())

    with reference.open_reference(found) as images:
        return evaluate_generator(
            config,
            generate,
            num_classes(config, found.images),
            judge.reference_set(config, images),
            samples=config.evaluation.report_samples,
            title=config.name,
            saturation=history(config.run_folder(), "D/saturation")[1],
        )


def tags_of(config: Config, workers: Workers) -> dict[str, str]:
    """What the config does not say about a run; one that tells runs apart in MLflow."""
    tags = {
        "world_size": str(workers.count),
        "device": _device(workers),
        "torch": torch.__version__,
    }
    script = Path(sys.argv[0]).name
    tags |= {"mlflow.source.name": script, "mlflow.source.type": "JOB"}
    if commit := git_commit():
        tags["mlflow.source.git.commit"] = commit
    if config.launcher == "ray":
        tags |= ray_train.job_tags()
    return tags


def _device(workers: Workers) -> str:
    """Of the workers; a cluster's head, where the driver runs, may have no GPU to name."""
    if not workers.gpu:
        return "cpu"
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cuda"


def git_commit() -> str | None:
    """The checkout's commit; None where ganray came without one (an installed package)."""
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return None
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
