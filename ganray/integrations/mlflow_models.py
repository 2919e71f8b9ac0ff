"""MLflow models: log a run's generator, and load it again without running anything in it.

MLflow's own format, torch.export's pt2, is a program, and loading one runs what its author put into
it. ganray therefore never loads it: the model brings a checkpoint of the generator along, which is
a config and tensors.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
import numpy as np
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.models import Model, ModelSignature
from mlflow.pytorch import log_model
from mlflow.types import Schema, TensorSpec
from torch import nn

from ganray.config.schema import Config
from ganray.errors import UserError
from ganray.integrations.mlflow_runs import Run, existing_store
from ganray.integrations.mlflow_sync import event_metrics
from ganray.training import journal
from ganray.training.checkpoints import BEST_FOLDER
from ganray.training.state import (
    CONFIG_FILE,
    STATE_FILE,
    export_generator,
    file_digest,
    generator_from_checkpoint,
    read_config,
    read_state,
)

logger = logging.getLogger(__name__)

LAST, BEST = "generator", BEST_FOLDER
"""Names of the models of a run's last checkpoint and of that with the highest coverage."""
_DIGEST_TAG = "ganray.checkpoint"
"""Tag of a model with the digest of the checkpoint's tensors."""
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
    model_id: str
    """Id of the logged model, m-..., whichever of its names it was loaded by."""


def log_generators(run: Run, checkpoint: Path) -> str:
    """Log the generators of the last checkpoint and of the best; return the URI of the last.

    The best one is logged only if it is of another step.
    """
    best = run.folder / BEST_FOLDER
    try:
        if best.is_dir() and read_state(best)["step"] != read_state(checkpoint)["step"]:
            log_generator(run, best, BEST)
    except UserError as error:
        logger.warning("%s; not sent to MLflow", error)
    return log_generator(run, checkpoint)


def log_generator(run: Run, checkpoint: Path, name: str = LAST) -> str:
    """Log a checkpoint's generator as an MLflow model and return its ``models:/`` URI.

    ``mlflow.pytorch.load_model(uri)`` loads it as a module: float32 (n, latent.size + classes) ->
    float (n, C, H, W). The inputs of a conditional generator end with the one-hot label. The model
    is shown with the collapse metrics of its step. A checkpoint that was logged is not sent again.
    """
    mlflow.set_tracking_uri(run.uri)
    digest = file_digest(checkpoint / STATE_FILE)
    for logged in _logged_models(run):
        if (logged.name, logged.tags.get(_DIGEST_TAG)) == (name, digest):
            return logged.model_uri
    with TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):  # torch.export's
        exported = export_generator(checkpoint, Path(folder))
        state = read_state(exported)
        height, width, channels = state["image_shape"]
        config = read_config(exported)
        inputs = config.latent.size + state["classes"]
        images_seen = state["step"] * config.train.batch_size  # the step of all metrics
        image = (-1, channels, height, width)
        # Without names: a named tensor reaches the model in a dict, which MLflow's scoring of
        # PyTorch models rejects.
        signature = ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, inputs))]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), image)]),
        )
        rng, client = np.random.default_rng(0), run.client()
        # Within an active run, `log_model` would ask for the history of every metric, one by one.
        model = client.create_logged_model(
            run.experiment_id, name, run.run_id, tags={_DIGEST_TAG: digest}
        )
        client.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, images_seen)])
        for event, _ in journal.read(run.folder):
            if (event["name"], event["images"]) == ("collapse", images_seen):
                # The run has these points, which MLflow does not store twice.
                client.log_batch(run.run_id, metrics=event_metrics(event, model.model_id))
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
        return LoggedGenerator(G, classes, read_config(checkpoint), run_id, str(model_id))


def newest_generator(run: Run) -> str | None:
    """Return the ``models:/`` URI of the newest generator that the run logged, or None.

    Raises:
        UserError: The store cannot be reached.
    """
    with existing_store(run.uri):
        models = [model for model in _logged_models(run) if model.name == LAST]
        newest = max(models, key=lambda model: model.creation_timestamp, default=None)
        return newest and newest.model_uri


def logged_checkpoint(run: Run, checkpoint: Path) -> str:
    """Return the ``models:/`` URI of a checkpoint's generator, which is logged if it was not.

    Raises:
        UserError: The store cannot be reached.
    """
    with existing_store(run.uri):
        digest = file_digest(checkpoint / STATE_FILE)
        logged = [m for m in _logged_models(run) if m.tags.get(_DIGEST_TAG) == digest]
        return logged[0].model_uri if logged else log_generator(run, checkpoint, "checkpoint")


def _logged_models(run: Run) -> list[LoggedModel]:
    """Return the models that the run logged completely."""
    client = run.client()
    outputs = client.get_run(run.run_id).outputs
    ids = [output.model_id for output in outputs.model_outputs] if outputs else []
    models = [client.get_logged_model(model_id) for model_id in ids]
    return [model for model in models if model.status == LoggedModelStatus.READY]
