"""The driver's side of Ray Tune: resumed sweeps, crashes, low memory. Ray is not started."""

import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest
from ray.exceptions import OutOfMemoryError, RayTaskError

from ganray.config.commands import SweepConfig
from ganray.config.schema import RayConfig
from ganray.integrations import ray_tune
from ganray.sweeps import results
from ganray.sweeps.axes import Axis
from ganray.training.error_file import append_error
from ganray.training.journal import Journal
from ganray.training.plan import Workers
from ganray.training.run_folder import RunFolder
from tests.integrations.small_sweep import base_config, small_sweep

ACTOR_DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: ImplicitFunc
"""
TRACEBACK = """Traceback (most recent call last):
  File "x.py", line 3
ValueError: Far. Out."""
RAISED = str(
    RayTaskError("train", TRACEBACK, ValueError(), proctitle="ray::train", pid=7, ip="192.0.2.2")
)
LOW_MEMORY = """1 worker(s) were killed due to the node running low on memory. Memory on the node
OOM kill reason: Memory usage exceeded threshold
"""


class RecordingObserver:
    """Observer that records the events."""

    def __init__(self):
        self.statuses, self.retries, self.pauses = [], [], 0

    def begin(self, trial, config, levels):
        pass

    def retry(self, trial, reason):
        self.retries.append(reason)

    def pause(self, reason):
        assert "short of memory" in reason
        self.pauses += 1

    def end(self, trial, result):
        self.statuses.append(result.status)


@pytest.fixture
def setup(tmp_path):
    return ray_tune.TrialSetup(base_config(tmp_path), {}, Workers(1, False, 1))


@pytest.fixture
def make_callback(setup):
    def make(options=None):
        observer = RecordingObserver()
        options = options or SweepConfig(retries=1)
        return ray_tune._Callback(setup, small_sweep(), options, observer), observer

    return make


def tune_trial(trial, **attributes):
    return SimpleNamespace(
        trial_id="1", config={"trial": ray_tune._as_json(trial)}, max_failures=2, **attributes
    )


def ganray_trial(values):
    """Trainable that is never run."""


@pytest.fixture
def make_tuner(setup, tmp_path, make_callback):
    def make(options, concurrent, trials=None):
        plan = small_sweep()
        if options.is_adaptive:
            plan = replace(plan, axes=(Axis("rate", (), (0.1, 10.0)),), trials=())
        elif trials:
            plan = replace(plan, trials=plan.trials[:trials])
        callback, _ = make_callback(options)
        tuner = ray_tune._tuner(ganray_trial, setup, plan, options, tmp_path, concurrent, callback)
        assert tuner._local_tuner.get_run_config().callbacks == [callback]
        return tuner._local_tuner

    return make


@pytest.mark.parametrize("design", ["grid", "asha"])
def test_remaining_trials_run_with_the_options_given_now(make_tuner, design):
    options = SweepConfig(design=design)
    make_tuner(options, 8)
    resumed = make_tuner(replace(options, retries=9), 1, trials=3)
    assert resumed._tune_config.max_concurrent_trials == 1
    assert resumed.get_run_config().failure_config.max_failures == 9
    assert len(resumed.param_space["trial"]["grid_search"]) == 3


def test_a_search_is_restored_and_its_trials_have_the_retries_given_now(make_tuner):
    options = SweepConfig(design="pbt")
    assert not make_tuner(options, 2)._is_restored
    restored = make_tuner(replace(options, retries=9), 2)
    assert restored._is_restored
    (callback,) = restored.get_run_config().callbacks
    trial = tune_trial(small_sweep().trials[0])
    callback.on_step_begin(iteration=1, trials=[trial])
    assert trial.max_failures == 9


def test_what_a_callback_holds_is_not_pickled(make_callback):
    callback, observer = make_callback()
    observer.thread = (i for i in ())  # cannot be pickled
    assert vars(pickle.loads(pickle.dumps(callback))) == {}


@pytest.mark.parametrize(
    ("status", "values", "expected"),
    [("finished", {"coverage": 0.4, "recall": 0.3}, 0.3), ("diverged", {}, 0.0)],
)
def test_a_search_gets_the_metric_of_a_run_that_ended_while_the_driver_was_dead(
    setup, monkeypatch, status, values, expected
):
    """Without it Tune would end the search, now and at each --resume."""
    trial, reports = small_sweep().trials[0], []
    monkeypatch.setattr(ray_tune.TrialSetup, "assets_of", lambda *_: None)
    monkeypatch.setattr(ray_tune.tune, "report", reports.append)
    context = SimpleNamespace(get_trial_id=lambda: "1")
    monkeypatch.setattr(ray_tune.tune, "get_context", lambda: context)
    monkeypatch.setattr(ray_tune, "run_worker", None)  # the run is not repeated
    folder = trial.config(setup.base).run_folder()
    journal = Journal(RunFolder(folder))
    journal.collapse(240, {f"collapse/{name}": value for name, value in values.items()}, "")
    results.record(folder, status)
    options = SweepConfig(design="tpe", metric="recall")
    ray_tune._run_trial(setup, small_sweep(), options, {"trial": ray_tune._as_json(trial)})
    assert reports == [{"kimg": setup.base.train.kimg, "collapse/recall": expected}]


def test_a_run_that_failed_before_and_is_stopped_now_counts_as_stopped(setup, make_callback):
    callback, observer = make_callback(SweepConfig(design="asha"))
    trial = small_sweep().trials[0]
    results.record(trial.config(setup.base).run_folder(), "failed", "out of memory")
    callback.on_trial_complete(iteration=1, trials=[], trial=tune_trial(trial))
    assert observer.statuses == ["stopped"]
    assert callback.ended == {trial.name}


@pytest.mark.parametrize(
    ("errors", "line"),
    [
        ([ACTOR_DIED, RAISED], "ValueError: Far. Out."),
        ([RAISED, ACTOR_DIED], "The actor died unexpectedly before finishing this task."),
        ([LOW_MEMORY], "1 worker(s) were killed due to the node running low on memory"),
        ([], "no error message"),
    ],
)
def test_the_last_crash_is_one_line_that_names_the_file_with_all(
    tmp_path, make_callback, errors, line
):
    trial, file = small_sweep().trials[0], tmp_path / "tune-error.txt"
    failures = [f"Failure # {i} (occurred at 10-00-00)\n{e}\n" for i, e in enumerate(errors, 1)]
    file.write_text("".join(failures))
    callback, observer = make_callback()
    callback.on_trial_recover(trial=tune_trial(trial, error_file=str(file)))
    path = tmp_path / "runs" / trial.name / "error.txt"
    assert observer.retries == [f"{line} (details: {path})"]
    if errors:
        assert errors[-1].splitlines()[-1] in path.read_text()
    assert "\x1b" not in path.read_text()


def test_each_crash_is_recorded_once_beside_the_tracebacks_of_workers(tmp_path, make_callback):
    trial, file = small_sweep().trials[0], tmp_path / "tune-error.txt"
    folder = tmp_path / "runs" / trial.name
    append_error(folder, "rank 0 of 1", "KeyError: 'gain'")
    callback, _ = make_callback()
    for number, crash in enumerate([ACTOR_DIED, RAISED], 1):
        with file.open("a") as log:
            log.write(f"Failure # {number} (occurred at 10-00-00)\n{crash}\n")
        callback.on_trial_recover(trial=tune_trial(trial, error_file=str(file)))
    text = (folder / "error.txt").read_text()
    assert text.count("KeyError: 'gain'") == text.count("died unexpectedly") == 1
    assert text.count("ValueError: Far. Out.") == 1


def test_a_trial_reserves_a_part_of_a_gpu_on_the_nodes_that_were_asked_for():
    config, options = RayConfig(accelerator="H100"), SweepConfig(trials_per_gpu=4)
    resources = {"CPU": 2, "GPU": 0.25, "accelerator_type:H100": 0.001}
    workers = Workers(1, True, 2)
    assert ray_tune._resources(config, workers, options) == resources
    labeled = ray_tune._resources(replace(config, labels={"a": "b"}), workers, options)
    assert labeled.bundles == [resources]
    assert labeled._kwargs == {"bundle_label_selector": [{"a": "b"}]}


@pytest.fixture
def run_fits(monkeypatch, tmp_path, setup):
    """Run the sweep with simulated fits of Tune; return the number of pauses."""

    def run(*fits):
        remaining, observer = list(fits), RecordingObserver()

        def tuner(*arguments):
            callback = arguments[-1]
            return SimpleNamespace(fit=lambda: remaining.pop(0)(callback))

        monkeypatch.setattr(ray_tune, "_tuner", tuner)
        monkeypatch.setattr(ray_tune, "time", SimpleNamespace(sleep=lambda _: None))
        ray_tune.run(setup, small_sweep(), SweepConfig(retries=1), tmp_path, 2, observer)
        assert not remaining
        return observer.pauses

    return run


def simulated_fit(tmp_path, *ends, low_memory=True):
    """Return a fit in which trials end, each by number and status, and Ray kills the others."""

    def fit(callback):
        for number, status in ends:
            trial = small_sweep().trials[number]
            results.record(tmp_path / "runs" / trial.name, status)
            callback._end(tune_trial(trial), status, "")
        if low_memory:
            raise RuntimeError("Caught unexpected exception") from OutOfMemoryError("1 killed")

    return fit


def test_low_memory_is_retried_as_long_as_runs_end(run_fits, tmp_path):
    first, second = (simulated_fit(tmp_path, (i, "finished")) for i in (0, 1))
    nothing, last = simulated_fit(tmp_path), simulated_fit(tmp_path, low_memory=False)
    assert run_fits(nothing, first, nothing, second, last) == 4


@pytest.mark.parametrize("status", ["finished", "failed"])
def test_low_memory_ends_the_sweep_if_no_further_run_ends(run_fits, tmp_path, status):
    fit = simulated_fit(tmp_path, (0, status))
    with pytest.raises(ValueError, match=r"short of memory.*, or with --sweep.concurrent 1"):
        run_fits(*[fit] * (3 if status == "finished" else 2))


def test_other_errors_are_not_retried(run_fits):
    def fail(_):
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        run_fits(fail)
