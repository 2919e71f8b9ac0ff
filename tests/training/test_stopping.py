"""Hangs and signals: a stopped rank is named, and a stopped job has saved a checkpoint."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from mlflow import MlflowClient

from ganray.training import journal
from ganray.training.checkpoints import list_checkpoints
from ganray.training.run_folder import RunFolder
from ganray.training.stopping import STOP_FILE, confirm_stops, request_stop, watch_stop_file
from ganray.training.watchdog import Watchdog
from tests.conftest import wait_until
from tests.integrations.cluster import ROOT, environment, lines_of, wait_for

JOB = [sys.executable, str(ROOT / "jobs" / "celeba.py"), "cpu32", "--launcher", "torch"]
JOB += ["--data.size=16", "--data.faces=100", "--latent.size=8", "--network.width_G=4"]
JOB += ["--network.width_D=4", "--train.batch_size=12", "--train.log_every=0.6"]
JOB += ["--evaluation.samples=0", "--evaluation.report_samples=0", "--train.kimg=9999"]
JOB += ["--train.sample_every=9999", "--train.checkpoint_every=9999", "--name=job"]


class Context:
    """A context that keeps what is announced."""

    is_supervised = False

    def __init__(self, folder):
        self.folder, self.lines = RunFolder(folder), []

    def announce(self, text, *, is_training=False):
        self.lines.append(text)


def test_a_phase_that_does_not_end_is_announced_once_with_the_stack(tmp_path):
    context = Context(tmp_path)
    watchdog = Watchdog(0.3, context)  # pyright: ignore[reportArgumentType]
    watchdog.enter("step", 7)
    wait_until(lambda: context.lines)
    time.sleep(0.5)
    (line,) = context.lines
    assert line.startswith("rank 0 of 1 hangs since ")
    assert f"(process {os.getpid()}), at step 7 in phase 'step'; still waiting" in line
    assert "in test_a_phase_that_does_not_end" in (tmp_path / "error.txt").read_text()
    watchdog.enter("step", 8)  # it was slow only
    wait_until(lambda: len(context.lines) == 2)
    watchdog.close()


def test_a_long_phase_has_an_allowance(tmp_path):
    context = Context(tmp_path)
    watchdog = Watchdog(0.3, context)  # pyright: ignore[reportArgumentType]
    watchdog.enter("evaluation", 7)
    time.sleep(1)
    watchdog.close()
    assert not context.lines


def test_a_request_is_confirmed_even_if_training_ends_or_waits_for_the_driver(tmp_path):
    folder, saved = RunFolder(tmp_path), []

    def request():
        request_stop(tmp_path)
        return (tmp_path / STOP_FILE).exists()

    assert not request()  # nothing trains yet
    with watch_stop_file(folder) as stop_requested:
        journal.add_status(tmp_path, "training", is_training=True)
        with confirm_stops(folder, lambda: saved.append(True)):
            request()
            wait_until(lambda: not (tmp_path / STOP_FILE).exists())
        assert saved == [True]
        assert request()
        wait_until(stop_requested)
    assert not (tmp_path / STOP_FILE).exists()  # all steps were done
    assert not request()


@pytest.fixture
def start(tmp_path):
    """Start processes of a job, one per rank, and kill them at the end of the test."""
    started = []

    def start(ranks, *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        for rank in range(ranks):
            env = address | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            env = environment(tmp_path, OMP_NUM_THREADS="1", **env)
            started.append(subprocess.Popen([*JOB, *options], env=env, **output))
        return started[-ranks:]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_stopped_rank_is_named_and_a_signal_saves_a_checkpoint(start, tmp_path):
    first, second = start(2, "--train.hang_timeout=3")
    lines = lines_of(first)
    wait_for(lines, r"[\d.]+ / 9999 kimg", 120)
    second.send_signal(signal.SIGSTOP)
    assert first.wait(15) == 1
    folder = tmp_path / "runs" / "job"
    text = (folder / "error.txt").read_text()
    assert "rank 1 of 2 no longer answers since " in text
    assert f"(process {second.pid}), at step " in text
    assert text.count("in discriminator_step") + text.count("in generator_step") >= 1

    second.kill()
    (job,) = start(1)
    lines = lines_of(job)
    wait_for(lines, r"[\d.]+ / 9999 kimg", 120)
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == 143
    (checkpoint,) = list_checkpoints(folder)
    assert int(checkpoint.name.rpartition("_")[2]) >= 100
    wait_for(
        lines, r"^checkpoint  at [\d.]+ kimg, from which the same command with --name job goes", 10
    )
    wait_for(lines, "stopped", 10)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("celeba").experiment_id])
    assert run.info.status == "KILLED"
