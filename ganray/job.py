"""What every training job does: plan, show, check, prepare, train, say where to look.

Sits above the vendors: here Ray meets MLflow, neither of which knows the other.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from ganray.config import Config, check_resumes, from_dict, to_dict
from ganray.data import prepare
from ganray.data.prepare import DataPlan
from ganray.distributed import from_leader, rank, world_size
from ganray.integrations import mlflow_tracker, ray_train
from ganray.training import launch, report
from ganray.training.context import leader_first, torchrun_group
from ganray.training.journal import narrated
from ganray.training.plan import Workers, describe, resolve
from ganray.training.state import CONFIG_FILE, load_generator


def run(config: Config) -> None:
    """Run one training job to its end.

    Raises:
        ValueError: bad input, found before a worker is held where that is possible.
    """
    with torchrun_group():
        config = from_leader(config)  # a default name holds the time of one process
        with leader_first() as leads:
            if leads and not config.dry_run:
                prepare.fetch(config.data, config.home)
        images = prepare.plan(config.data, config.home)
        workers = _workers(config)
        if rank() == 0:
            _show(config, images, workers)
        if config.dry_run:
            return
        with leader_first() as leads:
            if leads:
                claim(config)
            digest = prepare.prepare(config.data, images)
        if config.launcher == "ray":
            ray_train.connect(config.ray)
        if rank() == 0:
            _train_and_report(config, images, digest, workers)
        else:
            launch.launch(config, images.where)


def claim(config: Config) -> None:
    """Make the run folder, or go on with the one that has this name.

    Raises:
        ValueError: it holds a run that learns something else, or cannot be written.
    """
    folder, path = config.run_folder(), config.run_folder() / CONFIG_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            check_resumes(from_dict(json.loads(path.read_text())), config)
        path.write_text(json.dumps(to_dict(config), indent=2))
    except OSError as error:
        raise ValueError(
            f"home={config.home} cannot be written ({error.strerror}); give another --home"
            " or set GANRAY_HOME"
        ) from error


def _show(config: Config, images: DataPlan, workers: Workers) -> None:
    if images.drawn:
        print(
            "NO CELEBA WAS GIVEN: this run learns procedural faces, a stand-in in CelebA's layout."
            " For real ones: --data.root FOLDER, or --data.download",
            flush=True,
        )
    print(describe(config, images, workers, mlflow_tracker.store_uri(config)), flush=True)


def _workers(config: Config) -> Workers:
    if config.launcher == "ray":
        return resolve(config, ray_train.look(config.ray))
    workers = Workers(world_size(), torch.cuda.is_available(), torch.get_num_threads())
    if config.train.batch_size < workers.count:
        raise ValueError(
            f"train.batch_size={config.train.batch_size} cannot be split over {workers.count}"
            " processes; give at least as many"
        )
    return workers


def _train_and_report(config: Config, images: DataPlan, digest: str, workers: Workers) -> None:
    dataset = {
        "name": "procedural faces" if images.drawn else config.data.source,
        "digest": digest,
        "path": images.where,
    }
    run = mlflow_tracker.open_run(config, dataset, _tags(config, workers))
    with mlflow_tracker.followed(run), narrated(config):
        if config.launcher == "ray":
            checkpoint = ray_train.launch(config, images.where, workers)
        else:
            checkpoint = launch.launch(config, images.where)
        losses, samples = report.draw_losses(config), report.last_samples(config)
        for picture in (losses, samples):
            mlflow_tracker.log_file(run, picture)
        generator = load_generator(checkpoint)
        model = mlflow_tracker.log_generator(run, generator, config.latent.size, images.image_shape)
    print(f"checkpoint  {checkpoint}")
    print(f"generator   {model}  (mlflow.pytorch.load_model)")
    print(f"losses      {losses}")
    print(f"samples     {samples}")
    print(f"look        mlflow ui --backend-store-uri {run.uri}", flush=True)


def _tags(config: Config, workers: Workers) -> dict[str, str]:
    """What the config does not say about a run; one that tells runs apart in MLflow."""
    tags = {
        "world_size": str(workers.count),
        "device": _device(workers),
        "torch": torch.__version__,
    }
    script = Path(sys.argv[0]).name
    tags |= {"mlflow.source.name": script, "mlflow.source.type": "JOB"}
    if commit := _git_commit():
        tags["mlflow.source.git.commit"] = commit
    if config.launcher == "ray":
        tags |= ray_train.job_tags()
    return tags


def _device(workers: Workers) -> str:
    """Of the workers; a cluster's head, where the driver runs, may have no GPU to name."""
    if not workers.gpu:
        return "cpu"
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cuda"


def _git_commit() -> str | None:
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
