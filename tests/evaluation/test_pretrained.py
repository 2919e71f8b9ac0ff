"""Published networks with random weights, DINOv2 and CLIP with two small layers."""

import hashlib
import socket
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import conv2d, gelu, interpolate, layer_norm, linear, normalize
from torch.nn.functional import scaled_dot_product_attention as attention

from ganray.errors import UserError
from ganray.evaluation import pretrained
from ganray.evaluation.pretrained import PretrainedExtractor

CPU = torch.device("cpu")
WIDTH = 64
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 20, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    def fail(*_):
        raise AssertionError("a connection to a server")

    monkeypatch.setattr(socket.socket, "connect", fail)


@pytest.fixture
def small(monkeypatch):
    """Let timm make small networks, and yield it."""
    timm = pytest.importorskip("timm")
    create = partial(timm.create_model, depth=2, embed_dim=WIDTH, num_heads=1)
    monkeypatch.setattr(timm, "create_model", create)
    network = replace(pretrained.NETWORKS["dinov2"], width=WIDTH)
    monkeypatch.setitem(pretrained.NETWORKS, "dinov2", network)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield timm


def random_inception(patch: pytest.MonkeyPatch) -> torch.nn.Module:
    """Build torch-fidelity's network without the download of its weights."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with patch.context() as local:
        local.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        local.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        return module.FeatureExtractorInceptionV3("random", ["2048"])


def save(weights: object, path: Path) -> Path:
    torch.save(weights, path)
    return path


class Malicious:
    """Object whose unpickling runs code."""

    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def test_features_equal_those_of_torch_fidelity(tmp_path, monkeypatch):
    network = random_inception(monkeypatch)
    path = save(network.state_dict(), tmp_path / "inception.pth")
    extractor = PretrainedExtractor("inception", path, CPU)
    assert extractor.hash == "inception-" + hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    assert extractor.mode_names == ()
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1), dtype=np.uint8)
    features = extractor.extract(images)
    (expected,) = network(torch.from_numpy(images).permute(0, 3, 1, 2).repeat(1, 3, 1, 1))
    torch.testing.assert_close(features.features, expected)
    assert features.features.shape == (2, 2048)
    assert features.modes is features.confidences is None
    assert extractor.extract(images[:0]).features.shape == (0, 2048)
    with pytest.raises(ValueError, match="must be uint8"):
        extractor.extract(np.zeros((1, 32, 32, 3)))


def resized(images: np.ndarray, side: int, mode: str | None = None) -> torch.Tensor:
    """Resize by Pillow's bicubic filter; mode F: without rounding to 8 bits."""
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(-1, *images.shape[1:3])
    bicubic = Image.Resampling.BICUBIC
    resized = [Image.fromarray(plane, mode).resize((side, side), bicubic) for plane in planes]
    return torch.from_numpy(np.array(resized, np.float32)).view(-1, 3, side, side) / 255


def dinov2(state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Compute DINOv2's embedding as its own code does, for two layers with one head."""

    def norm(name, x):
        return layer_norm(x, [WIDTH], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def layer(name, x):
        return linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    patches = conv2d((images - mean) / std, weight, bias, stride=14).flatten(2).mT
    x = torch.cat([state["cls_token"].expand(len(images), -1, -1), patches], 1)
    grid = state["pos_embed"][:, 1:].reshape(1, 37, 37, WIDTH).permute(0, 3, 1, 2)
    grid = interpolate(grid, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic")
    x = x + torch.cat([state["pos_embed"][:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)
    for i in range(2):
        block = f"blocks.{i}"
        heads = layer(f"{block}.attn.qkv", norm(f"{block}.norm1", x)).chunk(3, -1)
        x = x + state[f"{block}.ls1.gamma"] * layer(f"{block}.attn.proj", attention(*heads))
        hidden = gelu(layer(f"{block}.mlp.fc1", norm(f"{block}.norm2", x)))
        x = x + state[f"{block}.ls2.gamma"] * layer(f"{block}.mlp.fc2", hidden)
    return norm("norm", x)[:, 0]


def random_dinov2(timm) -> dict[str, torch.Tensor]:
    vit = timm.create_model("vit_large_patch14_dinov2", num_classes=0, img_size=518)
    state = {name: 0.3 * torch.randn_like(value) for name, value in vit.state_dict().items()}
    return state | {"mask_token": torch.zeros(1, WIDTH)}


def test_dinov2_equals_its_own_equations_on_pillows_images(small, tmp_path):
    state = random_dinov2(small)
    extractor = PretrainedExtractor("dinov2", save(state, tmp_path / "dinov2.pth"), CPU)
    assert extractor.hash.startswith("dinov2-")
    features = extractor.extract(IMAGES).features
    torch.testing.assert_close(features, dinov2(state, resized(IMAGES, 224)), rtol=0, atol=2e-4)
    assert extractor.extract(IMAGES[:0]).features.shape == (0, WIDTH)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_clip_equals_torch_fidelitys_network_at_length_1(small, tmp_path, suffix):
    module = pytest.importorskip("torch_fidelity.feature_extractor_clip")
    network = module.CLIPVisual(768, 336, 2, WIDTH, 14).eval()
    state = {name: 0.3 * torch.randn_like(value) for name, value in network.state_dict().items()}
    network.load_state_dict(state)
    path = tmp_path / f"clip.{suffix}"
    state["text_projection"] = torch.zeros(WIDTH, 768)  # of the other half of CLIP
    write = save_file if suffix == "safetensors" else save
    write(state, path)
    extractor = PretrainedExtractor("clip", path, CPU)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    with torch.no_grad():
        pixels = (resized(IMAGES.astype(np.float32), 336, "F") - mean) / std
        expected = normalize(network.visual(pixels))
    torch.testing.assert_close(extractor.extract(IMAGES).features, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "architecture", "options", "parameters"),
    [
        ("dinov2", "vit_large_patch14_dinov2", {"num_classes": 0}, 304_368_640),
        ("clip", "vit_large_patch14_clip_quickgelu_336", {"num_classes": 768}, 304_294_656),
    ],
)
def test_the_whole_architectures_have_the_width_of_the_table(
    monkeypatch, name, architecture, options, parameters
):
    monkeypatch.setattr(pretrained, "normalize", lambda pixels, *_: pixels)  # it reads numbers
    timm, meta = pytest.importorskip("timm"), torch.device("meta")
    network = pretrained.NETWORKS[name]
    with meta:  # no memory, no numbers
        state = timm.create_model(architecture, **options).state_dict()
        if name == "dinov2":
            state["mask_token"] = torch.zeros(1, 1024)
        assert sum(value.numel() for value in state.values()) == parameters
        build = network.build(state, meta)
    features = build(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    assert features.shape == (2, network.width)


NAMES = {
    "inception": "weights-inception-2015-12-05-6726825d.pth",
    "dinov2": "dinov2_vitl14_pretrain.pth",
    "clip": "open_clip_model.safetensors",
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (Malicious(), "UnpicklingError"),
        ({"fc.weight": Malicious()}, "UnpicklingError"),
        ([1.0], "TypeError"),
        ({}, "RuntimeError|KeyError"),
        ({"fc.weight": torch.zeros(1000, 2048)}, "RuntimeError|KeyError"),
        ({"pos_embed": torch.zeros(1, 37 * 37 + 1, 768)}, "RuntimeError"),
        (b"not safetensors", "OSError"),
    ],
    ids=["code", "code in a dict", "list", "empty", "other", "other size", "bytes"],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_other_weights_is_rejected_without_running_its_code(
    tmp_path, name, weights, message
):
    pytest.importorskip("torch_fidelity")
    path = tmp_path / "other.safetensors"
    if isinstance(weights, bytes):
        path.write_bytes(weights)
    else:
        path = save(weights, tmp_path / "other.pth")
    with pytest.raises(UserError, match=message) as error:
        PretrainedExtractor(name, path, CPU)
    title = pretrained.NETWORKS[name].title
    assert str(error.value).startswith(f"evaluation.weights={path}: not the weights of {title} (")
    assert f"must be {NAMES[name]} from https://" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_rejected_and_not_downloaded(tmp_path, name):
    pytest.importorskip(pretrained.NETWORKS[name].package)
    with pytest.raises(UserError, match=rf"no such file; must be {NAMES[name]}.*download"):
        PretrainedExtractor(name, tmp_path / "none.pth", CPU)


@pytest.mark.parametrize(("name", "package"), [("inception", "torch-fidelity"), ("clip", "timm")])
def test_the_error_names_the_missing_package(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    with pytest.raises(UserError, match=rf"not installed; pip install {package}"):
        PretrainedExtractor(name, tmp_path / "none.pth", CPU)
