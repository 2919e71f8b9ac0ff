"""What Tune is asked where a study goes on. No Ray is started."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from ganray.config.commands import SweepConfig
from ganray.integrations import ray_tune
from ganray.sweeps import results
from ganray.sweeps.axes import Axis
from ganray.training.journal import Journal
from ganray.training.plan import Workers
from tests.integrations.small_study import base_config, small_study


def ganray_trial(values):
    """Never run."""


def tuner(options, home, at_a_time, trials=None):
    study = small_study()
    if options.is_adaptive:
        study = replace(study, axes=(Axis("rate", (), (0.1, 10.0)),), trials=())
    elif trials:
        study = replace(study, trials=study.trials[:trials])
    job = ray_tune.Job(base_config(home), {}, Workers(1, False, 1))
    return ray_tune._tuner(ganray_trial, job, study, options, home, at_a_time)._local_tuner


@pytest.mark.parametrize("design", ["grid", "asha"])
def test_runs_that_are_left_go_on_as_many_at_a_time_as_are_asked_for_now(tmp_path, design):
    options = SweepConfig(design=design)
    tuner(options, tmp_path, 8)
    again = tuner(replace(options, retries=9), tmp_path, 1, trials=3)
    assert again._tune_config.max_concurrent_trials == 1
    assert again.get_run_config().failure_config.max_failures == 9
    assert len(again.param_space["trial"]["grid_search"]) == 3


def test_a_search_is_restored_and_its_runs_get_the_retries_that_are_asked_for_now(
    tmp_path, monkeypatch
):
    options = SweepConfig(design="pbt")
    assert not tuner(options, tmp_path, 2)._is_restored
    assert tuner(options, tmp_path, 2)._is_restored
    monkeypatch.setattr(ray_tune._driver, "options", replace(options, retries=9), raising=False)
    restored = SimpleNamespace(max_failures=2)
    ray_tune._Callback().on_step_begin(iteration=1, trials=[restored])
    assert restored.max_failures == 9


@pytest.mark.parametrize(
    ("status", "values", "expected"),
    [("finished", {"coverage": 0.4, "recall": 0.3}, 0.3), ("diverged", {}, 0.0)],
)
def test_a_run_that_ended_when_the_driver_was_killed_tells_a_search_its_figure(
    tmp_path, monkeypatch, status, values, expected
):
    """Without it Tune would end the search, now and at each --resume."""
    study, told = small_study(), []
    job = ray_tune.Job(base_config(tmp_path), {}, Workers(1, False, 1))
    monkeypatch.setattr(ray_tune.Job, "given_to", lambda *_: None)
    monkeypatch.setattr(ray_tune.tune, "report", told.append)
    context = SimpleNamespace(get_trial_id=lambda: "1")
    monkeypatch.setattr(ray_tune.tune, "get_context", lambda: context)
    monkeypatch.setattr(ray_tune, "run_worker", None)  # it is not run again
    first = study.trials[0]
    folder = first.config(job.base).run_folder()
    log = Journal(folder)
    log.collapse(240, {f"collapse/{name}": value for name, value in values.items()}, "")
    log.close()
    results.record(folder, status)
    given = {"trial": ray_tune._plain(first)}
    ray_tune._run(job, study, SweepConfig(design="tpe", metric="recall"), given)
    assert told == [{"kimg": job.base.train.kimg, "collapse/recall": expected}]


def test_a_run_that_failed_once_and_is_stopped_now_was_stopped(tmp_path, monkeypatch):
    study, ends = small_study(), []
    job = ray_tune.Job(base_config(tmp_path), {}, Workers(1, False, 1))
    watcher = SimpleNamespace(end=lambda trial, outcome: ends.append(outcome.status))
    parts = {"job": job, "study": study, "options": SweepConfig(design="asha"), "watcher": watcher}
    for name, part in (parts | {"ended": set()}).items():
        monkeypatch.setattr(ray_tune._driver, name, part, raising=False)
    first = study.trials[0]
    results.record(first.config(job.base).run_folder(), "failed", "out of memory")
    tried = SimpleNamespace(config={"trial": ray_tune._plain(first)}, trial_id="1")
    ray_tune._Callback().on_trial_complete(iteration=1, trials=[tried], trial=tried)
    assert ends == ["stopped"]
    assert ray_tune._driver.ended == {first.name}
