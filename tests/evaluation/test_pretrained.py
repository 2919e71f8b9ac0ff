"""Inception v3 with random weights; nothing is downloaded."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ganray.errors import UserError
from ganray.evaluation.pretrained import InceptionExtractor

CPU = torch.device("cpu")


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
    extractor = InceptionExtractor(path, CPU)
    assert extractor.hash == hashlib.sha256(path.read_bytes()).hexdigest()[:16]
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


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (Malicious(), "UnpicklingError"),
        ({"fc.weight": Malicious()}, "UnpicklingError"),
        ([1.0], "TypeError"),
        ({}, "RuntimeError"),
        ({"fc.weight": torch.zeros(1000, 2048)}, "RuntimeError"),
    ],
    ids=["code", "code in a dict", "list", "empty", "other network"],
)
def test_a_file_of_other_weights_is_rejected_without_running_its_code(tmp_path, weights, message):
    pytest.importorskip("torch_fidelity")
    path = save(weights, tmp_path / "other.pth")
    with pytest.raises(UserError, match=message) as error:
        InceptionExtractor(path, CPU)
    assert str(error.value).startswith(f"evaluation.weights={path}: not the weights of Inception")
    assert "must be weights-inception-2015-12-05-6726825d.pth" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_rejected_and_not_downloaded(tmp_path):
    pytest.importorskip("torch_fidelity")
    with pytest.raises(UserError, match=r"no such file; must be weights-inception-2015.*download"):
        InceptionExtractor(tmp_path / "none.pth", CPU)


def test_the_error_names_the_missing_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(UserError, match=r"not installed; pip install torch-fidelity"):
        InceptionExtractor(tmp_path / "none.pth", CPU)
