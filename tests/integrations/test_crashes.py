"""What a study makes of runs that die, where a real Ray would have to be short of memory."""

import signal
import sys
from types import SimpleNamespace

import pytest
from ray.exceptions import OutOfMemoryError

from ganray.integrations import ray_tune
from ganray.options import SweepConfig
from tests.integrations.small_study import small_study

RAISED = """Failure # 1 (occurred at 2026-11-24_10-00-00)
The actor died unexpectedly before finishing this task.
	class_name: ImplicitFunc
Failure # 2 (occurred at 2026-11-24_10-00-09)
ray::ImplicitFunc.train() (pid=7, ip=192.0.2.2)
  File "losses.py", line 3, in loss
RuntimeError: Out of range. Twice.
"""
SHORT = """Failure # 1 (occurred at 2026-11-24_10-00-00)
1 worker(s) were killed due to the node running low on memory. Memory on the node was 9.81GB used
OOM kill reason: Memory usage exceeded threshold
"""


@pytest.mark.parametrize(
    ("errors", "line"),
    [
        (RAISED, "RuntimeError: Out of range. Twice."),
        (SHORT, "1 worker(s) were killed due to the node running low on memory"),
        ("", "no word of it"),
    ],
)
def test_the_last_crash_in_a_line(errors, line):
    assert ray_tune.in_a_line(errors) == line


def killed_for_memory():
    error = RuntimeError("Caught unexpected exception")
    error.__cause__ = OutOfMemoryError("1 worker(s) were killed")
    return error


@pytest.fixture
def fit(monkeypatch, tmp_path):
    """Go through a study with a Tune that ends a number of runs, then raises, time after time."""

    def go_through(*times):
        left = list(times)

        def once():
            ended, error = left.pop(0)
            if callable(ended):
                return ended()
            ray_tune._driver.ended += ended
            if error is not None:
                raise error

        monkeypatch.setattr(ray_tune, "_tuner", lambda *_: SimpleNamespace(fit=once))
        monkeypatch.setattr(ray_tune, "time", SimpleNamespace(sleep=lambda _: None))
        job = SimpleNamespace(workers=SimpleNamespace(count=1, cpus=1, gpu=False))
        ray_tune.run(job, small_study(), SweepConfig(retries=1), tmp_path, 2, SimpleNamespace())
        return left

    return go_through


def test_a_study_goes_on_where_memory_was_short_and_runs_end(fit, capsys):
    short = killed_for_memory()
    assert not fit((0, short), (1, short), (0, short), (1, short), (3, None))
    assert capsys.readouterr().out.count("short of memory") == 4


def test_a_study_that_memory_lets_end_nothing_says_what_to_do(fit):
    with pytest.raises(ValueError, match=r"Ray killed runs 2 times.*--sweep.concurrent 1"):
        fit((3, killed_for_memory()), (0, killed_for_memory()), (0, killed_for_memory()))


def test_other_errors_are_not_tried_again(fit):
    with pytest.raises(RuntimeError, match="no room"):
        fit((0, RuntimeError("no room")), (0, None))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_ray_loses_is_raised_again_at_the_next_step(fit, number):
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def loses_it():
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            signal.raise_signal(number)
        ray_tune._Callback().on_step_begin()

    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            fit((loses_it, None))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
    ray_tune._driver.signalled = None
    ray_tune._Callback().on_step_begin()
