"""What a study makes of runs that die, where a real Ray would have to be short of memory."""

import pickle
from types import SimpleNamespace

import pytest
from ray.exceptions import OutOfMemoryError, RayTaskError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import WorkerGroupError

from ganray.config.commands import SweepConfig
from ganray.errors import UserError
from ganray.integrations import ray_train, ray_tune
from ganray.sweeps import results
from ganray.training.launch import append_error
from tests.integrations.small_study import base_config, small_study

DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: ImplicitFunc
"""
TRACEBACK = """Traceback (most recent call last):
  File "x.py", line 3
ValueError: Far. Out."""
RAISED = str(
    RayTaskError("train", TRACEBACK, ValueError(), proctitle="ray::train", pid=7, ip="192.0.2.2")
)
SHORT = """1 worker(s) were killed due to the node running low on memory. Memory on the node
OOM kill reason: Memory usage exceeded threshold
"""


@pytest.mark.parametrize(
    ("errors", "line"),
    [
        ([DIED, RAISED], "ValueError: Far. Out."),
        ([RAISED, DIED], "The actor died unexpectedly before finishing this task."),
        ([SHORT], "1 worker(s) were killed due to the node running low on memory"),
        ([], "no error message"),
    ],
)
def test_the_last_crash_is_said_in_a_line_and_all_are_kept(tmp_path, study, errors, line):
    file = tmp_path / "tunes-error.txt"
    failures = [f"Failure # {i} (occurred at 10-00-00)\n{e}\n" for i, e in enumerate(errors, 1)]
    file.write_text("".join(failures))
    this = study.trials[0]
    trial = SimpleNamespace(error_file=str(file), trial_id="1", config={"trial": vars(this)})
    said = ray_tune._Callback()._keep_error(trial)
    kept = tmp_path / "runs" / this.name / "error.txt"
    assert said == f"{line} (details: {kept})"
    if errors:
        assert errors[-1].splitlines()[-1] in kept.read_text()
    assert "\x1b" not in kept.read_text()


def test_each_crash_of_a_run_is_recorded_once_beside_the_workers_own_tracebacks(tmp_path, study):
    this, file = study.trials[0], tmp_path / "tunes-error.txt"
    folder = tmp_path / "runs" / this.name
    append_error(folder, "rank 0 of 1", "KeyError: 'gain'")
    trial = SimpleNamespace(error_file=str(file), trial_id="1", config={"trial": vars(this)})
    for number, crash in enumerate([DIED, RAISED], 1):
        with file.open("a") as log:
            log.write(f"Failure # {number} (occurred at 10-00-00)\n{crash}\n")
        ray_tune._Callback()._keep_error(trial)
    text = (folder / "error.txt").read_text()
    assert text.count("KeyError: 'gain'") == text.count("died unexpectedly") == 1
    assert text.count("ValueError: Far. Out.") == 1


def failed(*causes):
    """What Ray Train raises if each rank raised one of these, after a trip between processes."""
    failures = {
        rank: UserExceptionWithTraceback(cause, f"Traceback ...\n{type(cause).__name__}: {cause}")
        for rank, cause in enumerate(causes)
    }
    return pickle.loads(pickle.dumps(WorkerGroupError("workers failed", failures)))


def test_a_user_error_of_a_worker_stays_one_whichever_rank_raises_it(tmp_path):
    error = ray_train._failure(failed(RuntimeError("peer lost"), UserError("bad file")), tmp_path)
    assert isinstance(error, UserError)
    assert str(error) == "training failed on rank 1: bad file"
    assert not (tmp_path / "error.txt").exists()


def test_a_bug_of_a_worker_is_no_user_error_and_names_its_traceback(tmp_path):
    error = ray_train._failure(failed(KeyError("gain")), tmp_path)
    assert not isinstance(error, UserError)
    assert (
        str(error) == f"training failed: KeyError: 'gain'; the traceback is in {tmp_path}/error.txt"
    )
    assert "workers failed" in (tmp_path / "error.txt").read_text()


class SweepProgress:
    """Hears what a watcher hears."""

    def __init__(self):
        self.halts = 0

    def halted(self, why):
        assert "short of memory" in why
        self.halts += 1

    def end(self, trial, outcome):
        pass


@pytest.fixture
def study(tmp_path, monkeypatch):
    study, driver = small_study(), ray_tune._Driver()
    monkeypatch.setattr(driver, "ended", set(), raising=False)
    driver.job = SimpleNamespace(
        base=base_config(tmp_path), workers=SimpleNamespace(count=1, cpus=1, gpu=False)
    )
    driver.study, driver.options, driver.watcher = study, SweepConfig(retries=1), SweepProgress()
    monkeypatch.setattr(ray_tune, "_driver", driver)
    return study


@pytest.fixture
def fit(monkeypatch, tmp_path, study):
    """Go through the study with a Tune whose fits do what they are told; returns its halts."""

    def go_through(*fits):
        left, board = list(fits), SweepProgress()
        monkeypatch.setattr(
            ray_tune, "_tuner", lambda *_: SimpleNamespace(fit=lambda: left.pop(0)())
        )
        monkeypatch.setattr(ray_tune, "time", SimpleNamespace(sleep=lambda _: None))
        driver = ray_tune._driver
        ray_tune.run(driver.job, study, driver.options, tmp_path, 2, board)
        assert not left
        return board.halts

    return go_through


def tunes(study, tmp_path, *ends, short=True):
    """A fit in which runs end, each by its number and how, and Ray then kills the others."""

    def once():
        for number, status in ends:
            this = study.trials[number]
            results.record(tmp_path / "runs" / this.name, status)
            trial = SimpleNamespace(trial_id="1", config={"trial": vars(this)})
            ray_tune._Callback()._end(trial, status, "")
        if short:
            raise RuntimeError("Caught unexpected exception") from OutOfMemoryError("1 killed")

    return once


def test_a_study_goes_on_where_memory_was_short_as_long_as_runs_end(fit, study, tmp_path):
    first, second = (tunes(study, tmp_path, (i, "finished")) for i in (0, 1))
    nothing = tunes(study, tmp_path)
    assert fit(nothing, first, nothing, second, tunes(study, tmp_path, short=False)) == 4


@pytest.mark.parametrize("status", ["finished", "failed"])
def test_a_study_gives_up_where_none_but_the_same_runs_end(fit, study, tmp_path, status):
    again = tunes(study, tmp_path, (0, status))
    with pytest.raises(ValueError, match=r"short of memory.*, as with --sweep.concurrent 1"):
        fit(*[again] * (3 if status == "finished" else 2))


def test_other_errors_are_not_tried_again(fit):
    def no_room():
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        fit(no_room)
