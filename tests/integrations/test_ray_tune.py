"""Sweeps on a real Ray: grid, crash, kill and resume, searches, runs of several workers.

test_ray_storage.py interrupts a sweep, and test_ray_cluster.py stops one.
"""

import json
import os
import re
import signal
import time

import psutil
import pytest
from mlflow import MlflowClient

from ganray.sweeps import design, results
from ganray.training import journal
from tests.integrations.cluster import environment, lines_of, start_job

pytestmark = pytest.mark.ray
TINY = ["--data.source", "digits", "--data.size", "0", "--network.kind", "mlp"]
TINY += ["--network.width_G", "16", "--network.width_D", "16", "--train.batch_size", "12"]
TINY += ["--train.kimg", "2.4", "--train.log_every", "0.6", "--train.sample_every", "0.6"]
TINY += ["--train.checkpoint_every", "0.6"]
TINY += ["--evaluation.samples", "80", "--evaluation.max_share", "1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def start(home, *options):
    env = environment(home, OMP_NUM_THREADS="1")
    return start_job("sweep", env, *TINY, *options, start_new_session=True)


class Driver:
    """A started sweep and its output so far."""

    def __init__(self, home, *options):
        self.process = start(home, *options)
        self.lines = lines_of(self.process)

    def wait_for(self, pattern, timeout=200):
        deadline = time.monotonic() + timeout
        while not any(re.search(pattern, line) for line in self.lines):
            assert self.process.poll() is None or time.monotonic() < deadline - timeout + 5, (
                self.text
            )
            assert time.monotonic() < deadline, self.text
            time.sleep(0.05)

    def end(self, timeout=250):
        code = self.process.wait(timeout)
        time.sleep(0.2)  # the reader's last lines
        return code

    @property
    def text(self):
        return "".join(self.lines[-60:])

    def actors(self):
        """Return the processes that train."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [p for p in children if "ImplicitFunc" in " ".join(p.cmdline())]


def mlflow_runs(home, sweep):
    client = MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "latents")
    by_sweep, by_name = f"tags.`ganray.sweep` = '{sweep}'", f"tags.`ganray.name` = '{sweep}'"
    children = client.search_runs([experiment.experiment_id], by_sweep)
    parents = client.search_runs([experiment.experiment_id], by_name)
    return client, parents, children


def test_a_killed_run_and_a_killed_driver_lose_nothing(home):
    """SIGKILL a run's process, then the driver; --resume finishes the sweep, each run once."""
    axes = ["--sweep.axis", "rate=1,1e30", "--sweep.seeds", "2"]
    driver = Driver(home, *axes, "--name", "killed")
    driver.wait_for(r"1 / 4 runs")
    driver.actors()[0].kill()
    driver.wait_for(r"(crashed, retrying:|FAILED):? The actor died unexpectedly")
    os.killpg(driver.process.pid, signal.SIGKILL)
    driver.process.wait()

    driver = Driver(home, "--resume", "--sweep.concurrent", "1")
    assert driver.end() == 0, driver.text
    assert "4 / 4 runs" in driver.text
    plan = design.load_plan(home / "sweeps" / "killed")
    collected = results.collect(plan, home / "runs")
    for trial in plan.trials:
        diverges = trial.levels[0] == "1e30"
        assert collected.get(trial).status == ("diverged" if diverges else "finished")
        if not diverges:
            images, _ = journal.history(home / "runs" / trial.name, "loss/D")
            assert images.tolist() == [600, 1200, 1800, 2400]
    report = json.loads((home / "sweeps" / "killed" / "report.json").read_text())
    assert [row["diverged"] for row in report["ranking"]] == [0, 2]
    assert (home / "sweeps" / "killed" / "report.html").stat().st_size > 50_000

    client, parents, children = mlflow_runs(home, "killed")
    (parent,) = parents
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["mlflow.note.content"]
    assert {file.path for file in client.list_artifacts(parent.info.run_id, "report")} >= {
        "report/report.html",
        "report/report.json",
    }
    assert sorted(c.data.tags["ganray.name"] for c in children) == sorted(
        trial.name for trial in plan.trials
    )
    for child in children:
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        diverged = child.data.params["axis.rate"] == "1e30"
        assert child.info.status == ("FAILED" if diverged else "FINISHED")
        steps = [m.step for m in client.get_metric_history(child.info.run_id, "loss/D")]
        assert sorted(steps) == ([] if diverged else [600, 1200, 1800, 2400])


def test_asha_stops_runs_of_two_workers_and_reports_that_results_are_censored(home):
    options = ["--ray.workers", "2", "--sweep.design", "asha", "--sweep.seeds", "1"]
    driver = Driver(home, "--sweep.axis", "data.images=100,null", *options, "--name", "asha")
    assert driver.end() == 0, driver.text
    assert "the means are biased" in driver.text
    assert "Runs were chosen or stopped by their results" in driver.text
    collected = results.collect(design.load_plan(home / "sweeps" / "asha"), home / "runs")
    assert collected.count("finished", "stopped") == 2
    assert collected.count("finished") >= 1
    # They trained on different numbers of images.
    assert {shards.name.split("-")[4] for shards in (home / "shards").glob("*-train-*")} == {
        *("100", "1500")
    }


@pytest.mark.parametrize("search", ["tpe", "pbt"])
def test_searches_run_the_configured_number_of_runs_and_record_their_levels(home, search):
    options = ["--sweep.design", search, "--sweep.settings", "3", "--name", search]
    driver = Driver(home, "--sweep.axis", "rate=0.1..10", *options)
    assert driver.end() == 0, driver.text
    plan = design.load_plan(home / "sweeps" / search)
    assert len(plan.trials) == 3
    assert len({trial.rng_seed for trial in plan.trials}) == 3
    rates = [float(label) for label in plan.axes[0].labels]
    assert rates == sorted(rates)
    assert {float(trial.levels[0]) for trial in plan.trials} <= set(rates)
    assert results.collect(plan, home / "runs").count("finished") == 3
