"""Failures of Ray Train's workers become user errors or name the file with their traceback."""

import pickle

import pytest
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from ganray.errors import UserError
from ganray.integrations import ray_train
from ganray.training import journal
from ganray.training.plan import Workers
from ganray.training.run_folder import RunFolder
from tests.conftest import tiny_config


def worker_failures(*causes):
    """Return what Ray Train raises if each rank raised one of these, pickled once."""
    failures = {
        rank: UserExceptionWithTraceback(cause, f"Traceback ...\n{type(cause).__name__}: {cause}")
        for rank, cause in enumerate(causes)
    }
    return pickle.loads(pickle.dumps(WorkerGroupError("workers failed", failures)))


def test_a_user_error_of_any_rank_stays_a_user_error(tmp_path):
    failures = worker_failures(RuntimeError("peer lost"), UserError("bad file"))
    error = ray_train._failure(failures, RunFolder(tmp_path))
    assert isinstance(error, UserError)
    assert str(error) == "training failed on rank 1: bad file"
    assert not (tmp_path / "error.txt").exists()


@pytest.mark.parametrize(
    "failure",
    [
        WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError()),
        WorkerHealthCheckTimeoutError("A worker health check has been hanging for 9 seconds."),
    ],
)
def test_workers_that_die_or_hang_more_often_than_they_may_are_no_bug(tmp_path, failure):
    """Its peer fails with an exception of its own, as the connection is lost."""
    for ranks in ((failure, RuntimeError("reset by peer")), (RuntimeError("reset"), failure)):
        failures = WorkerGroupError("workers failed", dict(enumerate(ranks)))
        error = ray_train._failure(pickle.loads(pickle.dumps(failures)), RunFolder(tmp_path))
        assert isinstance(error, UserError)
        assert f"on rank {ranks.index(failure)}: " in str(error)
        assert "the same --name resumes from the last checkpoint" in str(error)


def test_any_other_exception_is_no_user_error_and_names_its_traceback(tmp_path):
    error = ray_train._failure(worker_failures(KeyError("gain")), RunFolder(tmp_path))
    assert not isinstance(error, UserError)
    path = tmp_path / "error.txt"
    assert str(error) == f"training failed: KeyError: 'gain'; the traceback is in {path}"
    assert "workers failed" in path.read_text()


class DyingTrainer:
    """Trainer of which a worker dies at its start, `deaths` times."""

    def __init__(self, deaths):
        self.deaths, self.fits, self.error = deaths, 0, ActorDiedError()

    def fit(self):
        self.fits += 1
        if self.fits <= self.deaths:
            raise ControllerError(self.error)
        return "result"


def test_a_worker_that_dies_at_its_start_is_restarted_as_often_as_any_other(tmp_path):
    config = tiny_config(tmp_path)
    config.run_folder().mkdir(parents=True)
    most = config.ray.max_failures
    given = config, Workers(1, False, 1), RunFolder(config.run_folder())
    assert ray_train._fit(DyingTrainer(most), *given) == "result"
    events = [event["text"] for event, _ in journal.read(config.run_folder())]
    assert [text.rpartition("; ")[2] for text in events] == [
        f"restart {number} of at most {most}, from the last checkpoint"
        for number in range(1, most + 1)
    ]
    with pytest.raises(UserError, match=r"training failed: .*the same --name resumes"):
        ray_train._fit(DyingTrainer(most + 1), *given)


def test_a_user_error_of_the_controller_stays_a_user_error(tmp_path):
    """Such as that of an elastic run whose workers have no room."""
    trainer = DyingTrainer(1)
    trainer.error = UserError("no room")
    with pytest.raises(UserError, match=r"^no room$"):
        ray_train._fit(trainer, tiny_config(tmp_path), Workers(1, False, 1), RunFolder(tmp_path))


def test_another_error_of_the_controller_is_a_bug(tmp_path):
    error = ControllerError(KeyError("gain"))
    assert isinstance(ray_train._failure(error, RunFolder(tmp_path)), ray_train.WorkerFailedError)
