"""MLflow: a study is one parent with one child a trial, whatever is started how often."""

import base64
import json
import shutil
import time
import zlib
from dataclasses import replace

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ganray.config.serialization import to_dict
from ganray.integrations.mlflow_sweep import SweepRuns, axis_key
from ganray.integrations.mlflow_view import compare_url, save_views, view_url
from ganray.sweeps import results
from ganray.sweeps.axes import Axis, Level
from ganray.sweeps.design import make_plan
from tests.integrations.small_study import (
    DATASET,
    base_config,
    field_axis,
    run_trial,
    small_study,
    write_journal,
)

DEAD = "http://127.0.0.1:9"  # the discard port: refused at once


@pytest.fixture(scope="module")
def home(tmp_path_factory, empty_store):
    """One store for all tests here: opening another takes long. Each has a study of its own."""
    home = tmp_path_factory.mktemp("studies")
    shutil.copy(empty_store, home / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield home


def two_trials(name):
    return make_plan(name, [field_axis("latent.size", 1, 64)], seeds=1)


def start(study, home, **changed):
    base = replace(base_config(home), **changed)
    return SweepRuns(study, base, lambda _: DATASET, {"device": "cpu"}, poll_s=0.05)


def stored(runs):
    """The children by their name, from MLflow."""
    found = MlflowClient(f"sqlite:///{runs.parent.folder.parents[1]}/mlflow.db").search_runs(
        [runs.parent.experiment_id], f"tags.`mlflow.parentRunId` = '{runs.parent.run_id}'"
    )
    assert len({run.data.tags["ganray.name"] for run in found}) == len(found)
    return {run.data.tags["ganray.name"]: run for run in found}


def parent_of(runs):
    return MlflowClient(runs.parent.uri).get_run(runs.parent.run_id)


def points(runs, run):
    history = runs._client.get_metric_history(run.info.run_id, "D/loss")
    return [metric.step for metric in history]


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lose(runs):
    runs.parent, runs._client = replace(runs.parent, uri=DEAD), MlflowClient(DEAD)


def restore(runs, home):
    uri = f"sqlite:///{home}/mlflow.db"
    runs._client, runs.parent = MlflowClient(uri), replace(runs.parent, uri=uri)


def test_a_study_is_a_parent_and_a_child_for_each_trial(home):
    study = small_study("shape", seeds=1)
    runs = start(study, home)
    trial = study.trials[0]
    config = trial.config(base_config(home))
    outcome = run_trial(config, trial, ticks=4)
    runs.begin(trial, config)
    runs.end(trial, outcome)
    runs.close("FINISHED")

    parent, child = parent_of(runs), stored(runs)[trial.name]
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
    wanted = {f"final/{k}": v for k, v in outcome.values.items()} | {"final/diverged": 0.0}
    assert final == pytest.approx(wanted)
    assert points(runs, child) == [5000, 10000, 15000, 20000]


def test_a_second_driver_goes_on_with_the_same_runs(home):
    study = two_trials("again")
    first, second = study.trials
    config = first.config(base_config(home))
    runs = start(study, home)
    for trial in study.trials:
        runs.begin(trial, trial.config(base_config(home)))
    write_journal(config.run_folder(), first, ticks=1, pictures=1)
    wait_for(lambda: len(stored(runs)) == 2)
    runs.close("KILLED")
    write_journal(config.run_folder(), first, ticks=2, pictures=1)
    runs = start(study, home)
    runs.begin(first, config)
    runs.begin(first, config)  # crashed and tried again
    runs.end(first, results.record(config.run_folder(), "finished"))
    runs.close("FINISHED")
    children = stored(runs)
    assert set(children) == {first.name, second.name}
    assert points(runs, children[first.name]) == [5000, 10000]


@pytest.mark.parametrize(
    ("status", "shown", "final"),
    [("diverged", "FAILED", 1.0), ("failed", "FAILED", None), ("stopped", "KILLED", None)],
)
def test_how_a_trial_ended_is_told_and_only_what_counts_has_final_values(
    home, status, shown, final
):
    study = two_trials(status)
    trial = study.trials[0]
    config = trial.config(base_config(home))
    write_journal(config.run_folder(), trial, ticks=2, pictures=1)
    runs = start(study, home)
    runs.begin(trial, config)
    runs.end(trial, results.record(config.run_folder(), status, "D/loss is nan"))
    runs.close("FINISHED")
    child = stored(runs)[trial.name]
    assert child.info.status == shown
    assert child.data.tags["ganray.status"] == status
    assert child.data.tags["ganray.reason"] == "D/loss is nan"
    assert child.data.metrics.get("final/diverged") == final
    assert child.data.metrics.get("final/coverage") == (0.0 if final else None)


def test_a_killed_study_is_over_in_time_and_leaves_no_run_running(home):
    study = two_trials("killed")
    runs = start(study, home)
    for trial in study.trials:
        runs.begin(trial, trial.config(base_config(home)))
    wait_for(lambda: len(stored(runs)) == 2 and all(c.run for c in runs._live.values()))
    began = time.monotonic()
    runs.close("KILLED")
    assert time.monotonic() - began < 2.5
    assert parent_of(runs).info.status == "KILLED"
    assert {run.info.status for run in stored(runs).values()} == {"KILLED"}


def test_what_a_dead_store_missed_arrives_when_it_is_back(home, capsys):
    study = two_trials("outage")
    runs = start(study, home)
    lose(runs)
    trial, other = study.trials
    config = trial.config(base_config(home))
    runs.begin(trial, config)
    runs.end(trial, run_trial(config, trial, ticks=2, pictures=1))
    runs.begin(other, other.config(base_config(home)))
    runs.log_report([], "note", {"best": 1.0})
    wait_for(lambda: runs._complained)
    restore(runs, home)
    wait_for(lambda: trial.name not in runs._live)
    runs.close("FINISHED")
    assert capsys.readouterr().out.count("trying again") == 1
    assert stored(runs)[trial.name].data.tags["ganray.status"] == "finished"
    assert stored(runs)[other.name].info.status == "KILLED"


def test_what_a_dead_store_missed_is_sent_by_the_next_driver(home, capsys):
    study = two_trials("missed")
    runs = start(study, home)
    trial = study.trials[0]
    config = trial.config(base_config(home))
    lose(runs)
    runs.begin(trial, config)
    outcome = run_trial(config, trial, ticks=2, pictures=1)
    (config.run_folder() / "config.json").write_text(json.dumps(to_dict(config)))
    runs.end(trial, outcome)
    began = time.monotonic()
    runs.close("KILLED")
    assert time.monotonic() - began < 2.5
    assert "the same command sends the rest" in capsys.readouterr().out
    runs = start(study, home)
    runs.close("FINISHED")
    child = stored(runs)[trial.name]
    assert child.data.metrics["final/coverage"] == pytest.approx(outcome.values["coverage"])
    assert points(runs, child) == [5000, 10000]


def test_a_run_whose_making_was_cut_off_is_completed_not_made_twice(home, monkeypatch):
    study, log_batch, refused = two_trials("halves"), MlflowClient.log_batch, []
    runs = start(study, home)

    def refusing(*args, **kwargs):
        if kwargs.get("params") and len(refused) < 1:
            refused.append(True)
            raise MlflowException("connection reset")
        log_batch(*args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", refusing)
    trial = study.trials[0]
    runs.begin(trial, trial.config(base_config(home)))
    wait_for(lambda: runs._live[trial.name].run)
    runs.close("KILLED")
    assert refused
    assert stored(runs)[trial.name].data.params["latent.size"] == trial.levels[0]


def test_a_store_that_cannot_be_reached_at_the_start_is_one_clear_line(home):
    tracking = replace(base_config(home).tracking, uri=DEAD)
    with pytest.raises(ValueError, match=r"tracking.uri=.*start the server"):
        start(two_trials("away"), home, tracking=tracking)


def test_the_answer_lands_in_the_parent_and_a_long_one_is_cut_at_a_line(home, tmp_path):
    runs = start(two_trials("report"), home)
    table = tmp_path / "table.md"
    table.write_text("| a |\n")
    runs.log_report([table], "| a row |\n" * 1000, {"spread": 0.5, "unknown": float("nan")})
    runs.close("FINISHED")
    parent = parent_of(runs)
    note = parent.data.tags["mlflow.note.content"]
    assert 7900 < len(note) <= 8000
    assert note.endswith("| a row |\n\nMore of this is among the artifacts, in `report/`.")
    assert parent.data.metrics == {"spread": 0.5}
    files = runs._client.list_artifacts(runs.parent.run_id, "report")
    assert [file.path for file in files] == ["report/table.md"]


def test_runs_are_grouped_by_a_param_whatever_the_axis_is():
    rate = Axis("rate", (Level("0.5", {"rate": 0.5}), Level("2", {"rate": 2.0})))
    joined = Axis("latent.distribution+latent.scaling", rate.levels)
    assert axis_key(field_axis("latent.size", 1, 64)) == "latent.size"
    assert axis_key(rate) == "axis.rate"
    assert axis_key(joined) == "axis.distribution_scaling"
    some = Axis(
        "data.images", (Level("5", {"data.images": 5}), Level("all", {"data.images": None}))
    )
    assert axis_key(some) == "axis.images"  # whose param would be "None"


def test_studies_of_one_experiment_have_views_of_their_own_and_notes_are_kept(home):
    one, two = (start(small_study(name), home) for name in ("one", "two"))
    for runs in (one, two):
        runs.close("FINISHED")
    client, experiment = MlflowClient(one.parent.uri), one.parent.experiment_id
    client.set_experiment_tag(experiment, "mlflow.note.content", "my own words")
    views = save_views(one.parent, small_study("one"))
    others = save_views(two.parent, small_study("two"))
    tags = client.get_experiment(experiment).tags
    assert tags["mlflow.note.content"] == "my own words"
    saved = {key.rpartition(".")[2] for key in tags if key.startswith("mlflow.sharedViewState.")}
    assert saved == {view.key for view in views + others}
    assert [view.title for view in views] == [
        "one by distribution",
        "one by size",
        "one by setting",
        "one every run",
        "one samples of seed 0",
    ]


def test_a_view_of_more_runs_than_the_page_loads_does_not_begin_with_the_best(home):
    runs = start(small_study("large", seeds=26), home)
    runs.close("FINISHED")
    views = {v.title: v.key for v in save_views(runs.parent, small_study("large", seeds=26))}
    tags = MlflowClient(runs.parent.uri).get_experiment(runs.parent.experiment_id).tags

    def state(title):
        packed = json.loads(tags[f"mlflow.sharedViewState.{views[title]}"])["state"]
        return json.loads(zlib.decompress(base64.b64decode(packed.removeprefix("deflate;"))))

    averages, pictures = state("large by size"), state("large samples of seed 0")
    assert (averages["orderByKey"], averages["orderByAsc"]) == ("params.`train.rng_seed`", True)
    assert "100 of 104 runs" in averages["compareRunSections"][0]["name"]
    assert pictures["orderByKey"] == "metrics.`final/coverage`"  # four runs, all of them loaded


def test_addresses_of_pages():
    assert view_url("http://host:5000/", "3", "a-b") == (
        "http://host:5000/#/experiments/3/runs"
        "?compareRunsMode=CHART&workflowType=machine_learning&viewStateShareKey=a-b"
    )
    assert compare_url("http://host", "3", ["r1", "r2"]) == (
        "http://host/#/compare-runs?runs=%5B%22r1%22%2C%20%22r2%22%5D&experiments=%5B%223%22%5D"
    )
