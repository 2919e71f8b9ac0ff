"""jobs/celeba.py as a user starts it: a dry run, invalid input, and runs without Ray."""

import functools
import json
import re
import shutil
import sys
import zipfile
from dataclasses import replace

import pytest
import torch
from mlflow import MlflowClient

from ganray.config import cli
from ganray.data.writer import write_shards
from ganray.evaluation import reference
from ganray.evaluation.classifier import TrainingRecipe, reference_classifier
from ganray.integrations import mlflow_runs
from ganray.training import journal
from ganray.training.launch import launch
from tests.conftest import Squares, load_job, tiny_config

TINY = ["cpu32", "--data.size", "16", "--data.faces", "24", "--network.width_G", "4"]
TINY += ["--network.width_D", "4", "--train.batch_size", "12", "--train.kimg", "0.12"]
TINY += ["--train.log_every", "0.06", "--train.sample_every", "0.06", "--launcher", "torch"]
TINY += ["--evaluation.samples", "0", "--evaluation.report_samples", "0"]


@pytest.fixture(scope="module")
def celeba():
    return load_job("celeba")


@pytest.fixture
def fails(celeba, home, monkeypatch, capsys):
    """Function that runs the job with invalid input and returns the only line on stderr."""

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["celeba.py", *map(str, argv)])
        with pytest.raises(SystemExit) as stop:
            cli.run(celeba.main)
        lines = capsys.readouterr().err.strip().splitlines()
        assert stop.value.code == 2
        assert len(lines) == 1, lines
        return lines[0]

    return run


def test_a_dry_run_prints_the_plan_and_writes_nothing(celeba, home, capsys):
    celeba.main(["--dry_run", "--train.kimg", "1"])
    out = capsys.readouterr().out
    rows = ("run", "data", "shards", "networks", "training", "workers", "evaluation", "results")
    for row in rows:
        assert re.search(rf"^{row} ", out, re.MULTILINE), row
    assert "no CelebA was given" in out
    assert not home.exists()


def test_a_dry_run_leaves_initial_weights_in_the_storage(celeba, home, squares, tmp_path, capsys):
    config = replace(tiny_config(tmp_path / "other"), storage=str(tmp_path / "storage"))
    name = launch(config, squares).name
    celeba.main([*TINY, "--dry_run", "--init_from", "tiny", "--storage", config.storage])
    words = " ".join(capsys.readouterr().out.split())
    assert f"from {home}/runs/tiny/{name}" in words
    assert not home.exists()


def test_training_and_report_use_the_configured_threads_but_no_more_than_there_are(
    celeba, home, capsys
):
    try:
        for available, configured, used in ((3, 1, 1), (2, 5, 2)):
            torch.set_num_threads(available)
            threads = ["--ray.cpus_per_worker", str(configured)]
            celeba.main([*TINY, "--name", f"threads-{available}", *threads])
            cores = "1 core" if used == 1 else f"{used} cores"
            assert f"1 DDP worker, {cores} each" in capsys.readouterr().out
            assert torch.get_num_threads() == used
    finally:
        torch.set_num_threads(1)


def test_a_run_without_ray_writes_metrics_figures_and_a_model(celeba, home, capsys):
    celeba.main([*TINY, "--name", "one"])
    folder = home / "runs" / "one"
    assert journal.history(folder, "loss/D")[0].tolist() == [60, 120]
    for name in ("samples.png", "losses.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    client = MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("celeba").experiment_id])
    assert run.info.status == "FINISHED"
    assert json.loads((folder / "config.json").read_text())["name"] == "one"
    out = capsys.readouterr().out
    assert f"mlflow ui --backend-store-uri sqlite:///{home}/mlflow.db" in out
    assert str(folder / "samples.png") in out

    celeba.main(
        [*TINY, "--name", "one"]
    )  # the run is finished: ends immediately, in the same MLflow run
    assert len(client.search_runs([run.info.experiment_id])) == 1
    history = client.get_metric_history(run.info.run_id, "loss/D")
    assert [metric.step for metric in history] == [60, 120]


def test_a_run_resumes_with_moved_images_but_not_with_other_images(
    celeba, home, squares, fails, tmp_path, capsys
):
    shutil.copytree(squares, tmp_path / "moved")
    write_shards(Squares(90), tmp_path / "others", processes=1)
    celeba.main([*TINY, "--data.root", str(squares), "--name", "same"])
    celeba.main([*TINY, "--data.root", str(tmp_path / "moved"), "--name", "same"])
    capsys.readouterr()
    message = fails(*TINY, "--data.root", str(tmp_path / "others"), "--name", "same")
    assert "was trained on 100 images of squares" in message
    assert "which differ from 90 images of squares" in message
    assert "another --name" in message


def test_training_on_shards_behind_a_url(celeba, home, squares, capsys):
    url = f"file://{squares}"
    remote = ["--data.root", url, "--data.cache", str(home / "cache"), "--name", "far"]
    celeba.main([*TINY, *remote])
    plan = " ".join(capsys.readouterr().out.split())
    assert f"100 images of squares in {url}" in plan
    client = MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("celeba").experiment_id])
    assert run.info.status == "FINISHED"
    (dataset,) = run.inputs.dataset_inputs
    assert json.loads(dataset.dataset.source)["url"] == url


def test_a_report_is_complete_and_sent_later_if_mlflow_becomes_unreachable(
    celeba, home, capsys, monkeypatch
):
    quick = functools.partial(reference_classifier, recipe=TrainingRecipe(min_images=640))
    monkeypatch.setattr(reference, "reference_classifier", quick)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    argv = [*TINY, "--name", "one", "--data.faces", "400", "--evaluation.report_samples", "90"]
    argv += ["--train.kimg", "0.18", "--profile", "1"]
    with monkeypatch.context() as patch:
        open_run = mlflow_runs.open_run
        dead = "http://me:hunter2@127.0.0.1:9"  # unreachable once the run is open
        patch.setattr(mlflow_runs, "open_run", lambda *args: replace(open_run(*args), uri=dead))
        with pytest.raises(SystemExit) as stop:
            celeba.main([*argv, "--tracking.patience", "0.1"])
    assert stop.value.code == 3
    out, folder = capsys.readouterr().out, home / "runs" / "one"
    assert (folder / "evaluation" / "report.json").exists()
    lines = ("\ndiagnosis ", "\ncheckpoint ", f"\nsamples     {home}", " unreachable (", "\nlook ")
    positions = [out.index(line) for line in lines]
    assert positions == sorted(positions)
    assert "generator " not in out
    assert "http://***@127.0.0.1:9" in out
    assert "hunter2" not in out
    assert not [p for p in home.rglob("*") if p.is_file() and b"hunter2" in p.read_bytes()]

    celeba.main(argv)
    assert re.search(r"^generator +models:/", capsys.readouterr().out, re.MULTILINE)
    client = MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("celeba").experiment_id])
    assert run.info.status == "FINISHED"
    assert "report/recall" in run.data.metrics
    assert "real images" in run.data.tags["mlflow.note.content"]
    names = {name for name in run.data.tags if not name.startswith("mlflow.")}
    assert max(len(name + run.data.tags[name]) for name in names - {"changed"}) < 60
    assert "loss/D" in run.data.metrics
    folders = None, "evaluation", "profile"
    files = {f.path for folder in folders for f in client.list_artifacts(run.info.run_id, folder)}
    profile = {"profile/summary.txt", "profile/trace.json.gz"}
    assert files >= {"samples.png", "evaluation/report.json"} | profile


def test_the_same_name_with_other_settings_is_rejected(celeba, home, fails, capsys):
    celeba.main([*TINY, "--name", "one"])
    capsys.readouterr()
    line = fails(*TINY, "--name", "one", "--latent.size", "9")
    assert "latent.size=9 (was 64); use another --name" in line


def damaged_zip(folder):
    short_attributes(folder)
    (folder / "img_align_celeba.zip").write_bytes(b"PK\x03\x04 cut off")
    path = folder / "list_attr_celeba.txt"
    path.write_text(path.read_text().replace("2", "1", 1))


def short_attributes(folder):
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        archive.writestr("img_align_celeba/000001.jpg", b"x")
        archive.writestr("img_align_celeba/000002.jpg", b"x")
    names = " ".join(f"name{i}" for i in range(40))
    row = "000001.jpg " + " ".join(["1"] * 40)
    (folder / "list_attr_celeba.txt").write_text(f"2\n{names}\n{row}\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: folder.rmdir(), "bad"),
        (lambda folder: None, "bad"),
        (damaged_zip, "img_align_celeba.zip"),
        (short_attributes, "list_attr_celeba.txt"),
    ],
)
def test_damaged_celeba_is_rejected(fails, tmp_path, damage, message):
    folder = tmp_path / "bad"
    folder.mkdir()
    damage(folder)
    line = fails("--data.root", folder, "--dry_run")
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--ray.workers", "500", "--dry_run"],
            "ray.workers=500 need 1 CPU each, but the cluster has 1 node",
        ),
        (["--train.batch_size", "1", "--ray.workers", "2", "--dry_run"], "train.batch_size=1"),
        (
            [*TINY, "--network.pack", "8", "--dry_run"],
            "train.batch_size=12 over 1 worker must be a multiple of 8",
        ),
        ([*TINY, "--ray.workers", "1:2"], "ray.workers=1:2: only Ray changes the number"),
        (
            ["--ray.address", "127.0.0.1:9", "--dry_run"],
            "ray.address=127.0.0.1:9: no cluster there",
        ),
    ],
)
def test_invalid_options_are_rejected_before_training(fails, argv, message):
    assert message in fails(*argv)


def test_an_address_from_the_environment_is_named_as_such(fails, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert fails("--dry_run").startswith("error: $RAY_ADDRESS=127.0.0.1:9: no cluster there")
    monkeypatch.setenv("RAY_ADDRESS", "10.1.2.3")
    assert fails("--dry_run") == "error: $RAY_ADDRESS=10.1.2.3: must be HOST:PORT"


def test_an_address_that_mlflow_cannot_use_is_rejected_before_anything_is_written(fails, home):
    error = fails(*TINY, "--tracking.uri", "file:///tmp/runs")
    assert "is a folder, in which MLflow no longer stores runs" in error
    assert not home.exists()


def test_an_unwritable_home_is_rejected(fails, tmp_path):
    (tmp_path / "file").write_text("")  # root may write anywhere, but not below a file
    line = fails(*TINY, "--home", tmp_path / "file" / "home")
    assert f"{tmp_path}/file/home" in line
    assert "GANRAY_HOME" in line
