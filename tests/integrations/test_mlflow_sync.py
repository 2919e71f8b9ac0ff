"""MLflow: one run per name, every point once, whatever dies in between."""

import json
import multiprocessing
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from mlflow import MlflowClient, pytorch

from ganray.config.serialization import to_dict
from ganray.integrations import mlflow_sync
from ganray.integrations.mlflow_sync import (
    JournalSync,
    log_generator,
    open_run,
    sync_run,
)
from ganray.training.journal import Journal
from tests.conftest import tiny_config

DATASET = {"name": "faces", "digest": "0123456789abcdef", "path": "/data/shards"}


@pytest.fixture
def config(tmp_path, empty_store, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    config = tiny_config(tmp_path)
    config.run_folder().mkdir(parents=True)
    (config.run_folder() / "config.json").write_text(json.dumps(to_dict(config)))
    return config


def start(config):
    return open_run(config, DATASET, {"world_size": "2"})


def client(run):
    return MlflowClient(tracking_uri=run.uri)


def write(config, *steps):
    log = Journal(config.run_folder())
    for step in steps:
        log.metrics(step, {"D/loss": float(step), "G/loss": 1.0})
        log.image("samples", step, np.full((4, 4, 3), step, np.uint8))
    log.close()


def points(run, name="D/loss"):
    history = client(run).get_metric_history(run.run_id, name)
    return sorted((metric.step, metric.value) for metric in history)


def test_a_run_has_the_flat_config_the_tags_and_the_dataset(config):
    run = start(config)
    stored = client(run).get_run(run.run_id)
    assert stored.info.run_name == "tiny"
    assert stored.data.params["latent.size"] == "8"
    assert stored.data.params["optimizer.lr_G"] == "0.001"
    assert stored.data.tags["world_size"] == "2"
    assert stored.data.tags["ganray.dataset"] == DATASET["digest"]
    (dataset,) = stored.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("faces", DATASET["digest"])
    assert [file.path for file in client(run).list_artifacts(run.run_id)] == ["config.json"]


def test_the_same_name_finds_the_same_run_and_another_name_does_not(config):
    first = start(config)
    assert start(config).run_id == first.run_id
    other = replace(config, name="other")
    shutil.copytree(config.run_folder(), other.run_folder())
    assert start(other).run_id != first.run_id


def test_points_and_pictures_arrive_by_images_seen(config):
    run = start(config)
    write(config, 10, 20)
    assert JournalSync(run).flush()
    assert points(run) == [(10, 10.0), (20, 20.0)]
    assert pictures(run) == [10, 20]


def pictures(run):
    """Steps of the full-size pictures, sorted."""
    files = client(run).list_artifacts(run.run_id, "images")
    return sorted(int(f.path.split("+")[2]) for f in files if f.path.endswith(".png"))


def test_a_restarted_follower_sends_nothing_twice_even_without_its_bookmark(config):
    run = start(config)
    write(config, 10, 20)
    JournalSync(run).flush()
    (run.folder / "mlflow-sent.json").unlink()
    write(config, 30)
    JournalSync(run).flush()
    assert points(run) == [(10, 10.0), (20, 20.0), (30, 30.0)]
    assert pictures(run) == [10, 20, 30]


def test_each_of_two_stores_gets_the_whole_history(config, empty_store, tmp_path, monkeypatch):
    """MLFLOW_TRACKING_URI was set in the second of three shells."""
    steps = {"one": (10, 20), "two": (30, 40), "one again": (50,)}
    shutil.copy(empty_store, tmp_path / "other.db")
    for shell, fresh in steps.items():
        if shell == "two":
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
        else:
            monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run = start(config)
        write(config, *fresh)
        assert JournalSync(run).flush()
        written = list(range(10, fresh[-1] + 1, 10))
        assert [step for step, _ in points(run)] == written, shell
        assert pictures(run) == written, shell


def test_a_store_that_was_deleted_gets_the_whole_history_again(config, empty_store):
    write(config, 10, 20)
    JournalSync(start(config)).flush()
    shutil.copy(empty_store, config.home / "mlflow.db")
    run = start(config)
    write(config, 30)
    JournalSync(run).flush()
    assert points(run) == [(10, 10.0), (20, 20.0), (30, 30.0)]
    assert pictures(run) == [10, 20, 30]


def test_the_bookmark_says_whose_it_is_but_no_password(config):
    run = start(config)
    away = replace(run, uri="http://me:secret@127.0.0.1:9")
    assert JournalSync(away)._whose == {"uri": "http://127.0.0.1:9", "run_id": run.run_id}
    write(config, 10)
    JournalSync(run).flush()
    mark = json.loads((run.folder / "mlflow-sent.json").read_text())
    size = (run.folder / "journal.jsonl").stat().st_size
    assert mark == {"uri": run.uri, "run_id": run.run_id, "offset": size}
    assert JournalSync(run)._offset == size
    assert JournalSync(away)._offset == 0


def test_a_follower_thread_sends_while_the_journal_grows(config):
    run = start(config)
    with JournalSync(run, poll_s=0.05) as follower:
        write(config, 10)
        deadline = time.monotonic() + 20
        while not points(run) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert points(run) == [(10, 10.0)]
        assert follower.flush()


def test_a_dead_server_stops_nothing_and_loses_nothing(config, capsys):
    run = start(config)
    write(config, 10)
    dead = replace(run, uri="http://127.0.0.1:9")  # the discard port: refused at once
    with JournalSync(dead, poll_s=0.05) as follower:
        assert not follower.flush(timeout_s=0.1)
    assert "trying again" in capsys.readouterr().out
    JournalSync(run).flush()
    assert points(run) == [(10, 10.0)]


def test_a_server_that_is_gone_at_the_end_is_one_line_and_is_not_asked_again(
    config, capsys, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run, sent = start(config), []
    dead = replace(run, uri="http://127.0.0.1:9")
    with sync_run(dead, poll_s=60) as follower:  # the journal is empty: all of it was sent
        assert follower.deliver(lambda: mlflow_sync.log_report(dead, {"x": 1.0}, {})) is None
        assert follower.deliver(lambda: sent.append("more")) is None
    assert not sent
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("WARNING: MLflow at http://127.0.0.1:9 is unreachable (API request to ")
    assert line.endswith(f"{run.folder} contains all results; the same command sends the rest")
    with sync_run(run) as follower:
        assert follower.deliver(lambda: "sent") == "sent"
    assert client(run).get_run(run.run_id).info.status == "FINISHED"


def test_a_server_that_is_gone_before_the_status_ends_no_run_in_a_traceback(
    config, capsys, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with sync_run(replace(start(config), uri="http://127.0.0.1:9"), poll_s=60):
        pass
    assert "is unreachable" in capsys.readouterr().out


def test_what_arrived_is_not_sent_again_when_only_the_answer_was_lost(config, monkeypatch):
    run = start(config)
    write(config, 10, 20)
    follower, send, lost = JournalSync(run), MlflowClient.log_batch, []

    def losing(*args, **kwargs):
        send(*args, **kwargs)
        if kwargs.get("metrics") and len(lost) < 1:
            lost.append(True)
            raise OSError("connection reset")

    monkeypatch.setattr(MlflowClient, "log_batch", losing)
    assert follower.flush()
    assert lost
    assert points(run) == [(10, 10.0), (20, 20.0)]


def test_a_store_that_cannot_be_reached_is_one_clear_line(config):
    away = replace(config, tracking=replace(config.tracking, uri="http://127.0.0.1:9"))
    with pytest.raises(ValueError, match=r"tracking.uri=http://127.0.0.1:9: .*another") as error:
        start(away)
    assert "\n" not in str(error.value)


def test_an_experiment_that_another_driver_made_meanwhile_is_taken(config, monkeypatch):
    experiment_id = start(config).experiment_id
    answers = [None]
    ask = MlflowClient.get_experiment_by_name

    def asked(self, name):
        return answers.pop() if answers else ask(self, name)

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", asked)
    assert start(config).experiment_id == experiment_id
    assert not answers


def opened_at_once(config, together, ids):
    together.wait(60)
    with mlflow_sync.open_store(config) as (_, experiment_id):
        ids.put(experiment_id)


def test_two_that_start_at_once_make_one_store(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    spawn = multiprocessing.get_context("spawn")
    together, ids = spawn.Barrier(2), spawn.Queue()
    both = [
        spawn.Process(
            target=opened_at_once, args=(tiny_config(tmp_path / "new"), together, ids), daemon=True
        )
        for _ in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert ids.get(timeout=5) == ids.get(timeout=5)


@pytest.mark.parametrize(
    ("stop", "status"),
    [
        (None, "FINISHED"),
        (ValueError, "FAILED"),
        (KeyboardInterrupt, "KILLED"),
        (SystemExit, "KILLED"),
    ],
)
def test_the_final_status_tells_how_it_ended(config, stop, status):
    run = start(config)

    def work():
        with sync_run(run):
            write(config, 10)
            if stop:
                raise stop

    if stop:
        with pytest.raises(stop):
            work()
    else:
        work()
    assert client(run).get_run(run.run_id).info.status == status
    assert points(run) == [(10, 10.0)]


def test_the_store_is_in_the_home_unless_told_otherwise(config, monkeypatch):
    assert mlflow_sync.store_uri(config) == f"sqlite:///{config.home}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert mlflow_sync.store_uri(config) == "http://server:5000"
    given = replace(config, tracking=replace(config.tracking, uri="http://mine:1"))
    assert mlflow_sync.store_uri(given) == "http://mine:1"


def test_the_logged_generator_loads_and_draws_the_same_images(config):
    run = start(config)
    torch.manual_seed(0)
    generator = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Unflatten(1, (3, 2, 2)))
    uri = log_generator(run, generator, 8, (2, 2, 3))
    loaded = pytorch.load_model(uri)
    z = torch.randn(5, 8)  # another batch size than the example's
    torch.testing.assert_close(loaded(z), generator(z))
    assert client(run).get_run(run.run_id).info.status == "FINISHED"
