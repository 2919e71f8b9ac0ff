"""Feature extractors on images and classifiers with known modes."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from ganray.data.sources.mnist import StackedMNIST
from ganray.errors import UserError
from ganray.evaluation import classifier as classifier_module
from ganray.evaluation.classifier import FEATURES, Classifier
from ganray.evaluation.extractors import (
    AttributeExtractor,
    ClassExtractor,
    CombinedExtractor,
    PixelExtractor,
    StackedDigitsExtractor,
    choose_attributes,
    split_channels,
    split_labels,
)
from ganray.metrics import modes

CPU = torch.device("cpu")


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def digits() -> Classifier:
    """Untrained classifier of gray images."""
    classifier = Classifier((8, 8, 1), 10, rng_seed=0).eval()
    classifier.hash = "of-digits"
    return classifier


def test_stacked_digits_combine_the_three_channels(digits):
    channels = [noise(20, 8, 8, 1) // divisor for divisor in (1, 2, 5)]
    single = [ClassExtractor(digits, tuple("0123456789")).extract(x) for x in channels]
    extractor = StackedDigitsExtractor(digits)
    stacked = extractor.extract(np.concatenate(channels, 3))
    torch.testing.assert_close(stacked.features, torch.cat([x.features for x in single], 1))
    assert stacked.features.shape == (20, 3 * FEATURES)
    torch.testing.assert_close(stacked.whitened, torch.cat([x.whitened for x in single], 1))
    red, green, blue = (x.modes for x in single)
    assert torch.equal(stacked.modes, 100 * red + 10 * green + blue)
    confidences = torch.stack([x.confidences for x in single]).amin(0)
    torch.testing.assert_close(stacked.confidences, confidences)
    assert extractor.hash == "channels-of-digits"
    assert extractor.mode_names == StackedMNIST.class_names


def test_channels_and_labels_are_split_in_the_same_order():
    images = noise(2, 8, 8, 3)
    single = split_channels(images)
    assert split_labels(torch.tensor([407, 12])).tolist() == [4, 0, 7, 0, 1, 2]
    assert single.shape == (6, 8, 8, 1)
    for row in range(6):
        assert np.array_equal(single[row, ..., 0], images[row // 3, ..., row % 3])
    with pytest.raises(ValueError, match=r"images: \(2, 8, 8, 1\); must have 3 channels"):
        split_channels(noise(2, 8, 8, 1))


NAMES = ("Male", "Wearing_Hat", "No_Beard")


class BrightPixels(nn.Module):
    """A classifier of three attributes, each present if its pixel is bright."""

    hash = "bright"
    balanced_accuracy = (1.0, 1.0, 1.0)
    head = nn.Identity()

    def features(self, images: np.ndarray) -> torch.Tensor:
        return (torch.from_numpy(images[:, 0, :3, 0]).float() - 128) / 32

    def whiten(self, features: torch.Tensor) -> torch.Tensor:
        return 2 * features


def draw(attributes: np.ndarray) -> np.ndarray:
    """Draw images with these attributes; the value 128 is undecided."""
    images = np.full((len(attributes), 8, 8, 1), 128, np.uint8)
    images[:, 0, :3, 0] = np.where(attributes, 255, 1)
    return images


# 50, 30, 19 and 1 of 100: the first three cover 99 %.
PEOPLE = np.repeat(
    np.array([[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0]], np.uint8), [50, 30, 19, 1], axis=0
)


def extractor_of(*chosen: str, people: np.ndarray = PEOPLE) -> AttributeExtractor:
    return AttributeExtractor(BrightPixels(), NAMES, people, chosen)


def test_modes_are_the_common_combinations_and_other():
    extractor = extractor_of(*NAMES)
    assert extractor.mode_names == (
        "man, no beard",
        "woman, no beard",
        "man, hat, beard",
        "other",
    )
    features = extractor.extract(draw(PEOPLE))
    assert modes.count(features.modes, 4).tolist() == [50, 30, 19, 1]
    absent = np.array([[0, 0, 0]], np.uint8)
    assert extractor.extract(draw(absent)).modes.tolist() == [3]
    assert extractor_of("Male").mode_names == ("man", "woman")  # no combination is rare
    assert extractor_of("Wearing_Hat").mode_names == ("no hat", "hat")


def test_the_confidence_is_that_of_the_least_certain_attribute():
    extractor = extractor_of("Wearing_Hat", "Male")
    images = draw(np.array([[1, 0, 1]]))
    images[0, 0, :3, 0] = [128 + 96, 128 - 64, 128]  # logits 3, -2 and, not chosen, 0
    features = extractor.extract(images)
    assert features.confidences.item() == pytest.approx(1 / (1 + np.exp(-2)))
    assert extractor.mode_names[features.modes] == "man"
    expected = torch.tensor([[3.0, -2.0, 0.0]]) / 13**0.5  # of length 1
    torch.testing.assert_close(features.features, expected)


def test_the_hash_depends_on_the_attributes_and_the_modes():
    hashes = [
        extractor_of("Male").hash,
        extractor_of("Wearing_Hat").hash,
        extractor_of("Male", "Wearing_Hat").hash,
        extractor_of("Male", "Wearing_Hat", people=PEOPLE[:80]).hash,
    ]
    assert len(set(hashes)) == 4
    assert hashes[0] == extractor_of("Male").hash


def test_recognized_even_and_uncorrelated_attributes_are_chosen():
    rng = np.random.default_rng(0)
    shares = np.array([0.3, 0.5, 0.5, 0.1, 0.45, 0.2])
    attributes = (rng.random((4000, 6)) < shares).astype(np.uint8)
    attributes[:, 2] = 1 - attributes[:, 1]  # opposites
    attributes[:, 4] = 0  # always absent
    names = tuple("abcdef")
    accuracy = (0.975, 0.99, 0.99, 1.0, float("nan"), 0.8)  # "f" is not recognized
    chosen = choose_attributes(names, attributes, accuracy)
    assert chosen[0] in "bc"
    assert chosen[1:] == ("a", "d")
    assert choose_attributes(names, attributes, accuracy, limit=2) == chosen[:2]
    assert choose_attributes(names, attributes, (0.95, 0, 0, 1.0, 0, 0)) == ("d",)
    assert choose_attributes(names, attributes, (0.95, 0, 0, 0.9, 0, 0)) == ("a", "d")
    with pytest.raises(UserError, match=r"none of 6 attributes .*highest: 0\.80.* use a larger"):
        choose_attributes(names, attributes, (float("nan"), 0.8, 0, 0, 0, 0))


@pytest.mark.parametrize(("size", "side"), [(28, 14), (32, 16), (8, 8), (40, 14)])
def test_pixel_features_are_means_of_blocks(size, side, monkeypatch):
    monkeypatch.setattr(classifier_module, "PIXELS_PER_BATCH", 2 * size * size)
    images = noise(5, size, size, 3)
    features = PixelExtractor(CPU).extract(images)
    assert features.features.dtype == torch.float32
    assert features.features.shape == (5, 3 * side * side)
    assert features.modes is features.confidences is None
    block = -(-size // 16)
    for row, channel, y, x in [(0, 0, 0, 0), (3, 2, 5, 1), (4, 1, side - 1, 2)]:
        pixels = images[row, block * y :, block * x :, channel][:block, :block]
        mean = features.features[row].view(3, side, side)[channel, y, x].item()
        assert mean == pytest.approx(pixels.mean() / 255, abs=1e-6)


def test_the_hash_of_a_pixel_extractor_contains_its_side():
    assert (PixelExtractor(CPU).hash, PixelExtractor(CPU, side=4).hash) == ("pixels-16", "pixels-4")
    gray = np.full((1, 9, 8, 1), 51, np.uint8)
    assert PixelExtractor(CPU, side=1).extract(gray).features.tolist() == [[pytest.approx(0.2)]]


def test_class_extractor_without_names_has_no_modes(digits):
    images = noise(3, 8, 8, 1)
    features = ClassExtractor(digits).extract(images)
    assert torch.equal(features.features, normalize(digits.features(images)))
    assert features.modes is features.confidences is None


def test_combined_extractor_has_the_features_of_one_and_the_modes_of_the_other():
    pixels, attributes = PixelExtractor(CPU), extractor_of("Male")
    combined = CombinedExtractor(pixels, attributes)
    images = draw(PEOPLE)
    features = combined.extract(images)
    assert torch.equal(features.features, pixels.extract(images).features)
    assert torch.equal(features.modes, attributes.extract(images).modes)
    assert torch.equal(features.confidences, attributes.extract(images).confidences)
    assert features.whitened is None  # as of pixels
    assert combined.hash == f"pixels-16+{attributes.hash}"
    assert combined.mode_names == ("man", "woman")


def test_no_images_have_empty_features(digits):
    for extractor, channels, width in [
        (StackedDigitsExtractor(digits), 3, 3 * FEATURES),
        (extractor_of("Male"), 1, 3),
        (PixelExtractor(CPU), 1, 64),
    ]:
        features = extractor.extract(np.zeros((0, 8, 8, channels), np.uint8))
        assert features.features.shape == (0, width)
        assert features.modes is None or features.modes.shape == features.confidences.shape == (0,)
