"""Journals reach MLflow: each point once, whatever fails meanwhile."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from dataclasses import replace

import numpy as np
import pytest
from mlflow import MlflowClient

from ganray.config.serialization import to_dict
from ganray.integrations import mlflow_sync
from ganray.integrations.mlflow_runs import log_summary, open_run
from ganray.integrations.mlflow_sync import JournalSync, sync_run
from ganray.training.journal import Journal
from ganray.training.run_folder import RunFolder
from tests.conftest import tiny_config, wait_until

DATASET = {"name": "faces", "digest": "0123456789abcdef", "path": "/data/shards"}
UNREACHABLE = "http://127.0.0.1:9"  # the discard port, which refuses connections at once


@pytest.fixture
def config(tmp_path, empty_store, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    config = tiny_config(tmp_path)
    config.run_folder().mkdir(parents=True)
    (config.run_folder() / "config.json").write_text(json.dumps(to_dict(config)))
    return config


@pytest.fixture
def run(config):
    return start(config)


def start(config):
    return open_run(config, DATASET, {})


def journal_sync(run, end=lambda status: None):
    sync = JournalSync(run.uri, run.folder, end, patience_s=30, poll_s=0.05)
    sync.follow("tiny", lambda: run)
    return sync


def send_all(run):
    """Send what MLflow lacks; return whether it has everything."""
    return journal_sync(run).flush_and_call(lambda: True)


def started_sync(run, poll_s=60.0):
    return sync_run(run.uri, run.folder, lambda: run, poll_s=poll_s)


def write(config, *steps):
    journal = Journal(RunFolder(config.run_folder()))
    for step in steps:
        journal.metrics(step, {"loss/D": float(step), "loss/G": 1.0})
        journal.image("samples", step, np.full((4, 4, 3), step, np.uint8))


def points(run, name="loss/D"):
    history = run.client().get_metric_history(run.run_id, name)
    return sorted((metric.step, metric.value) for metric in history)


def images(run):
    """Return the steps of the full-size images, sorted."""
    files = run.client().list_artifacts(run.run_id, "images")
    return sorted(int(f.path.split("+")[2]) for f in files if f.path.endswith(".png"))


def status(run):
    return run.client().get_run(run.run_id).info.status


def test_points_and_images_are_sent_at_their_number_of_images_seen(config, run):
    write(config, 10, 20)
    assert send_all(run)
    assert points(run) == [(10, 10.0), (20, 20.0)]
    assert images(run) == [10, 20]


def test_a_restart_sends_nothing_twice_even_without_the_saved_position(config, run):
    write(config, 10, 20)
    assert send_all(run)
    (run.folder / "mlflow-sent.json").unlink()
    write(config, 30)
    assert send_all(run)
    assert points(run) == [(10, 10.0), (20, 20.0), (30, 30.0)]
    assert images(run) == [10, 20, 30]


def test_each_of_two_stores_gets_the_whole_history(config, empty_store, tmp_path, monkeypatch):
    """MLFLOW_TRACKING_URI was set in the second of three shells."""
    steps = {"one": (10, 20), "two": (30, 40), "one again": (50,)}
    shutil.copy(empty_store, tmp_path / "other.db")
    for shell, new in steps.items():
        if shell == "two":
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
        else:
            monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run = start(config)
        write(config, *new)
        assert send_all(run)
        written = list(range(10, new[-1] + 1, 10))
        assert [step for step, _ in points(run)] == written, shell
        assert images(run) == written, shell


def test_a_store_that_was_deleted_gets_the_whole_history_again(config, empty_store):
    write(config, 10, 20)
    assert send_all(start(config))
    shutil.copy(empty_store, config.home / "mlflow.db")
    run = start(config)
    write(config, 30)
    assert send_all(run)
    assert points(run) == [(10, 10.0), (20, 20.0), (30, 30.0)]
    assert images(run) == [10, 20, 30]


def test_a_store_that_was_restored_from_an_older_copy_gets_what_it_lacks(config, run):
    write(config, 10)
    assert send_all(run)
    shutil.copy(config.home / "mlflow.db", config.home / "copy.db")
    write(config, 20)
    assert send_all(run)
    shutil.copy(config.home / "copy.db", config.home / "mlflow.db")
    write(config, 30)
    assert send_all(start(config))
    assert points(run) == [(10, 10.0), (20, 20.0), (30, 30.0)]
    assert images(run) == [10, 20, 30]  # artifacts are not in the database


def test_the_saved_position_names_the_run_and_contains_no_password(config, run):
    write(config, 10)
    assert send_all(run)
    position = json.loads((run.folder / "mlflow-sent.json").read_text())
    size = (run.folder / "journal.jsonl").stat().st_size
    assert position.pop("last") == ["loss/G", 10]
    assert position == {"uri": run.uri, "run_id": run.run_id, "offset": size}
    with_password = replace(run, uri=f"{run.uri}?at=http://me:secret@host")
    assert send_all(with_password)
    assert "secret" not in (run.folder / "mlflow-sent.json").read_text()


def test_the_thread_sends_while_the_journal_grows(config, run):
    ended = []
    with journal_sync(run, ended.append):
        write(config, 10)
        wait_until(lambda: points(run) == [(10, 10.0)])
    assert ended == ["FINISHED"]


def test_an_unreachable_server_stops_nothing_and_loses_nothing(config, run, capsys):
    write(config, 10)
    sync = journal_sync(replace(run, uri=UNREACHABLE))
    for _ in range(2):
        sync.send_once(30)
    assert points(run) == []
    assert capsys.readouterr().out.count("trying again") == 1
    assert send_all(run)
    assert points(run) == [(10, 10.0)]


def test_a_server_that_is_gone_at_the_end_is_reported_once_and_not_asked_again(
    config, run, capsys, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    unreachable, calls = replace(run, uri=UNREACHABLE), []
    with started_sync(unreachable) as sync:  # the journal is empty, so there is no request
        assert sync.flush_and_call(lambda: log_summary(unreachable, {"x": 1.0}, {})) is None
        assert sync.flush_and_call(lambda: calls.append("more")) is None
    assert not calls
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"WARNING: MLflow at {UNREACHABLE} is unreachable (API request to ")
    assert line.endswith(f"{run.folder} contains all results; the same command sends the rest")
    with started_sync(run) as sync:
        assert sync.flush_and_call(lambda: "sent") == "sent"
    assert status(run) == "FINISHED"


@pytest.mark.parametrize("stop", [None, KeyboardInterrupt])
def test_a_server_that_is_gone_before_the_final_status_causes_no_traceback(
    run, capsys, monkeypatch, stop
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    try:
        with started_sync(replace(run, uri=UNREACHABLE)):
            if stop:
                raise stop
    except KeyboardInterrupt:
        assert stop
    assert "is unreachable" in capsys.readouterr().out


def test_a_point_whose_answer_was_lost_is_not_sent_again(config, run, monkeypatch):
    write(config, 10, 20)
    log_batch, lost = MlflowClient.log_batch, []

    def lose_first_answer(*args, **kwargs):
        log_batch(*args, **kwargs)
        if kwargs.get("metrics") and not lost:
            lost.append(True)
            raise OSError("connection reset")

    monkeypatch.setattr(MlflowClient, "log_batch", lose_first_answer)
    assert send_all(run)
    assert lost
    assert points(run) == [(10, 10.0), (20, 20.0)]


def test_a_run_that_fails_to_be_sent_does_not_hold_up_the_others(config, run):
    """A spoilt image, say."""

    def fail():
        raise OSError("no such run")

    sync, finished = JournalSync(run.uri, run.folder, print), []
    sync.follow("spoilt", fail)
    sync.follow("tiny", lambda: run)
    write(config, 10)
    sync.finish("tiny", finished.append)
    for _ in range(2):
        with pytest.raises(OSError, match="no such run"):
            sync.send()
    assert finished == [run]
    assert points(run) == [(10, 10.0)]


def test_a_run_that_is_followed_again_while_it_is_finished_stays_followed(config, run):
    sync, opened = JournalSync(run.uri, run.folder, print), []

    def open_run():
        opened.append(True)
        return run

    sync.follow("tiny", open_run)
    sync.finish("tiny", lambda _: sync.follow("tiny", open_run))
    sync.send()
    assert sync.unfinished() == []
    sync.send()
    assert sync.unfinished() == [run]
    assert len(opened) == 2  # so that its status is RUNNING again


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (None, "FINISHED"),
        (ValueError, "FAILED"),
        (KeyboardInterrupt, "KILLED"),
        (SystemExit, "KILLED"),
    ],
)
def test_the_final_status_follows_from_how_the_block_ends(config, run, stop, expected):
    def work():
        with started_sync(run, poll_s=0.01):
            write(config, 10)
            time.sleep(0.5)
            if stop:
                raise stop

    if stop:
        with pytest.raises(stop):
            work()
    else:
        work()
    assert status(run) == expected
    assert points(run) == [(10, 10.0)]


def test_a_store_that_is_down_at_the_start_gets_everything_when_it_is_up(config, tmp_path, capsys):
    blocked = tmp_path / "blocked"
    blocked.write_text("")  # a file in place of the store's folder
    uri = f"sqlite:///{blocked}/mlflow.db"
    config = replace(config, tracking=replace(config.tracking, uri=uri))
    with sync_run(uri, config.run_folder(), lambda: start(config), poll_s=60) as sync:
        write(config, 10)
        assert sync.unfinished() == []
        blocked.unlink()
        blocked.mkdir()
        shutil.copy(tmp_path / "mlflow.db", blocked)
        assert sync.flush_and_call(lambda: "sent") == "sent"
        (run,) = sync.unfinished()
    assert not sync.has_given_up
    assert "trying again" in capsys.readouterr().out
    assert status(run) == "FINISHED"
    assert points(run) == [(10, 10.0)]


@pytest.fixture
def silent_server():
    """The URL of a server that accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("stop", [None, SystemExit])
def test_a_server_that_never_answers_holds_the_end_of_a_job_for_its_patience(
    config, silent_server, capsys, monkeypatch, stop
):
    monkeypatch.setattr(mlflow_sync, "_START_S", 1.0)
    monkeypatch.setattr(mlflow_sync, "_PROGRESS_S", 0.5)
    config = replace(config, tracking=replace(config.tracking, uri=silent_server))
    begin = time.monotonic()
    with (
        contextlib.suppress(SystemExit),
        sync_run(silent_server, config.run_folder(), lambda: start(config), 2.0) as sync,
    ):
        write(config, 10)  # training goes on
        if stop:
            raise stop
        for _ in range(9):
            sync.flush_and_call(list)
    assert time.monotonic() - begin < 20  # a single request takes 10 s, and there are dozens
    output = capsys.readouterr().out
    if not stop:
        assert sync.has_given_up
        assert (
            output.count("(not done within tracking.patience=2 s; a slow server needs more): ") == 1
        )
        assert "waiting for MLflow (up to 1 s)" in output


@pytest.mark.parametrize("size", ["1m", "3m"])
def test_a_full_disk_under_the_store_stops_nothing_and_loses_nothing(
    config, mount_disk, capfd, size
):
    """1 MiB is too small for MLflow's tables, 3 MiB for all points."""
    disk = mount_disk(size)
    uri = f"sqlite:///{disk}/mlflow.db"
    config = replace(config, tracking=replace(config.tracking, uri=uri))
    steps = range(10, 20_010, 10)
    lines = [
        {"name": "metrics", "images": step, "time": 1.0}
        | {"values": {f"loss/{name}": float(step) for name in ("D", "G", "r1")}}
        for step in steps
    ]
    with (config.run_folder() / "journal.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    with sync_run(uri, config.run_folder(), lambda: start(config), 2.0, poll_s=60) as sync:
        pass
    assert sync.has_given_up
    output = "".join(capfd.readouterr())
    assert "full" in output
    assert output.count("\n") < 20, output
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    # A busy machine takes longer than a run waits before it trains.
    with sync_run(uri, config.run_folder(), lambda: start(config), 120) as sync:
        assert sync.flush_and_call(lambda: True)
        (run,) = sync.unfinished()
    assert not sync.has_given_up
    assert points(run) == [(step, float(step)) for step in steps]
    assert status(run) == "FINISHED"


def deliver(home, name):
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    config = tiny_config(home, name=name)
    uri = f"sqlite:///{home}/mlflow.db"
    with sync_run(uri, config.run_folder(), lambda: start(config), 600.0):
        pass


@pytest.mark.usefixtures("config")
def test_eight_drivers_at_once_deliver_20_000_points_in_order_and_once(tmp_path, forkserver):
    """Each in five requests."""
    steps = range(10, 2510, 10)
    values = [f"D/{number}" for number in range(10)]
    drivers = []
    for number in range(8):
        folder = tiny_config(tmp_path, name=f"run-{number}").run_folder()
        folder.mkdir()
        events = [
            {"name": "metrics", "images": step, "time": 1.0}
            | {"values": {value: float(step + number) for value in values}}
            for step in steps
        ]
        (folder / "journal.jsonl").write_text("".join(f"{json.dumps(e)}\n" for e in events))
        drivers.append(forkserver.Process(target=deliver, args=(tmp_path, folder.name)))
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(250)
    assert [driver.exitcode for driver in drivers] == [0] * 8
    for number in range(8):
        run = start(tiny_config(tmp_path, name=f"run-{number}"))
        for value in values:
            assert points(run, value) == [(step, float(step + number)) for step in steps]
