"""Failures of Ray Train's workers become user errors or name the file with their traceback."""

import pickle

from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import WorkerGroupError

from ganray.errors import UserError
from ganray.integrations import ray_train


def worker_failures(*causes):
    """Return what Ray Train raises if each rank raised one of these, pickled once."""
    failures = {
        rank: UserExceptionWithTraceback(cause, f"Traceback ...\n{type(cause).__name__}: {cause}")
        for rank, cause in enumerate(causes)
    }
    return pickle.loads(pickle.dumps(WorkerGroupError("workers failed", failures)))


def test_a_user_error_of_any_rank_stays_a_user_error(tmp_path):
    failures = worker_failures(RuntimeError("peer lost"), UserError("bad file"))
    error = ray_train._failure(failures, tmp_path)
    assert isinstance(error, UserError)
    assert str(error) == "training failed on rank 1: bad file"
    assert not (tmp_path / "error.txt").exists()


def test_any_other_exception_is_no_user_error_and_names_its_traceback(tmp_path):
    error = ray_train._failure(worker_failures(KeyError("gain")), tmp_path)
    assert not isinstance(error, UserError)
    path = tmp_path / "error.txt"
    assert str(error) == f"training failed: KeyError: 'gain'; the traceback is in {path}"
    assert "workers failed" in path.read_text()
