"""MLflow models: log a run's generator, and load it again without running anything in it.

MLflow's own format, torch.export's pt2, is a program, and loading one runs what its author put into
it. ganray therefore never loads it: the model brings a checkpoint of the generator along, which is
a config and tensors.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
import numpy as np
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.models import Model, ModelSignature
from mlflow.pytorch import log_model
from mlflow.types import Schema, TensorSpec
from torch import nn

from ganray.config.schema import Config
from ganray.errors import UserError
from ganray.integrations.mlflow_runs import Run, existing_store
from ganray.training.state import (
    CONFIG_FILE,
    STATE_FILE,
    export_generator,
    generator_from_checkpoint,
    read_config,
    read_state,
)

_CHECKPOINT = "extra_files"
"""Folder of a model where MLflow stores files that are not its own."""


@dataclass(frozen=True)
class LoggedGenerator:
    """A generator from MLflow."""

    G: nn.Module
    """float32 (n, latent.size + classes) -> float (n, C, H, W)."""
    classes: int
    """Classes of a conditional generator; 0: unconditional."""
    config: Config
    run_id: str
    """Run that logged it."""


def log_generator(run: Run, checkpoint: Path) -> str:
    """Log a checkpoint's generator as an MLflow model and return its ``models:/`` URI.

    ``mlflow.pytorch.load_model(uri)`` loads it as a module: float32 (n, latent.size + classes) ->
    float (n, C, H, W). The inputs of a conditional generator end with the one-hot label.
    """
    mlflow.set_tracking_uri(run.uri)
    with TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):  # torch.export's
        exported = export_generator(checkpoint, Path(folder))
        state = read_state(exported)
        height, width, channels = state["image_shape"]
        inputs = read_config(exported).latent.size + state["classes"]
        image = (-1, channels, height, width)
        signature = ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, inputs), "z")]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), image, "image")]),
        )
        rng, client = np.random.default_rng(0), run.client()
        # Within an active run, `log_model` would ask for the history of every metric, one by one.
        model = client.create_logged_model(run.experiment_id, "generator", run.run_id)
        client.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, state["step"])])
        info = log_model(
            generator_from_checkpoint(exported),
            model_id=model.model_id,
            signature=signature,
            input_example=rng.standard_normal((4, inputs), dtype=np.float32),
            serialization_format="pt2",
            extra_files=[f"{folder}/{name}" for name in (CONFIG_FILE, STATE_FILE)],
            pip_requirements=["torch", "numpy"],
        )
    return info.model_uri


def load_generator(uri: str, model_uri: str) -> LoggedGenerator:
    """Load a generator by its ``models:/`` URI.

    Raises:
        UserError: There is no such model, ganray did not log it, or the store cannot be reached.
    """
    with existing_store(uri) as client, TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(uri)
        path = download_artifacts(model_uri, dst_path=folder)
        model_id, checkpoint = Model.load(path).model_id, Path(path) / _CHECKPOINT
        run_id = client.get_logged_model(model_id).source_run_id if model_id else None
        files = (checkpoint / CONFIG_FILE, checkpoint / STATE_FILE)
        if run_id is None or not all(file.is_file() for file in files):
            raise UserError(
                f"{model_uri} has no {_CHECKPOINT}/{CONFIG_FILE} and {STATE_FILE}, from which"
                " ganray rebuilds a generator; it never loads programs, which could run anything;"
                " name a model that ganray logged, or a checkpoint"
            )
        classes = read_state(checkpoint)["classes"]
        G = generator_from_checkpoint(checkpoint)
        return LoggedGenerator(G, classes, read_config(checkpoint), run_id)


def newest_generator(run: Run) -> str | None:
    """Return the ``models:/`` URI of the newest generator that the run logged, or None.

    Raises:
        UserError: The store cannot be reached.
    """
    with existing_store(run.uri) as client:
        outputs = client.get_run(run.run_id).outputs
        ids = [output.model_id for output in outputs.model_outputs] if outputs else []
        models = [client.get_logged_model(model_id) for model_id in ids]
        generators = [
            model
            for model in models
            if model.name == "generator" and model.status == LoggedModelStatus.READY
        ]
        newest = max(generators, key=lambda model: model.creation_timestamp, default=None)
        return newest and newest.model_uri
