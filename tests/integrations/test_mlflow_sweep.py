"""MLflow: a sweep is one parent run with one child run per trial, however often it is started."""

import json
import shutil
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ganray.config.serialization import to_dict
from ganray.integrations.mlflow_sweep import axis_key, sync_sweep
from ganray.sweeps import results
from ganray.sweeps.analysis import ranking
from ganray.sweeps.axes import Axis, Level
from ganray.sweeps.design import make_plan
from tests.conftest import wait_until
from tests.integrations.small_sweep import (
    DATASET,
    base_config,
    field_axis,
    run_trial,
    small_sweep,
    write_journal,
)

UNREACHABLE = "http://127.0.0.1:9"  # the discard port, which refuses connections at once


@pytest.fixture(scope="module")
def home(tmp_path_factory, empty_store):
    """A store for all tests here, as opening one takes long. Each test has a sweep of its own."""
    home = tmp_path_factory.mktemp("sweeps")
    shutil.copy(empty_store, home / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield home


def two_trials(name):
    return make_plan(name, [field_axis("latent.size", 1, 64)], seeds=1)


@contextmanager
def started(plan, home, stopped_by=None, **changes):
    """Open a sweep; an exception of the type `stopped_by` is expected to leave the block."""
    base = replace(base_config(home), **changes)
    sync = sync_sweep(plan, base, lambda _: DATASET, {"device": "cpu"}, poll_s=0.05)
    with suppress(stopped_by or ()), sync as runs:
        yield runs
        if stopped_by:
            raise stopped_by


def children_of(runs):
    """Return the child runs by trial name."""
    children = runs.parent.client().search_runs(
        [runs.parent.experiment_id], f"tags.`mlflow.parentRunId` = '{runs.parent.run_id}'"
    )
    by_name = {run.data.tags["ganray.name"]: run for run in children}
    assert len(by_name) == len(children)
    return by_name


def parent_of(runs):
    return runs.parent.client().get_run(runs.parent.run_id)


def points(runs, run):
    history = runs.parent.client().get_metric_history(run.info.run_id, "loss/D")
    return [metric.step for metric in history]


def test_a_sweep_is_a_parent_run_with_a_child_run_per_trial(home):
    plan = small_sweep("shape", seeds=1)
    trial = plan.trials[0]
    config = trial.config(base_config(home))
    result = run_trial(config, trial, ticks=4)
    with started(plan, home) as runs:
        runs.begin(trial, config)
        runs.end(trial, result)

    parent, child = parent_of(runs), children_of(runs)[trial.name]
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "shape")
    assert "ganray.sweep" not in parent.data.tags
    assert parent.data.params["optimizer.lr_G"] == "0.001"
    assert "latent.size" not in parent.data.params
    assert child.info.run_name == trial.label
    assert child.info.status == "FINISHED"
    assert child.data.params["latent.size"] == trial.levels[1]
    assert child.data.tags["axis.distribution"] == trial.levels[0]
    assert child.data.tags["ganray.setting"] == " / ".join(trial.levels)
    assert child.data.tags["ganray.sweep"] == "shape"
    assert child.data.tags["ganray.status"] == "finished"
    assert child.inputs.dataset_inputs[0].dataset.name == "faces"
    final = {k: v for k, v in child.data.metrics.items() if k.startswith("final/")}
    expected = {f"final/{k}": v for k, v in result.values.items()} | {"final/diverged": 0.0}
    assert final == pytest.approx(expected)
    assert points(runs, child) == [5000, 10000, 15000, 20000]


def test_the_means_of_a_setting_are_a_run_that_a_later_report_replaces(home):
    plan = small_sweep("means", seeds=2)
    ran = [trial for trial in plan.trials if trial.levels == plan.settings[0]]
    for _ in range(2):
        with started(plan, home) as runs:
            for trial in ran:
                config = trial.config(base_config(home))
                runs.begin(trial, config)
                runs.end(trial, run_trial(config, trial, ticks=4))
            runs.log_means(ranking(results.collect(plan, home / "runs")))
    children = children_of(runs)
    (mean,) = [child for child in children.values() if "ganray.sweep_means" in child.data.tags]
    assert mean.info.run_name == f"{' / '.join(plan.settings[0])}, mean of 2"
    assert mean.info.status == "FINISHED"
    assert "ganray.sweep" not in mean.data.tags  # views of all runs leave it out
    assert mean.data.params["latent.size"] == plan.settings[0][1]
    assert "train.rng_seed" not in mean.data.params
    assert points(runs, mean) == [5000, 10000, 15000, 20000]
    for name in ("final/coverage", "loss/D"):
        values = [children[trial.name].data.metrics[name] for trial in ran]
        assert mean.data.metrics[name] == pytest.approx(sum(values) / 2)


def test_a_resumed_sweep_continues_the_same_runs(home):
    plan = two_trials("again")
    first, second = plan.trials
    config = first.config(base_config(home))
    with started(plan, home, stopped_by=KeyboardInterrupt) as runs:
        for trial in plan.trials:
            runs.begin(trial, trial.config(base_config(home)))
        write_journal(config.run_folder(), first, ticks=1, samples=1)
        wait_until(lambda: len(children_of(runs)) == 2)
    write_journal(config.run_folder(), first, ticks=2, samples=1)
    with started(plan, home) as runs:
        runs.begin(first, config)
        runs.begin(first, config)  # it crashed and was retried
        runs.end(first, results.record(config.run_folder(), "finished"))
    children = children_of(runs)
    assert set(children) == {first.name, second.name}
    assert points(runs, children[first.name]) == [5000, 10000]


@pytest.mark.parametrize(
    ("status", "mlflow_status", "diverged"),
    [("diverged", "FAILED", 1.0), ("failed", "FAILED", None), ("stopped", "KILLED", None)],
)
def test_the_status_of_a_trial_is_logged_and_only_scored_ones_have_final_metrics(
    home, status, mlflow_status, diverged
):
    plan = two_trials(status)
    trial = plan.trials[0]
    config = trial.config(base_config(home))
    write_journal(config.run_folder(), trial, ticks=2, samples=1)
    with started(plan, home) as runs:
        runs.begin(trial, config)
        runs.end(trial, results.record(config.run_folder(), status, "loss/D is nan"))
    child = children_of(runs)[trial.name]
    assert child.info.status == mlflow_status
    assert child.data.tags["ganray.status"] == status
    assert child.data.tags["ganray.reason"] == "loss/D is nan"
    assert child.data.metrics.get("final/diverged") == diverged
    assert child.data.metrics.get("final/coverage") == (0.0 if diverged else None)


def test_a_killed_sweep_leaves_no_run_running(home):
    plan = two_trials("killed")
    with started(plan, home, stopped_by=SystemExit) as runs:
        for trial in plan.trials:
            runs.begin(trial, trial.config(base_config(home)))
        wait_until(lambda: len(runs.sync.unfinished()) == 2)
    assert parent_of(runs).info.status == "KILLED"
    assert {run.info.status for run in children_of(runs).values()} == {"KILLED"}


def test_what_an_unreachable_store_missed_is_sent_when_it_is_back(home, monkeypatch, capsys):
    plan, send = two_trials("outage"), MlflowClient.search_runs
    first, second = plan.trials
    config = first.config(base_config(home))
    attempts = []

    def refuse(*_, **__):
        attempts.append(1)
        raise MlflowException("connection refused")

    with started(plan, home) as runs, monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "search_runs", refuse)
        runs.begin(first, config)
        runs.end(first, run_trial(config, first, ticks=2, samples=1))
        runs.begin(second, second.config(base_config(home)))
        wait_until(lambda: len(attempts) >= 3)  # the line about the first was printed long ago
        patch.setattr(MlflowClient, "search_runs", send)
        wait_until(lambda: len(children_of(runs)) == 2)
    assert capsys.readouterr().out.count("trying again") == 1
    assert children_of(runs)[first.name].data.tags["ganray.status"] == "finished"
    assert children_of(runs)[second.name].info.status == "KILLED"


def test_what_an_unreachable_store_missed_is_sent_when_the_sweep_is_resumed(
    home, monkeypatch, capsys
):
    plan = two_trials("missed")
    trial = plan.trials[0]
    config = trial.config(base_config(home))

    def refuse(*_, **__):
        raise MlflowException("connection refused")

    with monkeypatch.context() as patch, started(plan, home, stopped_by=SystemExit) as runs:
        for method in ("search_runs", "set_terminated"):
            patch.setattr(MlflowClient, method, refuse)
        runs.begin(trial, config)
        result = run_trial(config, trial, ticks=2, samples=1)
        (config.run_folder() / "config.json").write_text(json.dumps(to_dict(config)))
        runs.end(trial, result)
    assert "the same command sends the rest" in capsys.readouterr().out
    with started(plan, home) as runs:
        pass
    child = children_of(runs)[trial.name]
    assert child.data.metrics["final/coverage"] == pytest.approx(result.values["coverage"])
    assert points(runs, child) == [5000, 10000]


def test_a_store_that_is_down_at_the_start_gets_everything_when_it_is_up(home, tmp_path, capsys):
    blocked = tmp_path / "blocked"
    blocked.write_text("")  # a file in place of the store's folder
    uri = f"sqlite:///{blocked}/mlflow.db"
    plan = two_trials("away")
    trial = plan.trials[0]
    tracking = replace(base_config(home).tracking, uri=uri)
    config = trial.config(base_config(home))
    with started(plan, home, tracking=tracking) as runs:
        (line,) = capsys.readouterr().out.splitlines()
        assert f"tracking.uri={uri}" in line
        assert "the sweep starts without MLflow" in line
        runs.begin(trial, config)
        runs.end(trial, run_trial(config, trial, ticks=2, samples=1))
        blocked.unlink()
        blocked.mkdir()
        shutil.copy(home / "mlflow.db", blocked)
    assert not runs.sync.has_given_up
    assert parent_of(runs).info.status == "FINISHED"
    child = children_of(runs)[trial.name]
    assert child.data.tags["ganray.status"] == "finished"
    assert points(runs, child) == [5000, 10000]


def test_the_report_is_in_the_parent_and_a_long_description_is_cut_at_a_line(home, tmp_path):
    table = tmp_path / "table.md"
    table.write_text("| a |\n")
    with started(two_trials("report"), home) as runs:
        metrics = {"spread": 0.5, "unknown": float("nan")}
        runs.log_report([table], "| a row |\n" * 1000, metrics)
    parent = parent_of(runs)
    note = parent.data.tags["mlflow.note.content"]
    assert 7900 < len(note) <= 8000
    assert note.endswith("| a row |\n\nMore of this is among the artifacts, in `report/`.")
    assert parent.data.metrics == {"spread": 0.5}
    files = runs.parent.client().list_artifacts(runs.parent.run_id, "report")
    assert [file.path for file in files] == ["report/table.md"]


def test_every_axis_has_a_param_that_runs_are_grouped_by():
    rate = Axis("rate", (Level("0.5", {"rate": 0.5}), Level("2", {"rate": 2.0})))
    joined = Axis("latent.distribution+latent.scaling", rate.levels)
    assert axis_key(field_axis("latent.size", 1, 64)) == "latent.size"
    assert axis_key(rate) == "axis.rate"
    assert axis_key(joined) == "axis.distribution scaling"
    images = Axis(
        "data.images", (Level("5", {"data.images": 5}), Level("all", {"data.images": None}))
    )
    assert axis_key(images) == "axis.images"  # the field's param would be "None"
