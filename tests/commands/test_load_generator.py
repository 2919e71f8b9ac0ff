"""A generator is the same by each of its names, and a wrong name is one clear line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from ganray.commands import load_generator
from ganray.config.serialization import to_dict
from ganray.integrations import mlflow_runs
from ganray.training.state import TrainState
from tests.conftest import TrainedRun, tiny_config

Z = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def no_store_in_the_environment(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def registered(trained_run: TrainedRun):
    uri = f"sqlite:///{trained_run.config.home}/mlflow.db"
    mlflow.set_tracking_uri(uri)  # where MLflow looks for a model, whatever its client was told
    client = MlflowClient(tracking_uri=uri)
    client.create_registered_model("squares")
    client.create_model_version("squares", trained_run.model_uri, trained_run.run_id)
    client.set_registered_model_alias("squares", "best", "1")


def expected(trained_run: TrainedRun) -> np.ndarray:
    return load_generator.load_generator(
        str(trained_run.checkpoint), trained_run.config.home
    ).images(Z)


@pytest.mark.parametrize("name", ["tiny", "{folder}", "{checkpoint}"])
def test_folders_and_names_of_runs(trained_run, name):
    folder = trained_run.config.run_folder()
    name = name.format(folder=folder, checkpoint=trained_run.checkpoint)
    found = load_generator.load_generator(name, trained_run.config.home)
    assert found.source == f"checkpoint {trained_run.checkpoint}"  # the newest of two
    assert (found.folder, found.run, found.classes) == (folder, None, 0)
    assert (found.images(Z) == expected(trained_run)).all()
    assert found.images(Z).shape == (5, 16, 16, 3)


@pytest.mark.parametrize(
    "name", ["{run_id}", "{model}", "models:/squares/1", "models:/squares@best"]
)
def test_names_in_mlflow(trained_run, registered, name):
    name = name.format(run_id=trained_run.run_id, model=trained_run.model_uri)
    found = load_generator.load_generator(name, trained_run.config.home)
    assert found.source.startswith("model models:/")
    assert (found.run.run_id, found.folder) == (trained_run.run_id, trained_run.config.run_folder())
    assert (found.config, found.classes) == (trained_run.config, 0)
    assert (found.images(Z) == expected(trained_run)).all()


def test_a_checkpoint_away_from_its_run(trained_run, tmp_path):
    shutil.copytree(trained_run.checkpoint, tmp_path / "given")
    found = load_generator.load_generator(str(tmp_path / "given"), tmp_path / "home")
    assert found.folder is None
    assert found.config == trained_run.config
    kept = found.output_folder("evaluation", None, tmp_path / "home")
    assert kept == tmp_path / "home" / "evaluation" / "tiny" / "given"


def test_what_is_said_of_an_older_checkpoint_has_a_folder_of_its_own(
    trained_run, tmp_path, monkeypatch
):
    home, picture = tmp_path / "home", tmp_path / "a.png"
    picture.write_bytes(b"png")
    shutil.copytree(trained_run.config.home, home)
    folder = home / "runs" / "tiny"
    shutil.copytree(folder / trained_run.checkpoint.name, folder / "best_coverage")
    sent = []
    monkeypatch.setattr(mlflow_runs, "log_files", lambda run, files, folder: sent.append(folder))
    places = {
        "tiny": "evaluation",
        str(folder / trained_run.checkpoint.name): "evaluation",
        str(folder / "best_coverage"): "evaluation/best_coverage",
    }
    for name, place in places.items():
        found = load_generator.load_generator(name, home)
        assert found.output_folder("evaluation", None, home) == folder / place
        assert found.label == place.replace("evaluation", "tiny")
        found.log([picture], "evaluation")
        assert sent.pop() == place


def test_a_home_that_was_moved_takes_its_store_along(trained_run, tmp_path):
    shutil.copytree(trained_run.config.home, tmp_path / "moved")
    found = load_generator.load_generator("tiny", tmp_path / "moved")
    assert mlflow_runs.store_uri(found.config) == f"sqlite:///{tmp_path}/moved/mlflow.db"


def test_a_run_without_a_model_has_its_newest_checkpoint(trained_run, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(trained_run.config.home, home)
    folder = home / "runs" / "other"
    shutil.copytree(trained_run.config.run_folder(), folder)
    other = replace(trained_run.config, home=home, name="other")
    (folder / "config.json").write_text(json.dumps(to_dict(other)))
    dataset = {"name": "squares", "digest": "0", "path": "/data"}
    run = mlflow_runs.open_run(other, dataset, {})
    found = load_generator.load_generator(run.run_id, home)
    assert found.source == f"checkpoint {folder / trained_run.checkpoint.name}"
    assert found.run.run_id == run.run_id

    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"logged no generator, and no checkpoint of run 'other'"):
        load_generator.load_generator(run.run_id, home)


def test_a_conditional_generator_is_told_the_label(tmp_path):
    config = tiny_config(tmp_path)
    config = replace(config, network=replace(config.network, conditional=True))
    TrainState(config, (16, 16, 3), torch.device("cpu"), 2).save(tmp_path / "two")
    found = load_generator.load_generator(str(tmp_path / "two"), tmp_path)
    assert found.classes == 2
    seen = []
    watched = replace(found, G=lambda x: seen.append(x) or found.G(x))
    watched.images(Z, 1)
    assert torch.equal(seen[0][:, :8], Z)
    assert seen[0][:, 8:].tolist() == [[0, 1]] * 5


def test_many_images_are_made_a_batch_at_a_time(trained_run):
    found = load_generator.load_generator("tiny", trained_run.config.home)
    sizes = []
    watched = replace(found, G=lambda x: sizes.append(len(x)) or found.G(x))
    assert len(watched.images(torch.randn(150, 8))) == 150
    assert max(sizes) == 64


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("oranges", r"RUN='oranges' must be .* or the name of a run in .*: tiny$"),
        ("0" * 32, r"MLflow at sqlite:.*not found"),
        ("models:/nothing/1", r"MLflow at sqlite:.*nothing not found"),
        ("models:/m-123", r"MLflow at sqlite:.*'m-123' not found"),
        ("models:/", r"MLflow at sqlite:.*Not a proper models:/ URI"),
    ],
)
def test_a_wrong_name_is_one_clear_line(trained_run, name, message):
    with pytest.raises(ValueError, match=message) as error:
        load_generator.load_generator(name, trained_run.config.home)
    assert "\n" not in str(error.value)


def test_a_home_without_runs_says_so(tmp_path):
    with pytest.raises(ValueError, match="it has none; give --home"):
        load_generator.load_generator("tiny", tmp_path)


def test_a_damaged_checkpoint_is_named(trained_run, tmp_path):
    shutil.copytree(trained_run.checkpoint, tmp_path / "given")
    (tmp_path / "given" / "state.pt").write_bytes(b"PK cut off")
    with pytest.raises(ValueError, match=r"given/state.pt cannot be read"):
        load_generator.load_generator(str(tmp_path / "given"), tmp_path)


def test_a_checkpoint_that_is_being_written_is_left_alone(trained_run, tmp_path):
    folder = tmp_path / "runs" / "tiny"
    shutil.copytree(trained_run.config.run_folder(), folder)
    shutil.copytree(trained_run.checkpoint, folder / "checkpoint_9999999999.part")
    assert (
        Path(load_generator.load_generator("tiny", tmp_path).source).name
        == trained_run.checkpoint.name
    )
