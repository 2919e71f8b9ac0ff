"""jobs/explore.py --export: the files reproduce the generator without ganray's checkpoint."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from ganray.commands import main
from ganray.commands.load_generator import load_generator
from ganray.config.schema import LatentConfig, NetworkConfig
from ganray.gan import networks
from ganray.training.state import TrainState, save_content
from tests.conftest import tiny_config

CPU = torch.device("cpu")
NETWORKS = {
    "mlp": NetworkConfig("mlp", width_G=12, width_D=4),
    "dcgan": NetworkConfig("dcgan", width_G=4, width_D=4),
    "conditional": NetworkConfig("dcgan", width_G=4, width_D=4, conditional=True),
    "metz": NetworkConfig("metz", width_G=4, width_D=2),
}


@pytest.fixture(params=NETWORKS)
def checkpoint(request, tmp_path):
    """Folder of the checkpoint of an untrained generator."""
    config = replace(tiny_config(tmp_path), network=NETWORKS[request.param])
    classes = 3 if request.param == "conditional" else 0
    state = TrainState(config, (16, 16, 3), CPU, classes)
    save_content(state.content(), config, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_onnx_computes_the_same_images_at_any_batch_size(checkpoint, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    main.explore([str(checkpoint), "--export", "onnx", "--out", str(tmp_path / "out")])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["G.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "out" / "G.onnx")
    about = session.get_modelmeta().custom_metadata_map
    generator = load_generator(str(checkpoint), tmp_path)
    latent = LatentConfig(**json.loads(about["latent"]))
    assert latent == generator.config.latent
    classes = json.loads(about["classes"])
    assert classes == generator.classes
    assert json.loads(about["pixel_range"]) == [generator.config.pixel_min(), 1]
    for count in (1, 2, 7):
        z = torch.randn(count, latent.size + classes)
        (images,) = session.run(["images"], {"z": z.numpy()})
        assert images.shape == (count, 3, 16, 16)
        np.testing.assert_allclose(images, generator.G(z).numpy(), atol=1e-5, rtol=0)


def test_safetensors_load_into_a_fresh_generator(checkpoint, tmp_path):
    safetensors = pytest.importorskip("safetensors")
    main.explore([str(checkpoint), "--export", "safetensors", "--out", str(tmp_path / "out")])
    with safetensors.safe_open(tmp_path / "out" / "G.safetensors", "pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    keys = ("network", "latent", "image_shape", "classes")
    network, latent, shape, classes = (json.loads(about[key]) for key in keys)
    latent = LatentConfig(**latent)
    G, _ = networks.build(NetworkConfig(**network), latent, tuple(shape), classes)
    G.load_state_dict(tensors)
    z = torch.randn(4, latent.size + classes)
    expected = load_generator(str(checkpoint), tmp_path).G.state_dict()
    assert all(torch.equal(G.state_dict()[name], expected[name]) for name in expected)
    torch.testing.assert_close(G(z), load_generator(str(checkpoint), tmp_path).G(z))


def test_an_export_is_added_to_mlflow(trained_run, tmp_path, capsys):
    pytest.importorskip("safetensors")
    argv = ["tiny", "--home", str(trained_run.config.home), "--out", str(tmp_path)]
    main.explore([*argv, "--export", "safetensors"])
    out = capsys.readouterr().out
    assert f"files       {tmp_path}: G.safetensors" in out
    assert f"artifacts   explore/ of MLflow run {trained_run.run_id}" in out


@pytest.mark.parametrize(
    ("kind", "module"), [("onnx", "onnxscript"), ("safetensors", "safetensors")]
)
def test_a_missing_module_is_said_before_a_run_is_loaded(kind, module, monkeypatch, tmp_path):
    (tmp_path / "runs" / "oranges").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"--export={kind} needs {module}: pip install "):
        main.explore(["oranges", "--export", kind, "--home", str(tmp_path)])
