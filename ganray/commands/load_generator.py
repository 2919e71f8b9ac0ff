"""Load a trained generator by any of its names."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ganray import log
from ganray.config.commands import command_line, unknown_run
from ganray.config.schema import Config, TrackingConfig
from ganray.data.format import Shape
from ganray.data.storage import open_storage
from ganray.data.transforms import to_uint8
from ganray.errors import UserError
from ganray.files import create_folder
from ganray.gan.latents import sample
from ganray.gan.networks import one_hot_labels
from ganray.integrations import mlflow_models, mlflow_registry, mlflow_runs
from ganray.integrations.mlflow_runs import MLFLOW_ERRORS, Run
from ganray.training import journal
from ganray.training.run_storage import fetch_run, stored_names, upload_files
from ganray.training.state import (
    CONFIG_FILE,
    DIGEST_FILE,
    STATE_FILE,
    generator_from_checkpoint,
    read_config,
    read_state,
)

logger = logging.getLogger(__name__)

_LISTED = 20
"""Runs that `list_runs` lists."""
_BATCH_SIZE = 64
"""Images generated at once; full-size ones take about 1 MB each."""

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class TrainedGenerator:
    """A generator, with its run."""

    G: Callable[[torch.Tensor], torch.Tensor]
    """float32 (n, latent.size + classes) -> float (n, C, H, W) in [config.pixel_min(), 1]."""
    classes: int
    """Number of classes of a conditional generator; 0: unconditional."""
    config: Config
    """Config of the run."""
    source: str
    """Description of where it was loaded from."""
    folder: Path | None
    """Run folder; None if it is not on this machine."""
    run: Run | None
    """MLflow run; None unless the generator was loaded from there."""
    checkpoint: str = ""
    """Name of the checkpoint, unless it is the run's newest. Results of an older checkpoint are
    kept apart from those of the run."""
    device: torch.device = _CPU
    """Device of G."""
    path: Path | None = None
    """Checkpoint folder that it was loaded from; None: a logged model."""
    model_uri: str = ""
    """URI of the logged model that it was loaded from."""

    @property
    def label(self) -> str:
        """RUN or RUN/CHECKPOINT."""
        return str(Path(self.config.name, self.checkpoint))

    def to(self, device: torch.device) -> TrainedGenerator:
        """Return the generator on another device; G is moved, not copied."""
        G = self.G.to(device) if isinstance(self.G, nn.Module) else self.G
        return replace(self, G=G, device=device)

    def generate(self, z: torch.Tensor, label: int | torch.Tensor = 0) -> torch.Tensor:
        """Return G's images for latents, float (n, C, H, W) in [config.pixel_min(), 1].

        Args:
            z: float32 (n, latent.size).
            label: Class of all images, or of each, int64 (n,); ignored if unconditional.
        """
        if self.classes:
            labels = torch.as_tensor(label, device=z.device).expand(len(z))
            z = torch.cat([z, one_hot_labels(labels, self.classes)], 1)
        return self.G(z.to(self.device))

    def images(self, z: torch.Tensor, label: int = 0) -> np.ndarray:
        """Return the images for latents as uint8 (n, H, W, C); `z` and `label` as in `generate`."""
        with torch.no_grad():
            batches = [
                to_uint8(self.generate(batch, label), self.config.pixel_min()).cpu()
                for batch in z.split(_BATCH_SIZE)
            ]
        return torch.cat(batches).numpy()

    def image_shape(self) -> Shape:
        """Return (H, W, C) of the images."""
        return self.images(torch.zeros(1, self.config.latent.size)).shape[1:]

    def latents(self, count: int, rng_seed: int, stream: str, step: int = 0) -> torch.Tensor:
        """Draw latents of the trained distribution, float32 (count, size).

        Drawn on the CPU, as a GPU would draw others, from the random stream ``explore/STREAM``.
        """
        stream, config = f"explore/{stream}", self.config.latent
        return sample(config, count, rng_seed=rng_seed, stream=stream, step=step, device=_CPU)

    def output_folder(self, name: str, out: Path | None, home: Path) -> Path:
        """Create and return `out`, else `name` in the run folder, else a folder in the home."""
        if out:
            return create_folder(out.expanduser())
        own = self.folder / name / self.checkpoint if self.folder else home / name / self.label
        return create_folder(own)

    def log(self, files: Sequence[Path], folder: str, what: str = "files") -> None:
        """Add files to a folder of the MLflow run's artifacts, or log why that failed.

        Those in the run folder are uploaded to the storage too, if there is one.
        """
        try:
            upload_files(files, self.folder, self.config.storage)
        except UserError as error:
            logger.warning(f"the {what} are on disk but not in the storage: {error}")
        folder = str(Path(folder, self.checkpoint))
        try:
            run = self.run or mlflow_runs.find_run(self.config)
            if run is None:
                logger.info(f"MLflow      has no run {self.config.name!r}; the {what} stay on disk")
                return
            mlflow_runs.log_files(run, files, folder)
            logger.info(f"artifacts   {folder}/ of MLflow run {run.run_id}")
            mlflow_runs.log_addresses(run.uri, mlflow_runs.run_url(run))
        except (UserError, *MLFLOW_ERRORS) as error:
            logger.warning(f"the {what} are on disk but not in MLflow: {error}")

    def find_run(self) -> Run:
        """Return the MLflow run.

        Raises:
            UserError: MLflow has no such run, or cannot be reached.
        """
        run = self.run or mlflow_runs.find_run(self.config)
        if run is None:
            uri = log.redact(mlflow_runs.store_uri(self.config))
            raise UserError(
                f"MLflow at {uri} has no run {self.config.name!r}; give --tracking_uri of the store"
                " that has it"
            )
        return run

    def register(self, run: Run, name: str, coverage: float, basis: Mapping[str, object]) -> None:
        """Register the generator in MLflow; see `mlflow_registry.register`."""
        uri = self.model_uri
        if self.path is not None:
            uri = mlflow_models.logged_checkpoint(run, self.path)
        outcome = mlflow_registry.register(run, uri, name, coverage, basis)
        logger.info(f"registry    {outcome}")


def list_runs(home: Path, storage: str | None = None) -> str:
    """Return a table of the trained runs in a home, newest first, with their last scores.

    Of those in a storage, if one is given, it is a list of the names.
    """
    if (stored := open_storage(storage)) is not None:
        names = stored_names(stored, "runs", DIGEST_FILE)
        return f"Runs in {stored}: {', '.join(names) or 'none'}"
    runs = [folder for folder in (home / "runs").glob("*") if _find_checkpoint(folder)]
    if not runs:
        return f"{home} has no trained runs; train one: {command_line('celeba', home=home)}"
    rows: list[Sequence[str]] = [
        ("run", "preset", "kimg", "coverage", "recall", "Vendi", "trained")
    ]
    for folder in sorted(runs, key=lambda folder: folder.stat().st_mtime, reverse=True)[:_LISTED]:
        images, coverage = journal.history(folder, "collapse/coverage")
        scores = [
            log.two_digits(values[-1]) if len(values) else "-"
            for values in (coverage, journal.history(folder, "collapse/recall")[1])
        ]
        vendi = journal.history(folder, "collapse/vendi_share")[1]
        try:
            preset = read_config(folder).preset
        except UserError:  # one run must not hide the others
            preset = "damaged"
        rows.append(
            (
                folder.name,
                preset,
                f"{images[-1] / 1000:.1f}" if len(images) else "-",
                *scores,
                f"{vendi[-1]:.0%}" if len(vendi) else "-",
                time.strftime("%Y-%m-%d %H:%M", time.localtime(folder.stat().st_mtime)),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([*map(str.ljust, row[:2], widths), *map(str.rjust, row[2:], widths[2:])])
        for row in rows
    ]
    more = f"\n... and {len(runs) - _LISTED} more" if len(runs) > _LISTED else ""
    return f"Runs in {home}, newest first:\n" + "\n".join(lines) + more


def load_generator(
    name: str, home: Path, tracking_uri: str | None = None, storage: str | None = None
) -> TrainedGenerator:
    """Load a generator.

    Args:
        name: A checkpoint folder; a run folder or the name of a run in the home, for its newest
            checkpoint; an MLflow run id, for its logged generator; or a ``models:/`` URI.
        home: Home folder.
        tracking_uri: MLflow store; None: the run's own, else the environment's, else the home's.
        storage: URL from which a run is downloaded into the home first, by its name.

    Raises:
        UserError: The name is none of these, or has no readable generator.
    """
    fetch_run(name, home, storage)
    places = f"{open_storage(storage)} or {home}" if storage else str(home)
    generator = _load(name, home, tracking_uri, places)
    return replace(generator, config=replace(generator.config, storage=storage))


def _load(name: str, home: Path, tracking_uri: str | None, places: str) -> TrainedGenerator:
    if name.startswith("models:/"):
        return _from_model(name, _store_uri(home, tracking_uri), home)
    for folder in (Path(name).expanduser(), home / "runs" / name):
        if checkpoint := _find_checkpoint(folder):
            return _from_checkpoint(checkpoint.resolve(), tracking_uri)
    if re.fullmatch("[0-9a-f]{32}", name):
        return _from_run(name, _store_uri(home, tracking_uri), home)
    raise unknown_run(name, home, places)


def _from_checkpoint(checkpoint: Path, tracking_uri: str | None) -> TrainedGenerator:
    config = read_config(checkpoint)
    folder = checkpoint.parent if (checkpoint.parent / CONFIG_FILE).is_file() else None
    if folder and folder.parent.name == "runs":  # a home that was moved contains its store
        config = replace(config, home=folder.parent.parent)
    if tracking_uri:
        config = replace(config, tracking=replace(config.tracking, uri=tracking_uri))
    classes = read_state(checkpoint).get("classes", 0)
    generator, source = generator_from_checkpoint(checkpoint), f"checkpoint {checkpoint}"
    is_newest = folder is not None and _find_checkpoint(folder) == checkpoint
    name = "" if is_newest else checkpoint.name
    return TrainedGenerator(generator, classes, config, source, folder, None, name, path=checkpoint)


def _from_run(run_id: str, uri: str, home: Path) -> TrainedGenerator:
    run, config = mlflow_runs.get_run(uri, run_id)
    if model_uri := mlflow_models.newest_generator(run):
        return _from_model(model_uri, uri, home)
    folder = _run_folder(config, home)
    if folder and (checkpoint := _find_checkpoint(folder)):
        return replace(_from_checkpoint(checkpoint, uri), run=run)
    raise UserError(
        f"MLflow run {run_id} logged no generator, and no checkpoint of run {config.name!r} is in"
        f" {config.home} or {home}; name a checkpoint folder, or give --home"
    )


def _from_model(model_uri: str, uri: str, home: Path) -> TrainedGenerator:
    logged = mlflow_models.load_generator(uri, model_uri)
    run, config = mlflow_runs.get_run(uri, logged.run_id)
    folder, source = _run_folder(config, home), f"model {model_uri}"
    uri = f"models:/{logged.model_id}"
    return TrainedGenerator(logged.G, logged.classes, config, source, folder, run, model_uri=uri)


def _find_checkpoint(folder: Path) -> Path | None:
    """Return the folder if it is a checkpoint, else the newest one in it, else None."""
    if (folder / STATE_FILE).is_file():
        return folder
    inside = folder.glob("checkpoint_*[0-9]")  # unfinished ones end in .part
    return max((path for path in inside if (path / STATE_FILE).is_file()), default=None)


def _run_folder(config: Config, home: Path) -> Path | None:
    """Return the folder of an MLflow run, which may have run on a machine with another home."""
    folders = (config.run_folder(), home / "runs" / config.name)
    return next((folder for folder in folders if folder.is_dir()), None)


def _store_uri(home: Path, tracking_uri: str | None) -> str:
    return mlflow_runs.store_uri(Config(home=home, tracking=TrackingConfig(tracking_uri)))
