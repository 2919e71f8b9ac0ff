"""What takes seconds and is made once: an MLflow store, and a process with the imports."""

import multiprocessing

import pytest
from mlflow import MlflowClient


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A store with its tables made, which takes seconds; tests get copies of the file."""
    home = tmp_path_factory.mktemp("store")
    MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db").search_experiments()
    return home / "mlflow.db"


@pytest.fixture(scope="session")
def forkserver():
    """Start processes that need not import torch and MLflow, which takes 4 s of a core each."""
    context = multiprocessing.get_context("forkserver")
    store = "mlflow.store.tracking.sqlalchemy_store"
    context.set_forkserver_preload(["ganray.integrations.mlflow_sync", "tests.conftest", store])
    return context
