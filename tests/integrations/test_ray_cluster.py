"""The documented `ray job submit` lines on a cluster of two nodes, with room for a worker each."""

import subprocess
import sys

import pytest
from mlflow import MlflowClient

from tests.integrations.cluster import (
    RAY,
    ROOT,
    cluster_environment,
    lines_of,
    two_nodes,
    wait_for,
)

TINY = ["cpu32", "--data.size", "16", "--data.faces", "300", "--latent.size", "8"]
TINY += ["--network.width_G", "4", "--network.width_D", "4", "--train.batch_size", "12"]
TINY += ["--train.kimg", "1.2", "--train.log_every", "0.3"]
TINY += ["--evaluation.report_samples", "0", "--evaluation.max_share", "1"]

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def env(home):
    """Of both nodes, which are up."""
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
    """What `ray job ...` says."""
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
    said, _ = job.communicate(timeout=280)
    assert job.returncode == 0, said[-6000:]
    assert "kimg (100%)" in said
    assert "succeeded" in said
    assert "faces-1" in ray_job(env, "list")
    (run,) = mlflow_runs(home, "tags.`ganray.name` = 'one'")
    assert run.data.tags["ray.submission_id"] == "faces-1"
    assert run.data.tags["world_size"] == "2"
    assert run.info.status == "FINISHED"


@pytest.mark.timeout(650)
def test_a_submitted_study_is_stopped_and_goes_on(home, env):
    """`ray job stop` closes the parent run and keeps what has ended; --resume does the rest."""
    axes = ["--sweep.axis", "loss.name=bce,hinge", "--sweep.seeds", "4"]
    longer = ["--train.kimg", "7.2"]  # than the command that stops it takes to start
    job = submit(
        home,
        env,
        "study-1",
        "jobs/sweep.py",
        *TINY,
        *longer,
        *axes,
        "--evaluation.samples",
        "80",
        "--name",
        "study",
    )
    wait_for(lines_of(job), r"1 / 8 runs", 200)
    ray_job(env, "stop", "study-1")
    job.wait(60)
    (parent,) = mlflow_runs(home, "tags.`ganray.name` = 'study'")
    children = mlflow_runs(home, "tags.`ganray.sweep` = 'study'")
    assert parent.info.status == "KILLED"
    assert sum(child.info.status == "FINISHED" for child in children) >= 1
    assert {child.info.status for child in children} <= {"FINISHED", "KILLED"}

    job = submit(home, env, "study-2", "jobs/sweep.py", "--resume")
    said, _ = job.communicate(timeout=280)
    assert job.returncode == 0, said[-6000:]
    assert "2 at a time" in said
    assert "8 runs: 8 finished" in said
    (again,) = mlflow_runs(home, "tags.`ganray.name` = 'study'")
    assert (again.info.run_id, again.info.status) == (parent.info.run_id, "FINISHED")
    children = mlflow_runs(home, "tags.`ganray.sweep` = 'study'")
    assert [child.info.status for child in children] == ["FINISHED"] * 8
