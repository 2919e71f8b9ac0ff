"""An MLflow store that is made once."""

import pytest
from mlflow import MlflowClient


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A store with its tables made, which takes seconds; tests get copies of the file."""
    home = tmp_path_factory.mktemp("store")
    MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db").search_experiments()
    return home / "mlflow.db"
