"""Saved views of MLflow: what is saved, and that the installed MLflow still reads the format."""

import base64
import json
import re
import shutil
import zlib
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from ganray.integrations.mlflow_sweep import has_means, sync_sweep
from ganray.integrations.mlflow_view import save_views, view_url
from tests.integrations.small_sweep import DATASET, base_config, small_sweep

SERVER = "http://host:5000"


@pytest.fixture(scope="module")
def home(tmp_path_factory, empty_store):
    """A store for all tests here, as opening one takes long."""
    home = tmp_path_factory.mktemp("views")
    shutil.copy(empty_store, home / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield home


def saved(home, plan):
    """Save the views of a sweep; return its parent run and their URLs."""
    with sync_sweep(plan, base_config(home), lambda _: DATASET, {}) as runs:
        for trial in plan.trials[:3]:
            runs.begin(trial, trial.config(base_config(home)))
    return runs.parent, save_views(runs.parent, plan, SERVER, has_means=has_means(plan))


def tags_of(run):
    return MlflowClient(run.uri).get_experiment(run.experiment_id).tags


def states(run):
    """Return the saved states by title."""
    views = [json.loads(v) for k, v in tags_of(run).items() if "sharedViewState" in k]
    packed = {view["name"]: view["state"].removeprefix("deflate;") for view in views}
    return {k: json.loads(zlib.decompress(base64.b64decode(v))) for k, v in packed.items()}


def test_sweeps_of_one_experiment_have_views_of_their_own_and_a_description_is_kept(home):
    one, urls = saved(home, small_sweep("one"))
    MlflowClient(one.uri).set_experiment_tag(one.experiment_id, "mlflow.note.content", "my words")
    two, _ = saved(home, small_sweep("two"))
    assert tags_of(two)["mlflow.note.content"] == "my words"
    titles = [*urls]
    assert titles == [
        "one by distribution",
        "one by size",
        "one by setting",
        "one every run",
        "one samples of seed 0",
    ]
    assert {*titles, *(title.replace("one", "two") for title in titles)} == {*states(two)}
    assert urls["one by size"] == view_url(SERVER, one.experiment_id, "one by size")


def test_a_view_of_more_runs_than_the_page_loads_does_not_begin_with_the_best(home):
    run, _ = saved(home, small_sweep("large", seeds=26))
    names = ("every run", "by size", "samples of seed 0")
    every, averages, samples = (states(run)[f"large {name}"] for name in names)
    assert (every["orderByKey"], every["orderByAsc"]) == ("params.`train.rng_seed`", True)
    assert "100 of 104 runs" in every["compareRunSections"][0]["name"]
    for view in (averages, samples):  # of four runs, which all load
        assert view["orderByKey"] == "metrics.`final/coverage`"
    assert averages["searchFilter"] == "tags.`ganray.sweep_means` = 'large'"


def test_the_list_of_runs_is_shown_where_it_is_the_legend(home):
    run, _ = saved(home, small_sweep("lists"))
    hidden = {
        name: state["runListHidden"] for name, state in states(run).items() if "lists" in name
    }
    assert hidden == {
        "lists by distribution": True,
        "lists by size": True,
        "lists by setting": False,  # of four lines
        "lists every run": False,
        "lists samples of seed 0": False,
    }


def test_the_installed_mlflow_knows_every_name_of_the_format(home):
    """If this fails, MLflow's page has changed: adapt mlflow_view.py, run `pytest -m browser`."""
    run, _ = saved(home, small_sweep("names"))
    state = states(run)["names every run"]
    charts, sections = state["compareRunCharts"], state["compareRunSections"]
    names = {*state, *state["globalLineChartConfig"], *sections[0]}
    names |= {key for chart in charts for key in chart} | {chart["type"] for chart in charts}
    names |= {*states(run)["names by size"]["groupBy"], "groupByData", "sharedViewState"}
    names |= {"viewStateShareKey", "compareRunsMode", "SHOW_ALL", "FIRST_20_RUNS"}
    assert len(names) > 60
    pages = (Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js").glob(
        "*.js"
    )
    words = set()
    for page in pages:
        words |= set(re.findall(r"[\w-]+", page.read_text()))
    assert names <= words


def test_urls():
    assert view_url(f"{SERVER}/", "3", "a b") == (
        f"{SERVER}/#/experiments/3/runs"
        "?compareRunsMode=CHART&workflowType=machine_learning&viewStateShareKey=a-b"
    )
