"""MLflow, read back: runs by name or id, their config, the generators they logged.

Whoever can write to the store can put anything into a model, so one that would be unpickled, or
that brings code of its own, is never loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pytorch import load_model

from ganray.config.schema import Config
from ganray.config.serialization import from_dict
from ganray.errors import UserError
from ganray.integrations.mlflow_sync import Run, find_run, first_line, store_uri


@dataclass(frozen=True)
class LoggedGenerator:
    """A generator as it came out of MLflow."""

    module: Any
    """Called with float32 (n, inputs), it gives images, float (n, C, H, W)."""
    inputs: int
    """Numbers that it takes for one image."""
    run_id: str
    """The run that logged it."""


def by_name(config: Config) -> Run | None:
    """The run that a training job with this config opened, or None.

    Raises:
        ValueError: the store cannot be reached.
    """
    uri = store_uri(config)
    with _store(uri) as client:
        experiment = client.get_experiment_by_name(config.tracking.experiment)
        if experiment is None:
            return None
        run_id = find_run(client, experiment.experiment_id, config.name)
        if run_id is None:
            return None
        return Run(uri, run_id, experiment.experiment_id, config.run_folder())


def by_id(uri: str, run_id: str) -> tuple[Run, Config]:
    """A run and the config that it was trained with.

    Raises:
        ValueError: there is no such run, or ganray did not make it, or no store.
    """
    with _store(uri) as client, TemporaryDirectory() as folder:
        experiment_id = client.get_run(run_id).info.experiment_id
        if "config.json" not in [file.path for file in client.list_artifacts(run_id)]:
            raise UserError(
                f"MLflow run {run_id} has no artifact config.json, which says what latents its"
                " generator takes; name a run that ganray trained"
            )
        path = client.download_artifacts(run_id, "config.json", folder)
        config = from_dict(json.loads(Path(path).read_text()))
        return Run(uri, run_id, experiment_id, config.run_folder()), config


def generator_of(run: Run) -> str | None:
    """The ``models:/`` URI of the newest generator that the run logged, or None.

    Raises:
        ValueError: the store cannot be reached.
    """
    with _store(run.uri) as client:
        outputs = client.get_run(run.run_id).outputs
        ids = [output.model_id for output in outputs.model_outputs] if outputs else []
        logged = [client.get_logged_model(model_id) for model_id in ids]
        whole = [model for model in logged if model.status == LoggedModelStatus.READY]
        generators = [model for model in whole if model.name == "generator"]
        if not generators:
            return None
        return max(generators, key=lambda model: model.creation_timestamp).model_uri


def load_generator(uri: str, model_uri: str) -> LoggedGenerator:
    """A generator by its ``models:/`` URI.

    Raises:
        ValueError: there is no such model, or it is none of ganray's, or not safe to load.
    """
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # also inside a pt2 archive
    with _store(uri), TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(uri)
        path = download_artifacts(model_uri, dst_path=folder)
        model = Model.load(path)
        _require_safe(model_uri, Path(path), model.flavors.get("pytorch", {}))
        takes = model.signature and model.signature.inputs
        if not (model.run_id and takes and takes.is_tensor_spec()):
            raise UserError(
                f"{model_uri} does not say which tensors it takes, or which run logged it; name a"
                " model that ganray logged"
            )
        return LoggedGenerator(load_model(path), takes.inputs[0].shape[-1], model.run_id)


def _require_safe(model_uri: str, folder: Path, flavor: dict[str, Any]) -> None:
    """Before load_model, as it imports a model's own code ahead of its check for pickles."""
    data = folder / flavor.get("model_data", "")
    if flavor.get("code") or (data / "model.pth").exists() or not (data / "model.pt2").is_file():
        raise UserError(
            f"{model_uri} is not in torch's pt2 format, or brings code of its own: loading it"
            " could run anything; log it with serialization_format='pt2', or name a checkpoint"
        )


def add(run: Run, files: Iterable[Path], folder: str) -> None:
    """Put files into a folder of the run's artifacts.

    Raises:
        ValueError: the store or the artifacts' own storage cannot be reached.
    """
    with _store(run.uri) as client:
        for file in files:
            client.log_artifact(run.run_id, str(file), folder)


@contextmanager
def _store(uri: str) -> Iterator[MlflowClient]:
    """A client; what MLflow raises meanwhile becomes one line."""
    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not path.exists():  # MLflow would make an empty one
        raise UserError(f"MLflow at {uri}: no such file; give --home or --tracking-uri")
    try:
        yield MlflowClient(tracking_uri=uri)
    except (MlflowException, OSError) as error:
        raise UserError(
            f"MLflow at {uri}: {first_line(error)}; is it there, and is --tracking-uri right?"
        ) from error
