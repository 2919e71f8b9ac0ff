"""The documented `ray job submit` commands on a cluster of two nodes with one CPU each."""

import itertools
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from prometheus_client.parser import text_string_to_metric_families

from ganray.training import journal
from ganray.training.launch import launch
from ganray.training.state import read_config
from tests.integrations.cluster import (
    DASHBOARD,
    METRICS,
    PORT,
    RAY,
    ROOT,
    TINY,
    cluster_environment,
    kill_session,
    lines_of,
    start_process,
    two_nodes,
    wait_for,
)

ON_BOTH = [*TINY, "--ray.workers", "2", "--train.log_every", "0.3", "--evaluation.max_share", "1"]

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def env(home):
    """Return the environment of nodes and of submitted jobs."""
    return cluster_environment(home)


@pytest.fixture(scope="module", autouse=True)
def nodes(env):
    """Start both nodes; return the process of the second, and a function that starts it again."""
    with two_nodes(env) as nodes:
        yield nodes


def submit(home, env, name, job, *options):
    """Submit the job from the repository's root."""
    command = [RAY, "job", "submit", "--working-dir", str(ROOT), "--submission-id", name, "--"]
    command += [sys.executable, job, *options, "--home", str(home)]
    return start_process(command, env)


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


def stop(name):
    """Do what `ray job stop` does; to start that command takes as long as some runs."""
    request = urllib.request.Request(f"{DASHBOARD}/api/jobs/{name}/stop", method="POST")
    urllib.request.urlopen(request, timeout=60).close()


def test_a_submitted_run_has_a_worker_on_each_node_and_exports_gauges_of_each(home, env):
    """It ends by a stop request when all gauges were seen."""
    host = socket.gethostname()
    by_rank = ("speed_step_ms", "speed_data_wait_ms", "speed_d_compute_ms", "speed_images_per_s")
    wanted = {(f"ray_ganray_{name}", rank, host) for name in by_rank for rank in "01"}
    of_rank_0 = ("loss_d", "loss_g", "collapse_coverage")
    wanted |= {(f"ray_ganray_{name}", "0", host) for name in of_rank_0}
    wanted |= {("ray_train_controller_state", "", "")}  # of Ray Train's own dashboard
    options = ["--train.kimg", "3600", "--evaluation.samples", "80", "--evaluation.every", "1.2"]
    job = submit(home, env, "faces-1", "jobs/celeba.py", *ON_BOTH, *options, "--name", "one")
    lines, deadline = lines_of(job), time.monotonic() + 300
    seen = set()
    while not wanted <= seen:
        assert job.poll() is None, "".join(lines)
        assert time.monotonic() < deadline, (wanted - seen, lines)
        time.sleep(0.2)
        seen |= {
            (name, labels.get("rank", ""), labels.get("host", ""))
            for name, labels in gauges()
            if "one" in (labels.get("run"), labels.get("ray_train_run_name"))
        }
    with urllib.request.urlopen(f"{DASHBOARD}/api/train/v2/runs/v1", timeout=20) as page:
        (run,) = json.load(page)["train_runs"]
    assert (run["name"], run["status"]) == ("one", "RUNNING")
    stop("faces-1")
    job.wait(60)

    assert ("ray_ganray_loss_d", "1", host) not in seen
    assert "faces-1" in ray_job(env, "list")
    (run,) = mlflow_runs(home, "tags.`ganray.name` = 'one'")
    assert run.data.tags["ray.submission_id"] == "faces-1"
    assert run.data.tags["world_size"] == "2"
    assert run.info.status == "KILLED"


def test_a_submitted_sweep_is_stopped(home, env):
    """`ray job stop` ends the MLflow runs and keeps the results.

    test_ray_storage.py and test_ray_tune.py resume sweeps.
    """
    axes = ["--sweep.axis", "loss.name=bce,hinge", "--sweep.seeds", "2"]
    axes += ["--evaluation.samples", "80", "--name", "sweep"]
    kimg = ["--train.kimg", "3.6"]  # longer than it takes to stop the sweep
    job = submit(home, env, "sweep-1", "jobs/sweep.py", *ON_BOTH, *kimg, *axes)
    wait_for(lines_of(job), r"1 / 4 runs", 200)
    stop("sweep-1")
    job.wait(60)
    (parent,) = mlflow_runs(home, "tags.`ganray.name` = 'sweep'")
    children = mlflow_runs(home, "tags.`ganray.sweep` = 'sweep'")
    assert parent.info.status == "KILLED"
    assert sum(child.info.status == "FINISHED" for child in children) >= 1
    assert {child.info.status for child in children} <= {"FINISHED", "KILLED"}


ELASTIC = """
from ganray.commands import main
from ganray.config import cli
from ganray.integrations import ray_elastic, ray_train

ray_train._RESIZE_S, ray_train._START_S, ray_elastic.PAYBACK = 1, 4, 0
cli.run(main.celeba)
"""


@pytest.mark.timeout(300)
def test_an_elastic_run_outlives_the_loss_of_a_node_and_grows_when_it_is_back(home, env, nodes):
    """Both changes are in the log, and neither in the losses. Growth loses no step.

    Each step has a log line and a sample grid, so that there are few.
    """
    options = ["--ray.workers", "1:2", "--train.kimg", "3600", "--evaluation.samples", "0"]
    options += ["--train.log_every", "0.012", "--train.sample_every", "0.012"]
    options += ["--train.checkpoint_every", "0.12", "--train.keep_checkpoints", "1000"]
    options += ["--name", "elastic", "--home", str(home)]
    driver = start_process(
        [sys.executable, "-c", ELASTIC, *ON_BOTH, *options],
        env | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": f"127.0.0.1:{PORT}"},
    )
    lines, (node, start_node) = lines_of(driver), nodes
    started = wait_for(lines, "training on 2 workers from 0 kimg", 120)
    wait_for(lines, r" (0\.[2-9]|[1-9]\d*\.\d) / 3600 kimg", 60, started)
    kill_session(node.pid)
    lost = wait_for(lines, r"node .* is gone: going on with 1 worker of 2", 60)
    start_node()
    went_on = wait_for(lines, r"training on 1 worker \(was 2\) from [\d.]+ kimg", 60, lost)
    more = wait_for(lines, "resources for 1 more worker are free: growing to 2", 60, went_on)
    grew = wait_for(lines, r"training on 2 workers \(was 1\) from [\d.]+ kimg", 60, more)
    wait_for(lines, r" [\d.]+ / 3600 kimg", 60, grew)
    driver.terminate()
    assert driver.wait(60) == 143

    folder = home / "runs" / "elastic"
    images, sizes = journal.history(folder, "system/workers")  # at each step, when first taken
    np.testing.assert_array_equal(images, range(12, images[-1] + 12, 12))
    (first, few), (_, many), _ = ((int(k), len([*g])) for k, g in itertools.groupby(sizes))
    assert (first, [int(size) for size, _ in itertools.groupby(sizes)]) == (2, [2, 1, 2])
    grown = few + many
    assert f" from {images[grown - 1] / 1000:g} kimg" in lines[grew]

    # Neither change shows in the losses, of which those of later steps depend on the weights.
    torch.set_num_threads(1)
    shards = str(next((home / "shards").glob("*-16")))
    checkpoint = folder / f"checkpoint_{grown:010d}"
    end = min(len(images), grown + 50)  # differences of rounding grow
    for name, start, stop in (("alone", 0, few + 20), ("replayed", grown, end)):
        config = replace(read_config(folder), name=name)
        config = replace(config, train=replace(config.train, kimg=stop * 12 / 1000))
        if start:
            shutil.copytree(checkpoint, config.run_folder() / checkpoint.name)
            text = (checkpoint / "config.json").read_text().replace('"elastic"', f'"{name}"')
            (config.run_folder() / checkpoint.name / "config.json").write_text(text)
        launch(config, shards)
        for loss in ("loss/D", "loss/G"):
            _, expected = journal.history(config.run_folder(), loss)
            _, found = journal.history(folder, loss)
            np.testing.assert_allclose(found[start:stop], expected, rtol=1e-4)
