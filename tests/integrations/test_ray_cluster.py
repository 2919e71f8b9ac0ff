"""The documented `ray job submit` commands on a cluster of two nodes with one CPU each."""

import json
import socket
import subprocess
import sys
import urllib.request
from collections import defaultdict

import pytest
from mlflow import MlflowClient
from prometheus_client.parser import text_string_to_metric_families

from tests.integrations.cluster import (
    DASHBOARD,
    METRICS,
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

LONGER = ["--train.kimg", "3.6"]
"""Than it takes to stop the run, and to look at its metrics."""

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


def gauges():
    """Return the samples that both nodes export, as (name, labels)."""
    pages = [f"http://127.0.0.1:{port}/metrics" for port in METRICS]
    text = "".join(urllib.request.urlopen(page, timeout=20).read().decode() for page in pages)
    families = text_string_to_metric_families(text)
    return [(s.name, s.labels) for family in families for s in family.samples]


def test_a_submitted_run_has_a_worker_on_each_node_and_is_seen_from_outside(home, env):
    options = ["--evaluation.samples", "80", "--evaluation.report_samples", "0", "--name", "one"]
    job = submit(home, env, "faces-1", "jobs/celeba.py", *TINY, *LONGER, *options)
    ranks = defaultdict(set)
    while job.poll() is None:
        for name, labels in gauges():
            if labels.get("run") == "one":
                ranks[name].add((labels["rank"], labels["host"]))
            elif labels.get("ray_train_run_name") == "one":
                ranks[name].add("")
    output = job.stdout.read()
    assert job.returncode == 0, output[-6000:]
    host = socket.gethostname()
    for name in ("speed_step_ms", "speed_data_wait_ms", "speed_compute_ms", "speed_images_per_s"):
        assert ranks[f"ray_ganray_{name}"] == {("0", host), ("1", host)}
    for name in ("loss_d", "loss_g", "collapse_coverage"):
        assert ranks[f"ray_ganray_{name}"] == {("0", host)}
    assert "ray_train_controller_state" in ranks  # of Ray Train's own dashboard
    with urllib.request.urlopen(f"{DASHBOARD}/api/train/v2/runs/v1", timeout=20) as page:
        (run,) = json.load(page)["train_runs"]
    assert (run["name"], run["status"]) == ("one", "FINISHED")

    assert "3.6 / 3.6 kimg" in output, output[-6000:]
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
    job = submit(
        home,
        env,
        "sweep-1",
        "jobs/sweep.py",
        *TINY,
        *LONGER,
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
