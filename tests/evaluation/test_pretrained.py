"""Networks trained elsewhere, with weights drawn at random: none are fetched, here or there."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from ganray.evaluation.pretrained import MEAN, SIDE, STD, DinoV2, Inception

CPU = torch.device("cpu")
WIDTH, PATCH, DEPTH, GRID = 128, 56, 2, SIDE // 56


def dinov2_weights(side: int = GRID) -> dict[str, torch.Tensor]:
    """As DINOv2 is published, but of 2 narrow blocks and large patches."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return 0.2 * torch.randn(shape, generator=generator)

    weights = {
        "cls_token": drawn(1, 1, WIDTH),
        "pos_embed": drawn(1, 1 + side * side, WIDTH),
        "mask_token": drawn(1, WIDTH),
        "patch_embed.proj.weight": 0.05 * drawn(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": drawn(WIDTH),
        "norm.weight": 1 + drawn(WIDTH),
        "norm.bias": drawn(WIDTH),
    }
    for block in range(DEPTH):
        shapes = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
        for name, (outputs, inputs) in shapes.items():
            weights[f"blocks.{block}.{name}.weight"] = drawn(outputs * WIDTH, inputs * WIDTH)
            weights[f"blocks.{block}.{name}.bias"] = drawn(outputs * WIDTH)
        for name in ("norm1", "norm2"):
            weights[f"blocks.{block}.{name}.weight"] = 1 + drawn(WIDTH)
            weights[f"blocks.{block}.{name}.bias"] = drawn(WIDTH)
        for name in ("ls1", "ls2"):
            weights[f"blocks.{block}.{name}.gamma"] = drawn(WIDTH)
    return weights


def saved(weights: object, path: Path) -> Path:
    torch.save(weights, path)
    return path


def by_hand(w: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """DINOv2 of one image (3, 224, 224), normalised, as its paper and its code have it."""
    rows = pixels.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).permute(1, 2, 0, 3, 4)
    patches = rows.reshape(GRID * GRID, -1)
    embedded = patches @ w["patch_embed.proj.weight"].flatten(1).T + w["patch_embed.proj.bias"]
    x = torch.cat([w["cls_token"][0], embedded]) + w["pos_embed"][0]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    for block in range(DEPTH):
        b = f"blocks.{block}"
        qkv = linear(f"{b}.attn.qkv", norm(f"{b}.norm1", x)).view(-1, 3, WIDTH // 64, 64)
        heads = []
        for head in range(WIDTH // 64):
            q, k, v = qkv[:, :, head].unbind(1)
            heads.append((q @ k.T / 8).softmax(1) @ v)
        x = x + w[f"{b}.ls1.gamma"] * linear(f"{b}.attn.proj", torch.cat(heads, 1))
        hidden = linear(f"{b}.mlp.fc1", norm(f"{b}.norm2", x))
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        x = x + w[f"{b}.ls2.gamma"] * linear(f"{b}.mlp.fc2", hidden)
    return norm("norm", x)[0]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_dinov2_is_what_its_authors_wrote(tmp_path):
    weights, images = dinov2_weights(), noise(2, SIDE, SIDE, 3)
    path = saved(weights, tmp_path / "vit.pth")
    extractor = DinoV2(path, CPU)
    seen = extractor.extract(images)
    assert seen.modes is seen.confidences is None
    assert extractor.mode_names == ()
    for image, features in zip(images, seen.features, strict=True):
        pixels = torch.from_numpy((image / 255 - MEAN) / STD).float().permute(2, 0, 1)
        torch.testing.assert_close(features, by_hand(weights, pixels), rtol=1e-4, atol=1e-4)
    assert extractor.hash == hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def test_dinov2_moves_positions_of_another_grid_as_its_authors_do(tmp_path):
    weights, images = dinov2_weights(side=9), noise(1, SIDE, SIDE, 3)
    seen = DinoV2(saved(weights, tmp_path / "vit.pth"), CPU).extract(images)
    grid = weights["pos_embed"][:, 1:].view(1, 9, 9, WIDTH).permute(0, 3, 1, 2)
    moved = F.interpolate(grid, scale_factor=(4.1 / 9, 4.1 / 9), mode="bicubic")
    rest = moved.permute(0, 2, 3, 1).reshape(1, 16, WIDTH)
    weights["pos_embed"] = torch.cat([weights["pos_embed"][:, :1], rest], 1)
    pixels = torch.from_numpy((images[0] / 255 - MEAN) / STD).float().permute(2, 0, 1)
    torch.testing.assert_close(seen.features[0], by_hand(weights, pixels), rtol=1e-4, atol=1e-4)


def test_dinov2_sees_images_resized_as_pillow_does_and_grey_ones_in_colour(tmp_path):
    extractor = DinoV2(saved(dinov2_weights(), tmp_path / "vit.pth"), CPU)

    class Pixels(torch.nn.Flatten):
        cls_token = torch.zeros(1, 1, 3 * SIDE * SIDE)

    extractor._network = Pixels()
    for shape in ((20, 30, 3), (400, 300, 3), (16, 16, 1)):
        image = 64 + noise(*shape) // 2  # Pillow cuts off what overshoots after each axis
        seen = extractor.extract(image[None]).features.view(3, SIDE, SIDE).permute(1, 2, 0).numpy()
        picture = Image.fromarray(image.repeat(3, 2) if image.shape[2] == 1 else image)
        resized = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        # Pillow rounds after each axis: by 1/2, which the other axis may enlarge to 0.7, and 1/2.
        assert np.abs(255 * (seen * STD + MEAN) - resized).max() < 1.2


def test_no_images_have_no_features(tmp_path):
    extractor = DinoV2(saved(dinov2_weights(), tmp_path / "vit.pth"), CPU)
    assert extractor.extract(np.zeros((0, 32, 32, 3), np.uint8)).features.shape == (0, WIDTH)
    with pytest.raises(ValueError, match="must be uint8"):
        extractor.extract(np.zeros((1, 32, 32, 3)))


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (Bomb(), "UnpicklingError"),
        ({"cls_token": Bomb()}, "UnpicklingError"),
        ([1.0], "holds a list"),
        ({}, "KeyError"),
        (dinov2_weights() | {"register_tokens": torch.zeros(1, 4, WIDTH)}, "register_tokens"),
        ({k: v for k, v in dinov2_weights().items() if "ls1" not in k}, "KeyError"),
        (dinov2_weights() | {"cls_token": torch.zeros(1, 1, 200)}, "AssertionError"),
        (dinov2_weights(side=3) | {"pos_embed": torch.zeros(1, 12, WIDTH)}, "RuntimeError"),
    ],
)
def test_a_file_that_is_no_dinov2_is_named_and_runs_no_code(tmp_path, weights, message):
    path = saved(weights, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=message) as error:
        DinoV2(path, CPU)
    assert str(error.value).startswith(f"{path}: not the weights wanted (")
    assert "must be dinov2_vits14_pretrain.pth" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("extractor", "wanted"), [(DinoV2, "dinov2_vits14"), (Inception, "weights-inception-2015")]
)
def test_an_absent_file_is_not_fetched(tmp_path, extractor, wanted):
    if extractor is Inception:
        pytest.importorskip("torch_fidelity")
    with pytest.raises(ValueError, match=f"no such file; must be {wanted}.*fetches no weights"):
        extractor(tmp_path / "none.pth", CPU)


def test_inception_asks_for_torch_fidelity(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ValueError, match="torch-fidelity is not installed; pip install"):
        Inception(tmp_path / "none.pth", CPU)


def test_inception_is_torch_fidelitys_of_the_named_file(tmp_path, monkeypatch):
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    network = theirs.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:  # random weights: it reads none
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(network, "load_state_dict", lambda *_: None)
        random = network("random", ["2048"])
    path = saved(random.state_dict(), tmp_path / "inception.pth")
    extractor = Inception(path, CPU)
    assert extractor.hash == hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    images = noise(2, 16, 16, 1)
    seen = extractor.extract(images)
    (expected,) = random(torch.from_numpy(images).permute(0, 3, 1, 2).repeat(1, 3, 1, 1))
    torch.testing.assert_close(seen.features, expected)
    assert seen.features.shape == (2, 2048)
    assert seen.modes is None
    assert extractor.extract(images[:0]).features.shape == (0, 2048)
    with pytest.raises(ValueError, match=r"not the weights wanted .*RuntimeError"):
        Inception(saved(dinov2_weights(), tmp_path / "vit.pth"), CPU)
    with pytest.raises(ValueError, match=r"not the weights wanted .*UnpicklingError"):
        Inception(saved(Bomb(), tmp_path / "bomb.pth"), CPU)
