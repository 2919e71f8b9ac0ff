"""MLflow models: generators are logged and loaded, and no program in a model is ever run."""

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from torch import nn

from ganray.integrations import mlflow_models, mlflow_runs
from ganray.integrations.mlflow_sync import event_metrics
from ganray.training import journal
from ganray.training.checkpoints import BEST_FOLDER
from ganray.training.run_folder import RunFolder
from ganray.training.state import STATE_FILE, generator_from_checkpoint
from tests.conftest import TrainedRun


class Trap(nn.Module):
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def uri(trained_run: TrainedRun, tmp_path: Path, monkeypatch) -> str:
    """A copy of the trained run's store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")  # must make no difference
    for file in trained_run.config.home.glob("mlflow.db*"):
        shutil.copy(file, tmp_path)
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def model(trained_run: TrainedRun, uri: str, tmp_path: Path) -> Path:
    """Register a copy of the trained run's model as models:/copy/1, and return its folder."""
    mlflow.set_tracking_uri(uri)
    folder = mlflow.artifacts.download_artifacts(
        trained_run.model_uri, dst_path=str(tmp_path / "model")
    )
    client = MlflowClient(tracking_uri=uri)
    client.create_registered_model("copy")
    client.create_model_version("copy", folder, trained_run.run_id)
    return Path(folder)


def test_a_generator_is_loaded_with_its_config_and_run(trained_run, uri):
    logged = mlflow_models.load_generator(uri, trained_run.model_uri)
    assert (logged.config, logged.classes, logged.run_id) == (
        trained_run.config,
        0,
        trained_run.run_id,
    )
    z = torch.randn(3, 8)
    assert torch.equal(logged.G(z), generator_from_checkpoint(trained_run.checkpoint)(z))


def test_mlflow_loads_the_same_generator_as_a_module(trained_run, uri):
    mlflow.set_tracking_uri(uri)
    module = mlflow.pytorch.load_model(trained_run.model_uri)
    z = torch.randn(5, 8)  # not the batch size of the example
    torch.testing.assert_close(module(z), generator_from_checkpoint(trained_run.checkpoint)(z))


def test_the_newest_generator_is_one_whose_logging_ended(trained_run, uri):
    client = MlflowClient(tracking_uri=uri)
    run, _ = mlflow_runs.get_run(uri, trained_run.run_id)
    incomplete = client.create_logged_model(run.experiment_id, "generator", run.run_id)
    client.log_outputs(run.run_id, [LoggedModelOutput(incomplete.model_id, 0)])
    assert mlflow_models.newest_generator(run) == trained_run.model_uri


def test_the_best_checkpoint_is_logged_with_its_step_and_metrics(trained_run, uri, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained_run.checkpoint.with_name("checkpoint_0000000010"), folder / BEST_FOLDER)
    events = journal.Journal(RunFolder(folder))
    events.collapse(60, {"collapse/coverage": 0.3}, "")
    events.collapse(120, {"collapse/coverage": 0.4}, "")
    run = replace(mlflow_runs.get_run(uri, trained_run.run_id)[0], folder=folder)
    for event, _ in journal.read(folder):
        run.client().log_batch(run.run_id, metrics=event_metrics(event))
    for _ in range(2):  # a job that is started again
        last = mlflow_models.log_generators(run, trained_run.checkpoint)
    assert last == trained_run.model_uri  # has the weights of this checkpoint already
    client = run.client()
    steps = {
        client.get_logged_model(output.model_id).name: output.step
        for output in client.get_run(run.run_id).outputs.model_outputs
    }
    assert steps == {"generator": 240, "best_coverage": 120}
    best = mlflow_models.logged_checkpoint(run, folder / BEST_FOLDER)
    (metric,) = client.get_logged_model(best.removeprefix("models:/")).metrics
    assert (metric.key, metric.value, metric.step) == ("collapse/coverage", 0.4, 120)
    history = client.get_metric_history(run.run_id, "collapse/coverage")
    assert [point.step for point in history] == [60, 120]


def test_a_damaged_best_checkpoint_is_left_out(trained_run, uri, tmp_path, ganray_log):
    folder = tmp_path / "run"
    shutil.copytree(trained_run.checkpoint, folder / BEST_FOLDER)
    (folder / BEST_FOLDER / STATE_FILE).write_bytes(b"")
    run = replace(mlflow_runs.get_run(uri, trained_run.run_id)[0], folder=folder)
    assert mlflow_models.log_generators(run, trained_run.checkpoint) == trained_run.model_uri
    assert "damaged" in ganray_log.text


def test_a_pickled_model_is_rejected(trained_run, uri, tmp_path):
    mlflow.set_tracking_uri(uri)
    with mlflow.start_run(run_id=trained_run.run_id):
        info = mlflow.pytorch.log_model(
            Trap(tmp_path / "caught"),
            name="pickled",
            serialization_format="pickle",
            pip_requirements=["torch"],
        )
    with pytest.raises(ValueError, match=r"never loads programs.*or a checkpoint"):
        mlflow_models.load_generator(uri, info.model_uri)
    assert not (tmp_path / "caught").exists()


def test_programs_in_a_model_are_not_run(trained_run, uri, model, tmp_path):
    """Neither its code, nor an expression that torch.export would evaluate, nor a pickle."""
    caught = tmp_path / "caught"
    description = model / "MLmodel"
    description.write_text(description.read_text().replace("    code: null", "    code: code"))
    (model / "code").mkdir()
    (model / "code" / "sitecustomize.py").write_text(f"open({str(caught)!r}, 'w')")
    program = model / "data" / "model.pt2"
    expression = f"open({str(caught)!r}, 'w')"
    with zipfile.ZipFile(program) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in files if name.endswith("models/model.json"))
    graph = json.loads(files[name])

    def poison(node):
        if isinstance(node, dict):
            return {k: expression if k == "expr_str" else poison(v) for k, v in node.items()}
        return [poison(item) for item in node] if isinstance(node, list) else node

    poisoned = poison(graph)
    assert poisoned != graph
    with zipfile.ZipFile(program, "w") as archive:
        for file, content in (files | {name: json.dumps(poisoned)}).items():
            archive.writestr(file, content)
    z = torch.randn(3, 8)
    expected = generator_from_checkpoint(trained_run.checkpoint)(z)
    assert torch.equal(mlflow_models.load_generator(uri, "models:/copy/1").G(z), expected)
    torch.save(Trap(caught), program)
    assert torch.equal(mlflow_models.load_generator(uri, "models:/copy/1").G(z), expected)
    assert not caught.exists()


def test_a_pickle_in_place_of_the_weights_is_rejected(uri, model, tmp_path):
    torch.save({"G_ema": Trap(tmp_path / "caught")}, model / "extra_files" / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt cannot be read"):
        mlflow_models.load_generator(uri, "models:/copy/1")
    assert not (tmp_path / "caught").exists()


def test_a_model_without_weights_is_rejected(uri, model):
    shutil.rmtree(model / "extra_files")
    with pytest.raises(ValueError, match=r"has no extra_files/config\.json and state\.pt"):
        mlflow_models.load_generator(uri, "models:/copy/1")
