"""MLflow read back: runs and generators are found, and nothing that could run code is loaded."""

import shutil
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from torch import nn

from ganray.integrations import mlflow_runs
from tests.conftest import KnownRun


class Trap(nn.Module):
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def uri(known: KnownRun, tmp_path: Path, monkeypatch) -> str:
    """A copy of the known run's store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")  # must not help
    for file in known.config.home.glob("mlflow.db*"):
        shutil.copy(file, tmp_path)
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def spoiled(known: KnownRun, uri: str, tmp_path: Path):
    """Register a copy of the known model as models:/spoiled/1, and return its folder."""
    mlflow.set_tracking_uri(uri)
    source = mlflow.artifacts.download_artifacts(known.model_uri, dst_path=str(tmp_path / "model"))
    client = MlflowClient(tracking_uri=uri)
    client.create_registered_model("spoiled")
    client.create_model_version("spoiled", source, known.run_id)
    return Path(source)


def test_a_run_by_its_name(known, uri):
    config = replace(known.config, tracking=replace(known.config.tracking, uri=uri))
    assert mlflow_runs.by_name(config).run_id == known.run_id
    assert mlflow_runs.by_name(replace(config, name="other")) is None
    elsewhere = replace(config.tracking, experiment="other")
    assert mlflow_runs.by_name(replace(config, tracking=elsewhere)) is None


def test_a_run_by_its_id_with_its_config(known, uri):
    run, config = mlflow_runs.by_id(uri, known.run_id)
    assert config == known.config
    assert (run.uri, run.folder) == (uri, config.run_folder())


def test_a_run_that_ganray_did_not_make(known, uri):
    run_id = MlflowClient(tracking_uri=uri).create_run("0").info.run_id
    with pytest.raises(ValueError, match=r"has no artifact config\.json.*name a run that ganray"):
        mlflow_runs.by_id(uri, run_id)


def test_a_model_whose_logging_was_cut_off_does_not_count(known, uri):
    client = MlflowClient(tracking_uri=uri)
    run, _ = mlflow_runs.by_id(uri, known.run_id)
    half = client.create_logged_model(run.experiment_id, "generator", run.run_id)
    client.log_outputs(run.run_id, [LoggedModelOutput(half.model_id, 0)])
    assert mlflow_runs.generator_of(run) == known.model_uri


def test_a_generator_comes_with_its_width_and_its_run(known, uri):
    logged = mlflow_runs.load_generator(uri, known.model_uri)
    assert (logged.inputs, logged.run_id) == (8, known.run_id)
    assert logged.module(torch.zeros(3, 8)).shape == (3, 3, 16, 16)


def test_a_pickled_model_is_refused_and_not_unpickled(known, uri, tmp_path):
    mlflow.set_tracking_uri(uri)
    with mlflow.start_run(run_id=known.run_id):
        info = mlflow.pytorch.log_model(
            Trap(tmp_path / "caught"),
            name="pickled",
            serialization_format="pickle",
            pip_requirements=["torch"],
        )
    with pytest.raises(ValueError, match=r"is not in torch's pt2 format.*or name a checkpoint"):
        mlflow_runs.load_generator(uri, info.model_uri)
    assert not (tmp_path / "caught").exists()


def test_a_pickle_inside_the_archive_is_refused(uri, spoiled, tmp_path):
    torch.save(Trap(tmp_path / "caught"), spoiled / "data" / "model.pt2")
    with pytest.raises(ValueError, match="not a pickle-free payload"):
        mlflow_runs.load_generator(uri, "models:/spoiled/1")
    assert not (tmp_path / "caught").exists()


def test_a_model_that_brings_code_is_refused(uri, spoiled):
    about = spoiled / "MLmodel"
    about.write_text(about.read_text().replace("    code: null", "    code: code"))
    with pytest.raises(ValueError, match="brings code of its own"):
        mlflow_runs.load_generator(uri, "models:/spoiled/1")


def test_a_model_of_another_framework_is_refused(uri, spoiled):
    about = spoiled / "MLmodel"
    about.write_text(about.read_text().replace("  pytorch:", "  sklearn:"))
    with pytest.raises(ValueError, match="is not in torch's pt2 format"):
        mlflow_runs.load_generator(uri, "models:/spoiled/1")


def test_a_model_that_does_not_say_what_it_takes(uri, spoiled):
    about = spoiled / "MLmodel"
    kept = about.read_text().split("signature:")[0]
    about.write_text(kept)
    with pytest.raises(ValueError, match="does not say which tensors it takes"):
        mlflow_runs.load_generator(uri, "models:/spoiled/1")


def test_a_store_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(ValueError, match=r"no such file; give --home or --tracking-uri"):
        mlflow_runs.by_id(f"sqlite:///{tmp_path}/none.db", "0" * 32)
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_down_is_one_clear_line(known):
    with pytest.raises(ValueError, match=r"^MLflow at http://127.0.0.1:9: .*right\?$") as error:
        mlflow_runs.by_id("http://127.0.0.1:9", known.run_id)
    assert "\n" not in str(error.value)
