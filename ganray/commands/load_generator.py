"""A trained generator, found by any of its names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ganray.config.schema import Config, TrackingConfig
from ganray.data.transforms import to_uint8
from ganray.errors import UserError
from ganray.gan.networks import one_hot_labels
from ganray.integrations import mlflow_runs, mlflow_sync
from ganray.integrations.mlflow_sync import Run
from ganray.training.state import (
    CONFIG_FILE,
    STATE_FILE,
    generator_from_checkpoint,
    read_config,
    read_state,
)

_BATCH = 64
"""Images made at once: a full-size generator needs 1 MB or so for each."""


@dataclass(frozen=True)
class TrainedGenerator:
    """A generator on the CPU, and what its run says about it."""

    G: Callable[[torch.Tensor], torch.Tensor]
    """float32 (n, latent.size + classes) -> float (n, C, H, W) in [config.pixel_min(), 1]."""
    classes: int
    """Classes it can be asked for; 0: it takes no label."""
    config: Config
    """That it was trained with."""
    source: str
    """Where it came from, in words."""
    folder: Path | None
    """Its run folder, where that is on this machine."""
    run: Run | None
    """Its MLflow run, where it came from there."""
    checkpoint: str = ""
    """Name of the checkpoint, where it is not known to be its run's newest: what is said of it
    must not take the place of what is said of the run."""

    @property
    def label(self) -> str:
        """RUN, or RUN/CHECKPOINT."""
        return str(Path(self.config.name, self.checkpoint))

    def images(self, z: torch.Tensor, label: int = 0) -> np.ndarray:
        """What G makes of z, float32 (n, latent.size): uint8 (n, H, W, C).

        Args:
            z: the latents.
            label: the class of all n; of no account where there are no classes.
        """
        if self.classes:
            labels = torch.full((len(z),), label)
            z = torch.cat([z, one_hot_labels(labels, self.classes)], 1)
        with torch.no_grad():
            parts = [to_uint8(self.G(part), self.config.pixel_min()) for part in z.split(_BATCH)]
        return torch.cat(parts).numpy()

    def output_folder(self, name: str, out: Path | None, home: Path) -> Path:
        """`out` if given, or `name` in the run folder, or a folder in the home."""
        if out:
            return out.expanduser()
        if self.folder:
            return self.folder / name / self.checkpoint
        return home / name / self.label

    def log(self, files: Sequence[Path], folder: str, what: str = "files") -> None:
        """Put files into a folder of the run's artifacts, or say why not; `what` names them."""
        folder = str(Path(folder, self.checkpoint))
        try:
            run = self.run or mlflow_runs.by_name(self.config)
            if run is None:
                print(f"MLflow      knows no run {self.config.name!r}; the {what} are kept")
                return
            mlflow_runs.add(run, files, folder)
            print(f"artifacts   {folder}/ of MLflow run {run.run_id} at {run.uri}", flush=True)
        except ValueError as error:
            print(f"MLflow      has not got the {what}, they are kept: {error}")


def load_generator(name: str, home: Path, tracking_uri: str | None = None) -> TrainedGenerator:
    """The generator that a person means.

    Args:
        name: a checkpoint folder; a run folder or a run's name in the home, for its newest
            checkpoint; an MLflow run id, for its generator; or a ``models:/`` URI.
        home: the home folder.
        tracking_uri: the MLflow store; None: the run's own, or the environment's, or the home's.

    Raises:
        ValueError: it is none of these, or holds no generator that can be read.
    """
    if name.startswith("models:/"):
        return _of_model(name, _store_uri(home, tracking_uri), home)
    for folder in (Path(name).expanduser(), home / "runs" / name):
        if checkpoint := _checkpoint(folder):
            return _of_checkpoint(checkpoint.resolve(), tracking_uri)
    if re.fullmatch("[0-9a-f]{32}", name):
        return _of_run(name, _store_uri(home, tracking_uri), home)
    known = sorted(path.name for path in (home / "runs").glob("*") if _checkpoint(path))
    raise UserError(
        f"RUN={name!r} must be a checkpoint folder, a run folder with a checkpoint, an MLflow run"
        f" id (32 hex digits), a models:/ URI, or the name of a run in {home}:"
        f" {', '.join(known) or 'there is none; give --home'}"
    )


def _of_checkpoint(checkpoint: Path, tracking_uri: str | None) -> TrainedGenerator:
    config = read_config(checkpoint)
    folder = checkpoint.parent if (checkpoint.parent / CONFIG_FILE).is_file() else None
    if folder and folder.parent.name == "runs":  # a home that was moved takes its store along
        config = replace(config, home=folder.parent.parent)
    if tracking_uri:
        config = replace(config, tracking=replace(config.tracking, uri=tracking_uri))
    classes = read_state(checkpoint).get("classes", 0)
    generator, source = generator_from_checkpoint(checkpoint), f"checkpoint {checkpoint}"
    is_newest = folder is not None and _checkpoint(folder) == checkpoint
    name = "" if is_newest else checkpoint.name
    return TrainedGenerator(generator, classes, config, source, folder, None, name)


def _of_run(run_id: str, uri: str, home: Path) -> TrainedGenerator:
    run, config = mlflow_runs.by_id(uri, run_id)
    if model_uri := mlflow_runs.generator_of(run):
        return _of_model(model_uri, uri, home)
    folder = _run_folder(config, home)
    if folder and (checkpoint := _checkpoint(folder)):
        return replace(_of_checkpoint(checkpoint, uri), run=run)
    raise UserError(
        f"MLflow run {run_id} logged no generator, and no checkpoint of run {config.name!r} is in"
        f" {config.home} or {home}; name a checkpoint folder, or give --home"
    )


def _of_model(model_uri: str, uri: str, home: Path) -> TrainedGenerator:
    logged = mlflow_runs.load_generator(uri, model_uri)
    run, config = mlflow_runs.by_id(uri, logged.run_id)
    classes = logged.inputs - config.latent.size
    folder, source = _run_folder(config, home), f"model {model_uri}"
    return TrainedGenerator(logged.module, classes, config, source, folder, run)


def _checkpoint(folder: Path) -> Path | None:
    """The folder itself if it is a checkpoint, else the newest one inside, else None."""
    if (folder / STATE_FILE).is_file():
        return folder
    inside = folder.glob("checkpoint_*[0-9]")  # one that is being written ends in .part
    return max((path for path in inside if (path / STATE_FILE).is_file()), default=None)


def _run_folder(config: Config, home: Path) -> Path | None:
    """Of a run that MLflow knows; it may have run on a machine with another home."""
    folders = (config.run_folder(), home / "runs" / config.name)
    return next((folder for folder in folders if folder.is_dir()), None)


def _store_uri(home: Path, tracking_uri: str | None) -> str:
    return mlflow_sync.store_uri(Config(home=home, tracking=TrackingConfig(tracking_uri)))
