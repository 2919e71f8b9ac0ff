"""Training jobs on a real Ray: parity with torchrun, killed workers and drivers, failures."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch
from mlflow import MlflowClient

from ganray.training import journal
from ganray.training.checkpoints import list_checkpoints
from ganray.training.state import file_digest, read_state
from tests.integrations.cluster import (
    ROOT,
    TINY,
    environment,
    lines_of,
    start_process,
    wait_for,
    wait_until_gone,
)

JOB = [sys.executable, str(ROOT / "jobs" / "celeba.py")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
TORCHRUN += [JOB[1]]
OPTIONS = [*TINY, "--ray.workers", "2", "--evaluation.samples", "0", "--loss.r1_gamma", "0.1"]
OPTIONS += ["--train.log_every", "0.06", "--train.sample_every", "0.12"]
OPTIONS += ["--train.checkpoint_every", "0.12"]

LENGTH = ["--train.kimg", "4.2", "--train.checkpoint_every", "0.6", "--train.log_every", "0.3"]

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def torchrun(home):
    """Folder of a finished run under torchrun."""
    run(home, "torchrun", *LENGTH, "--launcher", "torch", command=TORCHRUN)
    return home / "runs" / "torchrun"


def run(home, name, *options, command=JOB, timeout=280):
    done = subprocess.run(
        [*command, *OPTIONS, "--name", name, *options],
        env=environment(home, OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def mlflow_run(home, name):
    client = MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name("celeba")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`ganray.name` = '{name}'")
    return client, run


def last_state(home, name):
    return read_state(sorted((home / "runs" / name).glob("checkpoint_0*"))[-1])


@pytest.mark.timeout(600)
def test_a_stopped_worker_and_driver_lose_nothing_and_the_numbers_are_torchruns(home, torchrun):
    """SIGSTOP a worker, then SIGTERM the driver; resume by the same command to torchrun's numbers.

    tests/soak kills both by SIGKILL.
    """
    folder = home / "runs" / "killed"
    command = [*JOB, *OPTIONS, *LENGTH, "--name", "killed", "--train.hang_timeout", "6"]
    driver = start_process(command, environment(home, OMP_NUM_THREADS="1"), start_new_session=True)
    lines = lines_of(driver)
    wait_for(lines, r" (0\.9|[12]\.\d) / 4\.2 kimg", 200)  # a late driver leaves out lines
    worker = next(
        child
        for child in psutil.Process(driver.pid).children(recursive=True)
        if "RayTrainWorker" in " ".join(child.cmdline())
    )
    worker.suspend()
    wait_for(
        lines, rf"rank \d of 2 no longer answers since .*\(process {worker.pid}\), at step", 60
    )
    assert f"(process {worker.pid}), at step" in (folder / "error.txt").read_text()
    restart = wait_for(lines, r"restart 1 of at most 3, from the last checkpoint", 60)
    line = lines[wait_for(lines, r" [\d.]+ / 4\.2 kimg", 200, after=restart)]
    assert not worker.is_running()
    driver.terminate()
    assert driver.wait(60) == 143
    wait_until_gone(driver.pid)
    step = int(list_checkpoints(folder)[-1].name.rpartition("_")[2])
    assert 12 * step >= 1000 * float(line.split()[0])  # checkpoints that were due are not later
    assert mlflow_run(home, "killed")[1].info.status == "KILLED"
    output = run(home, "killed", *LENGTH)

    for metric in ("loss/D", "loss/G", "loss/r1"):
        killed, expected = (
            journal.history(run_folder, metric) for run_folder in (folder, torchrun)
        )
        np.testing.assert_array_equal(killed[0], expected[0])
        # The first line after a stop between two lines averages the steps since the stop.
        assert (~np.isclose(killed[1], expected[1], rtol=1e-6)).sum() <= 1
    killed, expected = last_state(home, "killed"), last_state(home, "torchrun")
    for key, value in expected["G"].items():
        assert np.array_equal(killed["G"][key].numpy(), value.numpy()), key

    assert "no CelebA was given" in "".join(lines)
    assert "mlflow ui --backend-store-uri sqlite:" in output
    assert re.search(r"kimg \(100%\).*images/s.*left 0:00:00", output)
    client, mlflow = mlflow_run(home, "killed")
    assert mlflow.info.status == "FINISHED"
    assert mlflow.data.params["train.batch_size"] == "12"
    assert mlflow.data.tags["world_size"] == "2"
    assert mlflow.data.tags["ray.job_id"]
    assert len(mlflow.data.tags["mlflow.source.git.commit"]) == 40
    history = client.get_metric_history(mlflow.info.run_id, "loss/D")
    assert sorted(metric.step for metric in history) == [300 * i for i in range(1, 15)]
    artifacts = {file.path for file in client.list_artifacts(mlflow.info.run_id)}
    assert artifacts >= {"config.json", "losses.png", "samples.png", "images"}
    assert (home / "runs" / "killed" / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_low_memory_is_one_line(home):
    """Ray kills its controller or the workers above 1% of the memory."""
    env = environment(home, RAY_memory_usage_threshold="0.01")
    command = [*JOB, *OPTIONS, "--train.kimg", "0.24", "--name", "short"]
    command += ["--ray.workers", "1", "--ray.max_failures", "0"]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "killed due to the node running low on memory; the same" in done.stderr


def test_a_bug_in_a_worker_keeps_its_traceback_and_is_no_user_error(home, torchrun, tmp_path):
    """A checkpoint without D's weights makes the worker raise a KeyError."""
    home = shutil.copytree(home, tmp_path / "home")
    folder = home / "runs" / torchrun.name
    checkpoint = list_checkpoints(folder)[-1]
    state = read_state(checkpoint)
    del state["D"]
    torch.save(state, checkpoint / "state.pt")
    digests = {"state.pt": file_digest(checkpoint / "state.pt")}
    (checkpoint / "digests.json").write_text(json.dumps(digests))
    longer = ["--train.kimg", "4.8", "--ray.workers", "1", "--ray.max_failures", "0"]
    done = subprocess.run(
        [*JOB, *OPTIONS, *LENGTH, *longer, "--name", folder.name],
        env=environment(home, OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    path = folder / "error.txt"
    assert done.returncode == 1
    assert f"KeyError: 'D'; the traceback is in {path}" in done.stderr
    assert "KeyError: 'D'" in path.read_text()
    assert "rank 0 of" in path.read_text()
