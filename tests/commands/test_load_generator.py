"""Loading a generator by run name, folder, MLflow run id or model URI."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from ganray.commands import load_generator, main
from ganray.config.serialization import to_dict
from ganray.errors import UserError
from ganray.integrations import mlflow_runs
from ganray.training.journal import Journal
from ganray.training.run_folder import RunFolder
from ganray.training.state import TrainState, save_content
from tests.conftest import TrainedRun, tiny_config

Z = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _no_tracking_uri(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def registered(trained_run: TrainedRun):
    """Register the trained run's model as version 1 of `squares`, with the alias `best`."""
    uri = f"sqlite:///{trained_run.config.home}/mlflow.db"
    mlflow.set_tracking_uri(uri)  # MLflow resolves model URIs here, not at the client's URI
    client = MlflowClient(tracking_uri=uri)
    client.create_registered_model("squares")
    client.create_model_version("squares", trained_run.model_uri, trained_run.run_id)
    client.set_registered_model_alias("squares", "best", "1")


@pytest.fixture(scope="module")
def expected(trained_run: TrainedRun) -> np.ndarray:
    """Images of the trained run's last checkpoint at Z."""
    generator = load_generator.load_generator(str(trained_run.checkpoint), trained_run.config.home)
    return generator.images(Z)


@pytest.mark.parametrize("name", ["tiny", "{folder}", "{checkpoint}"])
def test_run_name_run_folder_and_checkpoint_folder(trained_run, expected, name):
    folder = trained_run.config.run_folder()
    name = name.format(folder=folder, checkpoint=trained_run.checkpoint)
    generator = load_generator.load_generator(name, trained_run.config.home)
    assert generator.source == f"checkpoint {trained_run.checkpoint}"  # the newest of two
    assert (generator.folder, generator.run, generator.classes) == (folder, None, 0)
    assert (generator.images(Z) == expected).all()
    assert generator.images(Z).shape == (5, 16, 16, 3)


@pytest.mark.parametrize(
    "name", ["{run_id}", "{model}", "models:/squares/1", "models:/squares@best"]
)
def test_mlflow_run_id_and_model_uris(trained_run, expected, registered, name):
    name = name.format(run_id=trained_run.run_id, model=trained_run.model_uri)
    generator = load_generator.load_generator(name, trained_run.config.home)
    assert generator.source.startswith("model models:/")
    assert (generator.run.run_id, generator.folder) == (
        trained_run.run_id,
        trained_run.config.run_folder(),
    )
    assert (generator.config, generator.classes) == (trained_run.config, 0)
    assert (generator.images(Z) == expected).all()


def test_copied_checkpoint_without_its_run_folder(trained_run, tmp_path):
    shutil.copytree(trained_run.checkpoint, tmp_path / "copy")
    generator = load_generator.load_generator(str(tmp_path / "copy"), tmp_path / "home")
    assert generator.folder is None
    assert generator.config == trained_run.config
    folder = generator.output_folder("evaluation", None, tmp_path / "home")
    assert folder == tmp_path / "home" / "evaluation" / "tiny" / "copy"


def test_output_folder_that_cannot_be_created_is_rejected(trained_run, tmp_path):
    generator = load_generator.load_generator("tiny", trained_run.config.home)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written .*Not a directory.* --out"):
        generator.output_folder("explore", tmp_path / "file" / "out", tmp_path)


def test_results_of_an_older_checkpoint_have_a_folder_of_their_own(
    trained_run, tmp_path, monkeypatch
):
    home, picture = tmp_path / "home", tmp_path / "a.png"
    picture.write_bytes(b"png")
    shutil.copytree(trained_run.config.home, home)
    folder = home / "runs" / "tiny"
    shutil.copytree(folder / trained_run.checkpoint.name, folder / "best_coverage")
    sent = []
    monkeypatch.setattr(mlflow_runs, "log_files", lambda run, files, folder: sent.append(folder))
    folders = {
        "tiny": "evaluation",
        str(folder / trained_run.checkpoint.name): "evaluation",
        str(folder / "best_coverage"): "evaluation/best_coverage",
    }
    for name, output in folders.items():
        generator = load_generator.load_generator(name, home)
        assert generator.output_folder("evaluation", None, home) == folder / output
        assert generator.label == output.replace("evaluation", "tiny")
        generator.log([picture], "evaluation")
        assert sent.pop() == output


def test_a_generator_without_an_mlflow_run_is_not_registered(trained_run, tmp_path):
    shutil.copytree(trained_run.config.home, tmp_path / "home")
    folder = tmp_path / "home" / "runs" / "tiny"
    other = replace(trained_run.config, name="other")
    (folder / trained_run.checkpoint.name / "config.json").write_text(json.dumps(to_dict(other)))
    generator = load_generator.load_generator(str(folder), tmp_path / "home")
    with pytest.raises(UserError, match=r"has no run 'other'; give --tracking_uri"):
        generator.find_run()


def test_a_moved_home_has_its_own_mlflow_store(trained_run, tmp_path):
    shutil.copytree(trained_run.config.home, tmp_path / "moved")
    generator = load_generator.load_generator("tiny", tmp_path / "moved")
    assert mlflow_runs.store_uri(generator.config) == f"sqlite:///{tmp_path}/moved/mlflow.db"


def test_a_run_without_a_logged_model_uses_its_newest_checkpoint(trained_run, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(trained_run.config.home, home)
    folder = home / "runs" / "other"
    shutil.copytree(trained_run.config.run_folder(), folder)
    other = replace(trained_run.config, home=home, name="other")
    (folder / "config.json").write_text(json.dumps(to_dict(other)))
    dataset = {"name": "squares", "digest": "0", "path": "/data"}
    run = mlflow_runs.open_run(other, dataset, {})
    generator = load_generator.load_generator(run.run_id, home)
    assert generator.source == f"checkpoint {folder / trained_run.checkpoint.name}"
    assert generator.run.run_id == run.run_id

    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"logged no generator, and no checkpoint of run 'other'"):
        load_generator.load_generator(run.run_id, home)


def test_a_conditional_generator_gets_the_label(tmp_path):
    config = tiny_config(tmp_path)
    config = replace(config, network=replace(config.network, conditional=True))
    state = TrainState(config, (16, 16, 3), torch.device("cpu"), 2)
    save_content(state.content(), config, tmp_path / "two")
    generator = load_generator.load_generator(str(tmp_path / "two"), tmp_path)
    assert generator.classes == 2
    inputs = []
    replace(generator, G=lambda x: inputs.append(x) or generator.G(x)).images(Z, 1)
    assert torch.equal(inputs[0][:, :8], Z)
    assert inputs[0][:, 8:].tolist() == [[0, 1]] * 5


def test_images_are_generated_in_batches(trained_run):
    generator = load_generator.load_generator("tiny", trained_run.config.home)
    sizes = []
    recording = replace(generator, G=lambda x: sizes.append(len(x)) or generator.G(x))
    assert len(recording.images(torch.randn(150, 8))) == 150
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
def test_a_wrong_name_is_rejected_in_one_line(trained_run, name, message):
    with pytest.raises(ValueError, match=message) as error:
        load_generator.load_generator(name, trained_run.config.home)
    assert "\n" not in str(error.value)


def test_a_home_without_runs_is_mentioned(tmp_path):
    with pytest.raises(ValueError, match="none is there; give --home or --storage"):
        load_generator.load_generator("tiny", tmp_path)


def test_a_damaged_checkpoint_is_reported_with_its_path(trained_run, tmp_path):
    shutil.copytree(trained_run.checkpoint, tmp_path / "copy")
    (tmp_path / "copy" / "state.pt").write_bytes(b"PK cut off")
    with pytest.raises(ValueError, match=r"copy/state.pt: damaged"):
        load_generator.load_generator(str(tmp_path / "copy"), tmp_path)


def test_an_unfinished_checkpoint_is_ignored(trained_run, tmp_path):
    folder = tmp_path / "runs" / "tiny"
    shutil.copytree(trained_run.config.run_folder(), folder)
    shutil.copytree(trained_run.checkpoint, folder / "checkpoint_9999999999.part")
    generator = load_generator.load_generator("tiny", tmp_path)
    assert Path(generator.source).name == trained_run.checkpoint.name


def test_a_damaged_config_does_not_hide_the_other_runs(trained_run, tmp_path):
    for name in ("good", "bad"):
        shutil.copytree(trained_run.config.run_folder(), tmp_path / "runs" / name)
    (tmp_path / "runs" / "bad" / "config.json").write_text("{")
    rows = load_generator.list_runs(tmp_path).splitlines()[2:]
    assert dict(row.split()[:2] for row in rows) == {"good": "tiny", "bad": "damaged"}


def test_the_runs_of_a_home_are_listed_with_their_scores(trained_run, tmp_path, capsys):
    empty = tmp_path / "a home"
    command = f"python jobs/celeba.py --home '{empty}'"
    assert load_generator.list_runs(empty) == f"{empty} has no trained runs; train one: {command}"
    shutil.copytree(trained_run.config.run_folder(), tmp_path / "runs" / "older")
    shutil.copytree(trained_run.config.run_folder(), tmp_path / "runs" / "newer")
    os.utime(tmp_path / "runs" / "older", (0, 0))
    values = {"collapse/coverage": 0.25, "collapse/recall": 0.5, "collapse/vendi_share": 0.75}
    Journal(RunFolder(tmp_path / "runs" / "newer")).collapse(240, values, "")
    os.utime(tmp_path / "runs" / "newer")
    (tmp_path / "runs" / "empty").mkdir()
    for job in (main.evaluate, main.explore):
        capsys.readouterr()
        job(["--home", str(tmp_path)])
        heading, columns, *rows = capsys.readouterr().out.splitlines()
        assert heading == f"Runs in {tmp_path}, newest first:"
        assert columns.split() == [
            "run",
            "preset",
            "kimg",
            "coverage",
            "recall",
            "Vendi",
            "trained",
        ]
        assert [row.split()[:6] for row in rows] == [
            ["newer", "tiny", "0.2", "0.25", "0.50", "75%"],
            ["older", "tiny", "-", "-", "-", "-"],
        ]
