"""MLflow: the driver opens a run, follows the journal into it from a thread, and closes it.

The driver is the only process that talks to it: workers need neither its address nor its
password, processes that race on a fresh SQLite file cannot crash it, and a killed worker takes
nothing along. A run is found again by its name.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pytorch import log_model
from mlflow.types import Schema, TensorSpec
from PIL import Image

from ganray.config.schema import Config
from ganray.config.serialization import flatten, to_dict
from ganray.errors import UserError
from ganray.training import journal

logger = logging.getLogger(__name__)
T = TypeVar("T")

NAME_TAG = "ganray.name"
"""What a run is found again by."""
COLLAPSE_WARNING_TAG = "ganray.collapse_warning"
"""Tag with the last collapse warning of a run."""
REFUSED = (MlflowException, OSError)
"""What MLflow raises when it takes nothing, for now."""
_SQLITE = "sqlite:///"
_BATCH = 1000  # MLflow's limit of metrics in one request


@dataclass(frozen=True)
class Run:
    """Enough to write to one MLflow run."""

    uri: str
    run_id: str
    experiment_id: str
    folder: Path
    """Run folder with the journal."""


def store_uri(config: Config) -> str:
    """tracking.uri, else $MLFLOW_TRACKING_URI, else SQLite in the home folder."""
    from_environment = os.environ.get("MLFLOW_TRACKING_URI")
    return config.tracking.uri or from_environment or f"sqlite:///{config.home}/mlflow.db"


def open_run(config: Config, dataset: Mapping[str, str], tags: Mapping[str, str]) -> Run:
    """Create the experiment and the run, or find the run that has this name already.

    Args:
        config: its flat fields become the run's params.
        dataset: name, digest (at most 36 characters) and path of the images, for the lineage.
        tags: what the config does not say: commit, Ray job, world size, device.

    Raises:
        ValueError: the store cannot be reached or made.
    """
    with open_store(config) as (client, experiment_id):
        run_id = find_run(client, experiment_id, config.name)
        content = RunContent(config.name, config.name, flatten(config), tags)
        run_id = write_run(client, experiment_id, run_id, content, dataset)
        log_config(client, run_id, config)
    return Run(store_uri(config), run_id, experiment_id, config.run_folder())


@contextmanager
def open_store(config: Config) -> Iterator[tuple[MlflowClient, str]]:
    """A client, and the id of the config's experiment, which is made if need be.

    Raises:
        ValueError: the store cannot be reached or made.
    """
    uri = store_uri(config)
    try:
        with _alone_with(uri):
            client = MlflowClient(tracking_uri=uri)  # makes a fresh file's tables
            if uri.startswith(_SQLITE):
                _prefer_wal(uri)
            experiment_id = _experiment(client, config, uri)
        yield client, experiment_id
    except REFUSED as error:
        raise UserError(
            f"tracking.uri={uri}: {first_line(error)}; start the server, or give another"
            " --tracking.uri (or MLFLOW_TRACKING_URI)"
        ) from error


@dataclass(frozen=True)
class RunContent:
    """What a run is opened with."""

    name: str
    """By which it is found again."""
    label: str
    """Its name in MLflow's tables and legends."""
    params: Mapping[str, object]
    tags: Mapping[str, str]


def write_run(
    client: MlflowClient,
    experiment_id: str,
    run_id: str | None,
    content: RunContent,
    dataset: Mapping[str, str],
) -> str:
    """Create the run, or set the one of this id running again; returns its id."""
    tags = dict(content.tags) | {NAME_TAG: content.name, "ganray.dataset": dataset["digest"]}
    if run_id is None:
        run_id = client.create_run(experiment_id, run_name=content.label, tags=tags).info.run_id
        is_whole = False
    else:
        client.update_run(run_id, status="RUNNING")
        client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])
        is_whole = bool(client.get_run(run_id).data.params)
    if not is_whole:  # params come last: a run that has some was not cut off here
        client.log_inputs(run_id, [_dataset_input(dataset)])
        params = [Param(name, str(value)) for name, value in content.params.items()]
        client.log_batch(run_id, params=params)
    return run_id


def log_config(client: MlflowClient, run_id: str, config: Config) -> None:
    """Put the config among the run's artifacts: with it a run by id is evaluated or explored."""
    client.log_text(run_id, json.dumps(to_dict(config), indent=2), "config.json")


@contextmanager
def sync_run(run: Run, poll_s: float = 2.0) -> Iterator[JournalSync]:
    """Around the work: send the journal as it grows, at the end the rest and the final status."""
    follower = JournalSync(run, poll_s)
    try:
        with follower:
            yield follower
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, or SIGTERM from `ray job stop`
        follower.patience_s = 1.0  # three seconds later comes SIGKILL
        _finish(run, follower, "KILLED")
        raise
    except BaseException:
        _finish(run, follower, "FAILED")
        raise
    _finish(run, follower, "FINISHED")


def _finish(run: Run, follower: JournalSync, status: str) -> None:
    client = MlflowClient(tracking_uri=run.uri)
    follower.deliver(lambda: client.set_terminated(run.run_id, status))


def log_file(run: Run, path: Path, folder: str | None = None) -> None:
    """Put a file among the run's artifacts."""
    MlflowClient(tracking_uri=run.uri).log_artifact(run.run_id, str(path), folder)


def log_report(run: Run, values: Mapping[str, float], tags: Mapping[str, str]) -> None:
    """The figures that a finished run is compared by, and what they come to in words."""
    at = int(time.time() * 1000)
    points = [Metric(name, value, at, 0) for name, value in values.items()]
    named = [RunTag(name, value[:5000]) for name, value in tags.items()]
    MlflowClient(tracking_uri=run.uri).log_batch(run.run_id, metrics=points, tags=named)


def log_generator(run: Run, generator: Any, inputs: int, image_shape: tuple[int, ...]) -> str:
    """Log the generator as an MLflow model, without pickle; returns its ``models:/`` URI.

    Load it with ``mlflow.pytorch.load_model(uri)``: float32 (n, inputs) -> images. The inputs are
    z, and beside it the one-hot label of a conditional generator.
    """
    height, width, channels = image_shape
    example = np.random.default_rng(0).standard_normal((4, inputs), dtype=np.float32)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, inputs), "z")]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, channels, height, width), "image")]),
    )
    mlflow.set_tracking_uri(run.uri)
    with warnings.catch_warnings(action="ignore"):  # torch.export's remarks on its own format
        mlflow.start_run(run_id=run.run_id)
        try:
            info = log_model(
                generator,
                name="generator",
                signature=signature,
                input_example=example,
                serialization_format="pt2",
                pip_requirements=["torch", "numpy"],
            )
        finally:
            mlflow.end_run()
    return info.model_uri


class JournalSync:
    """Sends the run folder's journal to MLflow from a thread, and keeps trying.

    How far it got, and in which run of which store, stands in `mlflow-sent.json` beside the
    journal, so a driver that is started again goes on from there. In another store, or after a
    send that was cut off half-way, what MLflow has is asked for and not sent twice.
    """

    patience_s = 30.0
    """How long `deliver` tries to send the journal."""

    def __init__(self, run: Run, poll_s: float = 2.0) -> None:
        self._run, self._poll_s = run, poll_s
        self._client = MlflowClient(tracking_uri=run.uri)
        self._bookmark = run.folder / "mlflow-sent.json"
        self._whose = {"uri": _without_password(run.uri), "run_id": run.run_id}
        self._offset = self._read_offset()
        self._known: dict[str, set[int]] = {}
        self._gave_up = False
        self._sending = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)

    def __enter__(self) -> JournalSync:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Send what the journal holds now; False if MLflow would not take it in time."""
        deadline = time.monotonic() + timeout_s
        while not self._try():
            if time.monotonic() > deadline:
                return False
            time.sleep(1.0)
        return True

    def deliver(self, send: Callable[[], T]) -> T | None:
        """Send the rest of the journal, then what `send` does; None if MLflow would not take it.

        That is said in one line, and from then on MLflow is left alone: it had its time, and the
        next driver of this run sends all of it.
        """
        if self._gave_up:
            return None
        why = ""
        try:
            if self.flush(self.patience_s):
                return send()
        except REFUSED as error:
            why = f" ({first_line(error)})"
        self._gave_up = True
        logger.warning(
            "MLflow at %s is unreachable%s: %s contains all results; the same command sends"
            " the rest",
            self._run.uri,
            why,
            self._run.folder,
        )
        return None

    def _follow(self) -> None:
        wait = self._poll_s
        while not self._stop.wait(wait):
            # A dead server is asked less and less often; the journal keeps everything meanwhile.
            wait = self._poll_s if self._try() else min(2 * wait, 60.0)

    def send(self) -> None:
        """Send what is new, once.

        Raises:
            MlflowException, OSError: MLflow would not take it; the next call begins with it.
        """
        with self._sending:
            try:
                self._send_new_events()
            except REFUSED:
                self._known = {}  # the answer may be what got lost: ask again what has arrived
                raise

    def _try(self) -> bool:
        try:
            self.send()
        except REFUSED as error:
            logger.warning("MLflow at %s: %s; trying again", self._run.uri, first_line(error))
            return False
        return True

    def _send_new_events(self) -> None:
        events = list(journal.read(self._run.folder, self._offset))
        if not events:
            return
        points: list[Metric] = []
        for event, after in events:
            is_new, is_picture = not self._was_sent(event), "values" not in event
            if is_new and is_picture:
                self._send_image(event)
            elif is_new:
                points += _points(event)
                if event.get("warning"):
                    self._client.set_tag(self._run.run_id, COLLAPSE_WARNING_TAG, event["warning"])
            if (is_new and is_picture) or len(points) >= _BATCH // 2 or after == events[-1][1]:
                self._client.log_batch(self._run.run_id, metrics=points)
                points = []
                self._offset = after
                self._bookmark.write_text(json.dumps(self._whose | {"offset": after}))

    def _read_offset(self) -> int:
        try:
            mark = json.loads(self._bookmark.read_text())
        except (FileNotFoundError, ValueError):
            return 0
        return mark["offset"] if mark.items() >= self._whose.items() else 0

    def _was_sent(self, event: journal.Event) -> bool:
        """Whether MLflow had it when this kind of event was first asked for."""
        kind = event["name"]
        if kind not in self._known:
            ask = self._sent_points if "values" in event else self._sent_pictures
            self._known[kind] = ask(event)
        return event["images"] in self._known[kind]

    def _sent_points(self, event: journal.Event) -> set[int]:
        one = next(iter(event["values"]))
        return {m.step for m in self._client.get_metric_history(self._run.run_id, one)}

    def _sent_pictures(self, event: journal.Event) -> set[int]:
        """Those whose thumbnail is there, which `log_image` sends last."""
        name = re.compile(rf"images/{event['name']}\+step\+(\d+)\+.*compressed\.webp")
        files = self._client.list_artifacts(self._run.run_id, "images")
        return {int(found[1]) for file in files if (found := name.fullmatch(file.path))}

    def _send_image(self, event: journal.Event) -> None:
        image = np.asarray(Image.open(self._run.folder / event["path"]))
        self._client.log_image(
            self._run.run_id, image, key=event["name"], step=event["images"], synchronous=True
        )


def _points(event: journal.Event) -> list[Metric]:
    at = int(event["time"] * 1000)
    return [Metric(k, v, at, event["images"]) for k, v in event["values"].items()]


def _without_password(uri: str) -> str:
    return re.sub("//[^/@]*@", "//", uri)


@contextmanager
def _alone_with(uri: str) -> Iterator[None]:
    """While a file is opened: MLflow's migrations crash each other where two make its tables."""
    if not uri.startswith(_SQLITE):
        yield
        return
    path = Path(f"{uri.removeprefix(_SQLITE)}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _prefer_wal(uri: str) -> None:
    """Write-ahead logging: 3.5 times as fast with several writers, and readers never block."""
    with sqlite3.connect(uri.removeprefix(_SQLITE)) as database:
        database.execute("PRAGMA journal_mode=WAL")


def _experiment(client: MlflowClient, config: Config, uri: str) -> str:
    name = config.tracking.experiment
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    # Without a server, artifacts would land in the current directory, which a job loses.
    local = f"{config.home}/mlartifacts/{name}" if uri.startswith("sqlite:") else None
    try:
        return client.create_experiment(name, artifact_location=local)
    except MlflowException:
        found = client.get_experiment_by_name(name)  # another driver was quicker
        if found is None:
            raise
        return found.experiment_id


def find_run(client: MlflowClient, experiment_id: str, name: str) -> str | None:
    """The id of the experiment's run that has this name."""
    found = client.search_runs([experiment_id], f"tags.`{NAME_TAG}` = '{name}'", max_results=1)
    return found[0].info.run_id if found else None


def _dataset_input(dataset: Mapping[str, str]) -> DatasetInput:
    path = dataset["path"]
    source = HTTPDatasetSource(path if "://" in path else Path(path).as_uri())
    meta = MetaDataset(source, name=dataset["name"], digest=dataset["digest"])
    context = InputTag("mlflow.data.context", "training")
    return DatasetInput(meta._to_mlflow_entity(), tags=[context])


def first_line(error: Exception) -> str:
    """What an exception says, for a message of one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
