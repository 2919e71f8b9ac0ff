"""MLflow runs: one per name, complete from the start, and found again."""

import json
import os
import shlex
import shutil
import subprocess
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from ganray.errors import UserError
from ganray.integrations import mlflow_runs
from ganray.integrations.mlflow_runs import RunContent
from tests.conftest import TrainedRun, tiny_config

DATASET = {"name": "faces", "digest": "0123456789abcdef", "path": "/data/shards"}
UNREACHABLE = "http://127.0.0.1:9"  # the discard port, which refuses connections at once


@pytest.fixture
def config(tmp_path, empty_store, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tiny_config(tmp_path)


def start(config):
    return mlflow_runs.open_run(config, DATASET, {"world_size": "2"})


def test_a_run_has_the_flat_config_the_tags_and_the_dataset(config):
    run = start(config)
    stored = run.client().get_run(run.run_id)
    assert stored.info.run_name == "tiny"
    assert stored.data.params["latent.size"] == "8"
    assert stored.data.params["optimizer.lr_G"] == "0.001"
    assert stored.data.tags["world_size"] == "2"
    assert stored.data.tags["ganray.dataset"] == DATASET["digest"]
    (dataset,) = stored.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("faces", DATASET["digest"])
    assert [file.path for file in run.client().list_artifacts(run.run_id)] == ["config.json"]


def test_a_run_is_found_by_its_name_and_by_its_id(config):
    run = start(config)
    assert start(config) == run
    assert mlflow_runs.find_run(config) == run
    assert mlflow_runs.get_run(run.uri, run.run_id) == (run, config)
    other = replace(config, name="other")
    assert mlflow_runs.find_run(other) is None
    assert start(other).run_id != run.run_id
    elsewhere = replace(config, tracking=replace(config.tracking, experiment="other"))
    assert mlflow_runs.find_run(elsewhere) is None


def test_a_run_whose_creation_was_interrupted_is_completed(config, monkeypatch):
    log_batch = MlflowClient.log_batch

    def fail_on_params(*args, **kwargs):
        if kwargs.get("params"):
            raise MlflowException("connection reset")
        log_batch(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", fail_on_params)
        with pytest.raises(ValueError, match="connection reset"):
            start(config)
    interrupted = mlflow_runs.find_run(config)
    assert start(config) == interrupted
    stored = interrupted.client().get_run(interrupted.run_id)
    assert stored.data.params["latent.size"] == "8"
    assert stored.inputs.dataset_inputs


@pytest.fixture
def losing_server(tmp_path, empty_store):
    """The address of a server that creates runs and loses the answers, and its store's client."""
    client = MlflowClient(tracking_uri=f"sqlite:///{shutil.copy(empty_store, tmp_path / 's.db')}")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path.endswith("/runs/create"):
                tags = {tag["key"]: tag["value"] for tag in body.get("tags", [])}
                client.create_run(body["experiment_id"], tags=tags)
                self.send_error(503)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", client
        server.shutdown()


def test_a_creation_whose_answer_was_lost_leaves_one_run_that_is_found_again(
    losing_server, monkeypatch
):
    """MLflow's client alone would create a run with each of its attempts."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    url, store = losing_server
    content = RunContent("faces", "faces", {"a": 1}, {}, DATASET)
    with pytest.raises(MlflowException, match="503"):
        mlflow_runs.write_run(MlflowClient(tracking_uri=url), "0", content)
    (run,) = store.search_runs(["0"])
    assert mlflow_runs.write_run(store, "0", content) == run.info.run_id
    with pytest.raises(MlflowException, match="503"):
        MlflowClient(tracking_uri=url).create_run("0")
    assert len(store.search_runs(["0"])) == 1 + 3


def test_points_and_params_that_are_sent_again_are_stored_once(config):
    run = start(config)
    points = [Metric("loss/D", 1.0, 5, 10), Metric("loss/D", 2.0, 6, 20)]
    for _ in range(2):
        run.client().log_batch(run.run_id, metrics=points, params=[Param("a", "1")])
    history = run.client().get_metric_history(run.run_id, "loss/D")
    assert [(point.step, point.value) for point in history] == [(10, 1.0), (20, 2.0)]


def test_a_run_that_ganray_did_not_create(config):
    run = start(config)
    run_id = run.client().create_run("0").info.run_id
    with pytest.raises(ValueError, match=r"has no artifact config\.json.*name a run that ganray"):
        mlflow_runs.get_run(run.uri, run_id)


def test_a_store_that_does_not_exist_is_not_created_by_reading(tmp_path):
    with pytest.raises(ValueError, match=r"no such file; give --home or --tracking_uri"):
        mlflow_runs.get_run(f"sqlite:///{tmp_path}/none.db", "0" * 32)
    assert not list(tmp_path.iterdir())


def test_an_unreachable_store_is_one_line(config, trained_run: TrainedRun):
    tracking = replace(config.tracking, uri=UNREACHABLE)
    with pytest.raises(ValueError, match=rf"^tracking.uri={UNREACHABLE}: .*another") as writing:
        start(replace(config, tracking=tracking))
    with pytest.raises(ValueError, match=rf"^MLflow at {UNREACHABLE}: .*is right$") as reading:
        mlflow_runs.get_run(UNREACHABLE, trained_run.run_id)
    assert "\n" not in str(writing.value) + str(reading.value)


def test_the_store_is_in_the_home_unless_another_is_named(config, monkeypatch):
    assert mlflow_runs.store_uri(config) == f"sqlite:///{config.home}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert mlflow_runs.store_uri(config) == "http://server:5000"
    option = replace(config, tracking=replace(config.tracking, uri="http://option:1"))
    assert mlflow_runs.store_uri(option) == "http://option:1"


def test_an_experiment_that_another_driver_created_meanwhile_is_used(config, monkeypatch):
    experiment_id = start(config).experiment_id
    answers, get = [None], MlflowClient.get_experiment_by_name
    monkeypatch.setattr(
        MlflowClient,
        "get_experiment_by_name",
        lambda self, name: answers.pop() if answers else get(self, name),
    )
    assert start(config).experiment_id == experiment_id
    assert not answers


def open_at_barrier(config, barrier, ids):
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    barrier.wait(60)
    with mlflow_runs.open_store(config) as (_, experiment_id):
        ids.put(experiment_id)


def test_two_drivers_that_start_at_once_create_one_store(tmp_path, forkserver):
    barrier, ids = forkserver.Barrier(2), forkserver.Queue()
    work = {"target": open_at_barrier, "args": (tiny_config(tmp_path / "new"), barrier, ids)}
    drivers = [forkserver.Process(**work, daemon=True) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(120)
    assert [driver.exitcode for driver in drivers] == [0, 0]
    assert ids.get(timeout=5) == ids.get(timeout=5)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("localhost:5000", "has no scheme; use http://localhost:5000"),
        ("127.0.0.1:5000/mlflow", "use http://127.0.0.1:5000/mlflow"),
        ("mlflow.example.org/x", "has no scheme; use http://mlflow.example.org/x"),
        ("sqlite:/tmp/x y.db", "write it with the full path, 'sqlite:////tmp/x y.db'"),
        ("sqlite:x.db", "write it with the full path, sqlite:////"),
        ("sqlite://x.db", "write it with the full path, sqlite:////"),
        ("./mlruns", "is a folder, in which MLflow no longer stores runs; use sqlite:////"),
        ("file:/tmp/a b", "use 'sqlite:////tmp/a b/mlflow.db'"),
        ("file:///tmp/mlruns", "use sqlite:////tmp/mlruns/mlflow.db"),
        ("mysql://user@host/db", "needs the Python package MySQLdb; pip install 'mysqlclient'"),
        ("mysql+pymysql://host/db", "needs the Python package pymysql; pip install 'pymysql'"),
        ("htp://host", "must be an address that MLflow knows, such as http://HOST:PORT"),
    ],
)
def test_addresses_that_mlflow_cannot_use_get_one_right_line(config, monkeypatch, uri, message):
    tracking = replace(config.tracking, uri=uri)
    with pytest.raises(UserError) as error:
        mlflow_runs.check_store(replace(config, tracking=tracking))
    assert str(error.value).startswith(f"tracking.uri={uri}: ")
    assert message in str(error.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError) as error:
        mlflow_runs.check_store(config)
    assert str(error.value).startswith(f"$MLFLOW_TRACKING_URI={uri}: ")
    with pytest.raises(UserError, match=r"^\$MLFLOW_TRACKING_URI="):
        mlflow_runs.get_run(uri, "0" * 32)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError, match=r"^--tracking_uri="):
        mlflow_runs.get_run(uri, "0" * 32)


@pytest.mark.parametrize("address", ["host:5000", "mlflow.example.org/x", "localhost", "host"])
def test_the_password_of_an_address_without_a_scheme_is_not_shown(config, address):
    for user in ("user:secret", "user:secret@secret", "user:sec/secret"):
        tracking = replace(config.tracking, uri=f"{user}@{address}")
        with pytest.raises(UserError) as error:
            mlflow_runs.check_store(replace(config, tracking=tracking))
        expected = f"tracking.uri=***@{address}: has no scheme; use http://***@{address}"
        assert str(error.value) == expected


def test_a_deleted_experiment_is_said_with_the_command_that_restores_it(config):
    run = start(config)
    mlflow_runs.check_store(config)
    run.client().delete_experiment(run.experiment_id)
    with pytest.raises(UserError, match=r"was deleted in MLflow; restore it, with `(.*)`") as error:
        mlflow_runs.check_store(config)
    command = str(error.value).partition("`")[2].partition("`")[0]
    variable, *words = shlex.split(command)
    name, _, value = variable.partition("=")
    subprocess.run(words, env=os.environ | {name: value}, check=True, capture_output=True)
    mlflow_runs.check_store(config)


def test_the_check_creates_no_store(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow_runs.check_store(tiny_config(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_down_does_not_keep_a_run_from_its_start(config):
    tracking = replace(config.tracking, uri=UNREACHABLE)
    mlflow_runs.check_store(replace(config, tracking=tracking))


def test_the_address_of_a_run_opens_the_pages_for_training(config):
    run = start(config)
    path = f"/#/experiments/{run.experiment_id}/runs/{run.run_id}?workflowType=machine_learning"
    assert mlflow_runs.run_url(run) == f"http://127.0.0.1:5000{path}"
    assert mlflow_runs.run_url(replace(run, uri="https://team/mlflow/")) == (
        f"https://team/mlflow{path}"
    )
    assert mlflow_runs.serve_command("sqlite:////a b/x.db") == (
        "mlflow ui --backend-store-uri 'sqlite:////a b/x.db'"
    )
    assert mlflow_runs.serve_command("https://team/mlflow") is None
