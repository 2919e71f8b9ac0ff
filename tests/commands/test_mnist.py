"""jobs/mnist.py as a user starts it, on scikit-learn's digits, without network access."""

import re
import sys
from dataclasses import replace

import pytest
from mlflow import MlflowClient

from ganray.config import cli, presets
from ganray.config.serialization import flatten
from ganray.data import prepare
from ganray.errors import UserError
from ganray.training import journal
from tests.conftest import load_job

SHORT = ["--launcher", "torch", "--train.batch_size", "20", "--train.kimg", "0.2"]
SHORT += ["--evaluation.samples", "0", "--evaluation.report_samples", "0"]
SHORT += ["--train.log_every", "0.1", "--train.sample_every", "0.1"]


@pytest.fixture(scope="module")
def mnist():
    return load_job("mnist")


@pytest.fixture
def offline(monkeypatch):
    """Make downloads fail as without a network."""
    original = prepare.open_source

    def open_source(name, path, *, download=False, **options):
        if download:
            raise UserError(f"{path}: {name} could not be downloaded (no network)")
        return original(name, path, **options)

    monkeypatch.setattr(prepare, "open_source", open_source)


def test_digits_replace_mnist_without_a_network_and_with_a_warning(mnist, home, offline, capsys):
    mnist.main(["conditional", *SHORT, "--name", "one"])
    out = capsys.readouterr().out
    assert "MNIST was neither found nor downloaded" in out
    assert "1,500 images of scikit-learn's digits" in out
    folder = home / "runs" / "one"
    assert journal.history(folder, "loss/G")[0].tolist() == [100, 200]
    for name in ("samples", "losses", "epochs"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"{folder}/{name}.png" in out
    client = MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("mnist").experiment_id])
    assert run.data.params["data.source"] == "digits"
    assert run.data.params["network.conditional"] == "True"
    assert run.inputs.dataset_inputs[0].dataset.name == "digits"
    assert {"samples.png", "losses.png", "epochs.png"} <= {
        artifact.path for artifact in client.list_artifacts(run.info.run_id)
    }


def test_a_root_without_mnist_is_rejected(mnist, home, offline, tmp_path, monkeypatch, capsys):
    argv = ["mnist.py", "first", "--data.root", str(tmp_path), "--launcher", "torch"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stop:
        cli.run(mnist.main)
    assert stop.value.code == 2
    assert re.match(r"error: .*: mnist could not be downloaded", capsys.readouterr().err)


def test_the_discriminator_check_is_an_mlflow_run_of_its_own(mnist, home, offline, capsys):
    argv = ["normal-100", *SHORT, "--data.source", "digits", "--check_discriminator"]
    mnist.main([*argv, "--train.kimg", "4", "--optimizer.lr_D", "1e-3"])
    out = capsys.readouterr().out
    assert re.search(r"^check +D\(real\) 0\.99\d+ and D\(noise\) 0\.00\d+ on held-out", out, re.M)
    assert "MNIST was neither" not in out  # the digits were asked for
    client = MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("mnist").experiment_id])
    assert run.info.run_name.startswith("normal-100-check-")
    assert run.data.metrics["check/real_prob"] > 0.99
    paths = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert "discriminator.png" in paths


def test_a_D_that_fails_the_check_ends_the_job_with_advice(mnist, home, monkeypatch, capsys):
    argv = ["first", *SHORT, "--data.source", "digits", "--check_discriminator"]
    monkeypatch.setattr(sys, "argv", ["mnist.py", *argv])
    with pytest.raises(SystemExit) as stop:
        cli.run(mnist.main)
    assert stop.value.code == 2
    assert "D must reach 0.99 and 0.01; try more --train.kimg" in capsys.readouterr().err


def test_each_preset_changes_only_what_the_source_text_changes():
    def changes(name, base):
        a, b = (flatten(presets.MNIST[preset]) for preset in (name, base))
        return {key: a[key] for key in a if a[key] != b[key] and key != "preset"}

    normal = {"latent.distribution": "normal", "loss.name": "bce"}
    assert changes("latent-100", "refined") == {"latent.size": 100}
    assert changes("normal-100", "latent-100") == normal
    assert changes("conditional", "long") == {"network.conditional": True}
    assert all(key.startswith("train.") for key in changes("long", "normal-100"))


def test_stacked_mnist_is_not_replaced_by_digits(mnist, home, offline, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mnist.py", "stacked-t3-quarter", *SHORT])
    with pytest.raises(SystemExit) as stop:
        cli.run(mnist.main)
    assert stop.value.code == 2
    assert "stacked-mnist could not be downloaded" in capsys.readouterr().err


def test_stacked_t3_half_differs_only_in_the_width_of_D():
    quarter, half = (presets.STACKED[f"stacked-t3-{size}"] for size in ("quarter", "half"))
    assert half.network.width_D == 2 * quarter.network.width_D
    assert replace(half, preset=quarter.preset, network=quarter.network) == quarter
    assert quarter.train.steps() == 20_000
