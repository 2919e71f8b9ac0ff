"""The documented `ray job submit` commands on a cluster of two nodes with one CPU each."""

import subprocess
import sys
import urllib.request

import pytest
from mlflow import MlflowClient

from tests.integrations.cluster import (
    DASHBOARD,
    RAY,
    ROOT,
    cluster_environment,
    lines_of,
    two_nodes,
    wait_for,
)

TINY = ["cpu32", "--ray.workers", "2"]
TINY += ["--data.size", "16", "--data.faces", "300", "--latent.size", "8"]
TINY += ["--network.width_G", "4", "--network.width_D", "4", "--train.batch_size", "12"]
TINY += ["--train.kimg", "1.2", "--train.log_every", "0.3"]
TINY += ["--evaluation.report_samples", "0", "--evaluation.max_share", "1"]

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def env(home):
    """Start both nodes and return their environment."""
    env = cluster_environment(home)
    with two_nodes(env):
        yield env


def submit(home, env, name, job, *options):
    """Submit the job from the repository's root."""
    command = [RAY, "job", "submit", "--working-dir", str(ROOT), "--submission-id", name, "--"]
    command += [sys.executable, job, *options, "--home", str(home)]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ray_job(env, *command):
    """Return the output of `ray job ...`."""
    return subprocess.check_output([RAY, "job", *command], env=env, text=True, timeout=60)


def mlflow_runs(home, filter_string):
    client = MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name("celeba")
    assert experiment is not None
    return client.search_runs([experiment.experiment_id], filter_string)


def test_a_submitted_run_has_a_worker_on_each_node(home, env):
    job = submit(
        home, env, "faces-1", "jobs/celeba.py", *TINY, "--evaluation.samples", "0", "--name", "one"
    )
    output, _ = job.communicate(timeout=280)
    assert job.returncode == 0, output[-6000:]
    assert "1.2 / 1.2 kimg" in output, output[-6000:]
    assert "succeeded" in output
    assert "faces-1" in ray_job(env, "list")
    assert "/#/jobs/faces-1" in output
    (run,) = mlflow_runs(home, "tags.`ganray.name` = 'one'")
    assert run.data.tags["ray.submission_id"] == "faces-1"
    assert run.data.tags["world_size"] == "2"
    assert run.info.status == "FINISHED"


@pytest.mark.timeout(650)
def test_a_submitted_sweep_is_stopped_and_resumed(home, env):
    """`ray job stop` ends the MLflow runs and keeps the results; --resume runs the rest."""
    axes = ["--sweep.axis", "loss.name=bce,hinge", "--sweep.seeds", "2"]
    longer = ["--train.kimg", "3.6"]  # than it takes to stop it
    job = submit(
        home,
        env,
        "sweep-1",
        "jobs/sweep.py",
        *TINY,
        *longer,
        *axes,
        "--evaluation.samples",
        "80",
        "--name",
        "sweep",
    )
    wait_for(lines_of(job), r"1 / 4 runs", 200)
    # What `ray job stop` does; to start that command takes as long as some runs.
    stop = urllib.request.Request(f"{DASHBOARD}/api/jobs/sweep-1/stop", method="POST")
    urllib.request.urlopen(stop, timeout=60).close()
    job.wait(60)
    (parent,) = mlflow_runs(home, "tags.`ganray.name` = 'sweep'")
    children = mlflow_runs(home, "tags.`ganray.sweep` = 'sweep'")
    assert parent.info.status == "KILLED"
    assert sum(child.info.status == "FINISHED" for child in children) >= 1
    assert {child.info.status for child in children} <= {"FINISHED", "KILLED"}

    job = submit(home, env, "sweep-2", "jobs/sweep.py", "--resume")
    output, _ = job.communicate(timeout=280)
    assert job.returncode == 0, output[-6000:]
    assert "2 at a time" in output
    assert "4 runs: 4 finished" in output
    (resumed,) = mlflow_runs(home, "tags.`ganray.name` = 'sweep'")
    assert (resumed.info.run_id, resumed.info.status) == (parent.info.run_id, "FINISHED")
    children = mlflow_runs(home, "tags.`ganray.sweep` = 'sweep'")
    assert [child.info.status for child in children] == ["FINISHED"] * 4
