"""The model registry: each model is a version, and the one that covers most has the alias."""

import shutil

import pytest
from mlflow import MlflowClient

from ganray.integrations.mlflow_registry import register
from ganray.integrations.mlflow_runs import Run

BASIS = {"extractor": "abc", "reference": "def", "samples": 5000}


@pytest.fixture
def run(tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("faces", artifact_location=str(tmp_path / "artifacts"))
    return Run(uri, client.create_run(experiment).info.run_id, experiment, tmp_path)


def log_model(run):
    client = run.client()
    model = client.create_logged_model(run.experiment_id, "generator", run.run_id)
    return client.finalize_logged_model(model.model_id, "READY").model_uri


def holder(run):
    return str(run.client().get_registered_model("faces").aliases["best"])


def test_the_version_with_the_highest_coverage_has_the_alias(run):
    for coverage, best, outcome in (
        (0.5, "1", "models:/faces/1 has coverage 0.5 and is @best"),
        (0.4, "1", "models:/faces/2 has coverage 0.4; version 1, with 0.5, stays @best"),
        (0.5, "1", "models:/faces/3 has coverage 0.5; version 1, with 0.5, stays @best"),
        (0.6, "4", "models:/faces/4 has coverage 0.6 and is @best instead of version 1, with 0.5"),
    ):
        assert register(run, log_model(run), "faces", coverage, BASIS) == outcome
        assert holder(run) == best
    version = run.client().get_model_version_by_alias("faces", "best")
    assert version.run_id == run.run_id
    assert version.tags == {
        "ganray.coverage": "0.6",
        "ganray.extractor": "abc",
        "ganray.reference": "def",
        "ganray.samples": "5000",
    }


@pytest.mark.parametrize("name", BASIS)
def test_coverage_that_was_measured_otherwise_does_not_compare(run, name):
    register(run, log_model(run), "faces", 0.5, BASIS)
    outcome = register(run, log_model(run), "faces", 0.9, BASIS | {name: "other"})
    assert outcome == (
        f"models:/faces/2 has coverage 0.9; version 1, measured with other {name}, stays @best"
    )
    assert holder(run) == "1"


def test_a_model_is_one_version_which_has_its_last_report(run):
    model = log_model(run)
    for coverage in (0.5, 0.3):
        outcome = register(run, model, "faces", coverage, BASIS)
        assert outcome == f"models:/faces/1 has coverage {coverage} and is @best"
    (version,) = run.client().search_model_versions("name = 'faces'")
    assert version.tags["ganray.coverage"] == "0.3"
