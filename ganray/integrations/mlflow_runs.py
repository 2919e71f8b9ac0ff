"""MLflow runs: create them, find them again by name or id, write to them.

Only the driver connects to MLflow. Workers need neither the store's address nor its password, and a
killed worker leaves nothing incomplete in it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES
from mlflow.exceptions import MlflowException
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from ganray.config.schema import Config
from ganray.config.serialization import flatten, to_dict
from ganray.errors import UserError
from ganray.files import publish
from ganray.log import HIDDEN
from ganray.training.state import read_config

logger = logging.getLogger(__name__)

NAME_TAG = "ganray.name"
"""Tag by which a run is found again."""
NOTE_TAG = "mlflow.note.content"
"""Tag that MLflow shows as the description, in Markdown."""
MLFLOW_ERRORS = (MlflowException, OSError, SQLAlchemyError, sqlite3.Error)
"""Exceptions of a store that cannot be reached or rejects a request."""
LOCAL_SERVER = "http://127.0.0.1:5000"
"""Address of `mlflow ui`."""
_SQLITE = "sqlite:///"
_HOST = re.compile(r"(localhost|[\w-]+(\.[\w-]+)+|[\w.-]+:[0-9]+)(/.*)?")
"""Address of a server without its scheme."""
_HOST_NAME = re.compile(r"[\w-]+(/.*)?")
"""The same with a name only, which may also be that of a folder."""
_TAG_LIMIT = 5000  # characters that every store accepts


class StoreError(UserError):
    """The MLflow store cannot be reached, or rejects a request."""


@dataclass(frozen=True)
class Run:
    """Address of an MLflow run."""

    uri: str
    run_id: str
    experiment_id: str
    folder: Path
    """Run folder with the journal."""

    def client(self) -> MlflowClient:
        """Return a client of the run's store."""
        return MlflowClient(tracking_uri=self.uri)


@dataclass(frozen=True)
class RunContent:
    """Initial content of a run."""

    name: str
    """Name by which it is found again."""
    label: str
    """Name in MLflow's tables and legends."""
    params: Mapping[str, object]
    tags: Mapping[str, str]
    dataset: Mapping[str, str]
    """Name, digest (at most 36 characters) and path of the training images."""


def store_uri(config: Config) -> str:
    """Return tracking.uri, else $MLFLOW_TRACKING_URI, else SQLite in the home folder."""
    from_environment = os.environ.get("MLFLOW_TRACKING_URI")
    return config.tracking.uri or from_environment or f"{_SQLITE}{config.home}/mlflow.db"


def check_store(config: Config) -> None:
    """Check the address of the store, and that its experiment was not deleted.

    A server that does not answer is no error: a run starts without it. Databases are not asked, as
    MLflow would try to reach one for hours.

    Raises:
        UserError: MLflow cannot use the address, or the experiment.
    """
    uri, name = store_uri(config), config.tracking.experiment
    _check_address(uri, _source_of(uri, "tracking.uri"))
    is_file = uri.startswith(_SQLITE) and Path(uri.removeprefix(_SQLITE)).exists()
    if not (is_file or uri.startswith("http")):
        return
    with suppress(*MLFLOW_ERRORS):
        experiment = MlflowClient(tracking_uri=uri).get_experiment_by_name(name)
        if experiment is not None and experiment.lifecycle_stage == "deleted":
            command = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
            raise UserError(
                f"tracking.experiment={name}: was deleted in MLflow; restore it, with"
                f" `MLFLOW_TRACKING_URI={shlex.quote(uri)} {command}`, or name another one"
            )


def _source_of(uri: str, option: str) -> str:
    """Return what an address was given by: the environment, or the option."""
    return "$MLFLOW_TRACKING_URI" if uri == os.environ.get("MLFLOW_TRACKING_URI") else option


def _check_address(uri: str, source: str) -> None:
    """Raise UserError if MLflow cannot use an address; `source` is the option that has it."""
    scheme, separator, _ = uri.partition("://")
    if scheme in ("http", "https") or uri.startswith(("databricks", _SQLITE)):
        return
    if uri.startswith("sqlite:"):
        path = Path(uri.removeprefix("sqlite:").removeprefix("//") or "mlflow.db").absolute()
        address = shlex.quote(f"{_SQLITE}{path}")
        raise UserError(f"{source}={uri}: write it with the full path, {address}")
    user, at, address = uri.rpartition("@")
    is_address = _HOST.fullmatch(address) or (":" in user and _HOST_NAME.fullmatch(address))
    if not separator and is_address and not Path(uri).exists():
        shown = f"{HIDDEN}@{address}" if at else uri
        raise UserError(f"{source}={shown}: has no scheme; use http://{shown}")
    if not separator or scheme == "file":
        path = Path(uri.removeprefix("file:").removeprefix("//")).absolute()
        address = shlex.quote(f"{_SQLITE}{path}/mlflow.db")
        raise UserError(
            f"{source}={uri}: is a folder, in which MLflow no longer stores runs; use {address}"
        )
    try:
        make_url(uri).get_dialect().import_dbapi()
    except ModuleNotFoundError as error:
        module = str(error.name)
        package = {"psycopg2": "psycopg2-binary", "psycopg": "psycopg[binary]"}.get(module, module)
        package = {"MySQLdb": "mysqlclient"}.get(module, package)
        raise UserError(
            f"{source}={uri}: needs the Python package {module}; pip install '{package}'"
        ) from error
    except ArgumentError as error:  # also of an unknown database
        raise UserError(
            f"{source}={uri}: must be an address that MLflow knows, such as http://HOST:PORT of a"
            f" server, or {_SQLITE}/PATH/mlflow.db"
        ) from error


def run_url(run: Run) -> str:
    """Return the address of a run on its MLflow server, or on one that `mlflow ui` starts here.

    Without the type of workflow, MLflow opens its pages about language models.
    """
    server = run.uri.rstrip("/") if run.uri.startswith("http") else LOCAL_SERVER
    return (
        f"{server}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
        "?workflowType=machine_learning"
    )


def serve_command(uri: str) -> str | None:
    """Return the command that serves a store; None if it is a server."""
    if uri.startswith("http"):
        return None
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


def log_addresses(uri: str, url: str | None) -> None:
    """Log the command that serves a store, unless it is a server, and the page of a run.

    `url` is None if there is no page.
    """
    if command := serve_command(uri):
        logger.info(f"look        {command}")
    if url:
        logger.info(f"at          {url}")


@contextmanager
def open_store(config: Config) -> Iterator[tuple[MlflowClient, str]]:
    """Yield a client and the id of the config's experiment; create both if they do not exist.

    Raises:
        StoreError: The store cannot be reached or created.
    """
    uri = store_uri(config)
    try:
        with _creation_lock(uri):
            if uri.startswith(_SQLITE):
                _create_database(Path(uri.removeprefix(_SQLITE)))
            client = MlflowClient(tracking_uri=uri)
            experiment_id = _experiment_id(client, config, uri)
        yield client, experiment_id
    except MLFLOW_ERRORS as error:
        raise StoreError(
            f"{_source_of(uri, 'tracking.uri')}={uri}: {first_line(error)}; start the server, or"
            " give another --tracking.uri (or MLFLOW_TRACKING_URI)"
        ) from error


def open_run(config: Config, dataset: Mapping[str, str], tags: Mapping[str, str]) -> Run:
    """Create the run of a config, or find the run that has its name already.

    Args:
        config: Config of the run; its flat fields are the params.
        dataset: See `RunContent`.
        tags: What the config does not contain: commit, Ray job, world size, device.

    Raises:
        StoreError: The store cannot be reached or created.
    """
    content = RunContent(config.name, config.name, flatten(config), tags, dataset)
    with open_store(config) as (client, experiment_id):
        run_id = write_run(client, experiment_id, content)
        log_config(client, run_id, config)
    return Run(store_uri(config), run_id, experiment_id, config.run_folder())


def write_run(client: MlflowClient, experiment_id: str, content: RunContent) -> str:
    """Create a run, or set the run of this name to RUNNING, and return its id."""
    tags = dict(content.tags) | {
        NAME_TAG: content.name,
        "ganray.dataset": content.dataset["digest"],
    }
    run_id = find_run_id(client, experiment_id, content.name)
    if run_id is None:
        with _without_http_retries():
            run = client.create_run(experiment_id, run_name=content.label, tags=tags)
        run_id = run.info.run_id
    else:
        client.update_run(run_id, status="RUNNING")
        client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])
    if not client.get_run(run_id).data.params:  # written last, so a run with params is complete
        client.log_inputs(run_id, [_dataset_input(content.dataset)])
        params = [Param(name, str(value)) for name, value in content.params.items()]
        client.log_batch(run_id, params=params)
    return run_id


@contextmanager
def _without_http_retries() -> Iterator[None]:
    """Send each request to MLflow once.

    MLflow repeats a request whose answer was lost, and so would create a second run. Callers of
    `write_run` try again later, and find the run by its name. All other requests may be repeated:
    the store knows a point, param or tag that it has.
    """
    variable = MLFLOW_HTTP_REQUEST_MAX_RETRIES.name
    before = os.environ.get(variable)
    os.environ[variable] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def find_run_id(client: MlflowClient, experiment_id: str, name: str) -> str | None:
    """Return the id of the experiment's run of this name, or None."""
    runs = client.search_runs([experiment_id], f"tags.`{NAME_TAG}` = '{name}'", max_results=1)
    return runs[0].info.run_id if runs else None


def find_run(config: Config) -> Run | None:
    """Return the run that a training job with this config opened, or None.

    Raises:
        UserError: The store cannot be reached.
    """
    uri = store_uri(config)
    with existing_store(uri) as client:
        experiment = client.get_experiment_by_name(config.tracking.experiment)
        if experiment is None:
            return None
        run_id = find_run_id(client, experiment.experiment_id, config.name)
        if run_id is None:
            return None
        return Run(uri, run_id, experiment.experiment_id, config.run_folder())


def get_run(uri: str, run_id: str) -> tuple[Run, Config]:
    """Return a run by its id, and its config.

    Raises:
        UserError: There is no such run, ganray did not create it, or the store cannot be reached.
    """
    with existing_store(uri) as client, TemporaryDirectory() as folder:
        experiment_id = client.get_run(run_id).info.experiment_id
        if "config.json" not in [file.path for file in client.list_artifacts(run_id)]:
            raise UserError(
                f"MLflow run {run_id} has no artifact config.json, which describes its generator's"
                " latents; name a run that ganray trained"
            )
        client.download_artifacts(run_id, "config.json", folder)
        config = read_config(Path(folder))
        return Run(uri, run_id, experiment_id, config.run_folder()), config


def log_config(client: MlflowClient, run_id: str, config: Config) -> None:
    """Add the config to the run's artifacts, from where `get_run` reads it."""
    client.log_text(run_id, json.dumps(to_dict(config), indent=2), "config.json")


def log_files(run: Run, files: Iterable[Path], folder: str | None = None) -> None:
    """Add files to the run's artifacts."""
    for file in files:
        run.client().log_artifact(run.run_id, str(file), folder)


def log_summary(run: Run, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
    """Log the metrics that a finished run is compared by, and tags."""
    timestamp = int(time.time() * 1000)
    run.client().log_batch(
        run.run_id,
        metrics=[Metric(name, value, timestamp, 0) for name, value in metrics.items()],
        tags=[RunTag(name, value[:_TAG_LIMIT]) for name, value in tags.items()],
    )


def end_run(run: Run, status: str) -> None:
    """Set the final status: FINISHED, FAILED or KILLED."""
    run.client().set_terminated(run.run_id, status)


@contextmanager
def existing_store(uri: str) -> Iterator[MlflowClient]:
    """Yield a client of an existing store; raise errors of MLflow as UserError."""
    _check_address(uri, _source_of(uri, "--tracking_uri"))
    if uri.startswith(_SQLITE) and not Path(uri.removeprefix(_SQLITE)).exists():
        raise UserError(f"MLflow at {uri}: no such file; give --home or --tracking_uri")
    try:
        yield MlflowClient(tracking_uri=uri)
    except MLFLOW_ERRORS as error:
        raise UserError(
            f"MLflow at {uri}: {first_line(error)}; check that the server runs and that"
            " --tracking_uri is right"
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or its type if it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _creation_lock(uri: str) -> FileLock | nullcontext[None]:
    """Return a lock on a SQLite file: two processes that create its tables at once both fail."""
    if not uri.startswith(_SQLITE):
        return nullcontext()
    path = Path(f"{uri.removeprefix(_SQLITE)}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def _create_database(path: Path) -> None:
    """Create a database with MLflow's tables if there is none. It is complete or absent.

    MLflow could not open one again whose creation was interrupted, by a full disk for example.
    """
    if not path.exists():
        part = path.with_name(f"{path.name}.part")
        part.unlink(missing_ok=True)
        try:
            MlflowClient(tracking_uri=f"{_SQLITE}{part}")  # creates the tables
            publish(part, path)
        finally:
            part.unlink(missing_ok=True)
    # Write-ahead logging: 3.5 times as fast with 8 writers, and readers never block.
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA journal_mode=WAL")


def _experiment_id(client: MlflowClient, config: Config, uri: str) -> str:
    name = config.tracking.experiment
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return experiment.experiment_id
    # Without a server, artifacts would go to the current directory, which a Ray job deletes.
    folder = re.sub(r"[^\w.-]", "_", name).lstrip(".") or "_"  # "../.." must not leave the home
    location = f"{config.home}/mlartifacts/{folder}" if uri.startswith("sqlite:") else None
    try:
        return client.create_experiment(name, artifact_location=location)
    except MlflowException:
        experiment = client.get_experiment_by_name(name)  # another driver may have created it
        if experiment is None:
            raise
        return experiment.experiment_id


def _dataset_input(dataset: Mapping[str, str]) -> DatasetInput:
    path = dataset["path"]
    source = HTTPDatasetSource(path if "://" in path else Path(path).as_uri())
    entity = MetaDataset(source, name=dataset["name"], digest=dataset["digest"])._to_mlflow_entity()
    return DatasetInput(entity, tags=[InputTag("mlflow.data.context", "training")])
