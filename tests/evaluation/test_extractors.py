"""Extractors on images and classifiers whose modes are known beforehand."""

import numpy as np
import pytest
import torch
from torch import nn

from ganray.data.sources.mnist import StackedMNIST
from ganray.evaluation import classifier
from ganray.evaluation.classifier import FEATURES, Classifier
from ganray.evaluation.extractors import (
    AttributeExtractor,
    ClassExtractor,
    CombinedExtractor,
    PixelExtractor,
    StackedDigitsExtractor,
    choose_attributes,
    split_channels,
)
from ganray.metrics import modes

CPU = torch.device("cpu")


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def digits() -> Classifier:
    """Untrained: whatever it says, it says it of every channel alike."""
    classifier = Classifier((8, 8, 1), 10, rng_seed=0).eval()
    classifier.hash = "of-digits"
    return classifier


def test_a_stack_is_looked_at_as_its_three_channels(digits):
    single = [noise(20, 8, 8, 1) // divisor for divisor in (1, 2, 5)]
    looks = [ClassExtractor(digits, tuple("0123456789")).extract(images) for images in single]
    extractor = StackedDigitsExtractor(digits)
    seen = extractor.extract(np.concatenate(single, 3))
    torch.testing.assert_close(seen.features, torch.cat([look.features for look in looks], 1))
    assert seen.features.shape == (20, 3 * FEATURES)
    red, green, blue = (look.modes for look in looks)
    assert torch.equal(seen.modes, 100 * red + 10 * green + blue)
    sure = torch.stack([look.confidences for look in looks]).amin(0)
    torch.testing.assert_close(seen.confidences, sure)
    assert extractor.hash == "channels-of-digits"


def test_modes_of_a_stack_are_named_as_stacked_mnist_names_its_classes(digits):
    assert StackedDigitsExtractor(digits).mode_names == StackedMNIST.class_names


def test_a_stack_comes_apart_into_its_digits():
    images = noise(2, 8, 8, 3)
    single, labels = split_channels(images, np.array([407, 12]))
    assert labels.tolist() == [4, 0, 7, 0, 1, 2]
    assert single.shape == (6, 8, 8, 1)
    for row in range(6):
        assert np.array_equal(single[row, ..., 0], images[row // 3, ..., row % 3])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (noise(2, 8, 8, 1), np.arange(2), r"images: \(2, 8, 8, 1\); must have 3 channels"),
        (noise(2, 8, 8, 3), np.arange(3), r"labels: int64 \(3,\) for 2 images"),
        (noise(2, 8, 8, 3), np.array([0, 1000]), r"must be int64 in \[0, 1000\)"),
        (noise(2, 8, 8, 3), np.arange(2.0), r"labels: float64 \(2,\)"),
    ],
)
def test_what_is_no_stack_is_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        split_channels(images, labels)


NAMES = ("Male", "Wearing_Hat", "No_Beard")


class Lamps(nn.Module):
    """A classifier of three lamps: an attribute is there where its pixel is bright."""

    hash = "lamps"
    balanced_accuracy = (1.0, 1.0, 1.0)
    head = nn.Identity()

    def features(self, images: np.ndarray) -> torch.Tensor:
        return (torch.from_numpy(images[:, 0, :3, 0]).float() - 128) / 32


def lit(attributes: np.ndarray, level: int = 255) -> np.ndarray:
    """Images of them: 128 is undecided, `level` and its mirror are yes and no."""
    images = np.full((len(attributes), 8, 8, 1), 128, np.uint8)
    images[:, 0, :3, 0] = np.where(attributes, level, 256 - level)
    return images


# 50, 30, 19 and 1 of 100: the last is one too many for 99 %.
PEOPLE = np.repeat(
    np.array([[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0]], np.uint8), [50, 30, 19, 1], axis=0
)


def test_modes_are_the_common_combinations_and_the_rest_is_one():
    extractor = AttributeExtractor(Lamps(), NAMES, PEOPLE, chosen=NAMES)
    assert extractor.mode_names == (
        "Male, no Wearing Hat, No Beard",
        "no Male, no Wearing Hat, No Beard",
        "Male, Wearing Hat, Beard",
        "other",
    )
    seen = extractor.extract(lit(PEOPLE))
    assert modes.count(seen.modes, 4).tolist() == [50, 30, 19, 1]
    never = np.array([[0, 0, 0]], np.uint8)
    assert extractor.extract(lit(never)).modes.tolist() == [3]


def test_a_generator_is_told_which_combinations_it_misses():
    extractor = AttributeExtractor(Lamps(), NAMES, PEOPLE, chosen=("Male", "Wearing_Hat"))
    assert extractor.mode_names[-1] == "other"
    men = extractor.extract(lit(PEOPLE[PEOPLE[:, 0] == 1]))
    counts = modes.count(men.modes, len(extractor.mode_names))
    names = [name for name, hits in zip(extractor.mode_names, counts, strict=True) if not hits]
    assert names == ["no Male, no Wearing Hat", "other"]


def test_without_rare_combinations_there_is_no_other():
    extractor = AttributeExtractor(Lamps(), NAMES, PEOPLE, chosen=["Male"])
    assert extractor.mode_names == ("Male", "no Male")


def test_confidence_is_that_of_the_least_certain_attribute():
    extractor = AttributeExtractor(Lamps(), NAMES, PEOPLE, chosen=("Wearing_Hat", "Male"))
    images = lit(np.array([[1, 0, 1]]))
    images[0, 0, :3, 0] = [128 + 96, 128 - 64, 128]  # logits 3, -2 and, not chosen, 0
    seen = extractor.extract(images)
    assert seen.confidences.item() == pytest.approx(1 / (1 + np.exp(-2)))
    assert extractor.mode_names[seen.modes] == "no Wearing Hat, Male"
    torch.testing.assert_close(seen.features, torch.tensor([[3.0, -2.0, 0.0]]))


def test_the_hash_names_the_chosen_and_the_modes():
    made = [
        AttributeExtractor(Lamps(), NAMES, people, chosen=chosen).hash
        for people, chosen in [
            (PEOPLE, ("Male",)),
            (PEOPLE, ("Wearing_Hat",)),
            (PEOPLE, ("Male", "Wearing_Hat")),
            (PEOPLE[:80], ("Male", "Wearing_Hat")),
        ]
    ]
    assert len(set(made)) == 4
    assert made[0] == AttributeExtractor(Lamps(), NAMES, PEOPLE, chosen=("Male",)).hash


def test_told_even_and_different_attributes_are_chosen():
    rng = np.random.default_rng(0)
    shares = np.array([0.3, 0.5, 0.5, 0.1, 0.45, 0.2])
    attributes = (rng.random((4000, 6)) < shares).astype(np.uint8)
    attributes[:, 2] = 1 - attributes[:, 1]  # one is the other's opposite
    attributes[:, 4] = 0  # never there
    names = tuple("abcdef")
    told = (0.95, 0.99, 0.99, 1.0, float("nan"), 0.8)  # "f" is not told
    chosen = choose_attributes(names, attributes, told)
    assert chosen[0] in "bc"
    assert chosen[1:] == ("a", "d")
    assert choose_attributes(names, attributes, told, most=2) == chosen[:2]
    assert choose_attributes(names, attributes, (0, 0, 0, 1.0, 0, 0)) == ("d",)
    with pytest.raises(ValueError, match=r"none of 6 .* the best has 0\.80; train on more"):
        choose_attributes(names, attributes, (float("nan"), 0.8, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("people", "chosen", "message"),
    [
        (PEOPLE, ("Male", "Tall"), r"chosen=.* different ones of .* and \['Tall'\] are not"),
        (PEOPLE, ("Male", "Male"), "up to 10 different ones"),
        (PEOPLE[:, :2], None, r"attributes: \(100, 2\) for 3 names and a classifier of 3"),
        (PEOPLE[:0], None, r"attributes: \(0, 3\) .* n from 1"),
    ],
)
def test_attributes_that_cannot_make_modes_are_refused(people, chosen, message):
    with pytest.raises(ValueError, match=message):
        AttributeExtractor(Lamps(), NAMES, people, chosen=chosen)


@pytest.mark.parametrize(("size", "left"), [(28, 14), (32, 16), (8, 8), (40, 14)])
def test_pixels_are_the_means_of_blocks(size, left, monkeypatch):
    monkeypatch.setattr(classifier, "PIXELS_PER_BATCH", 2 * size * size)
    images = noise(5, size, size, 3)
    seen = PixelExtractor(CPU).extract(images)
    assert (seen.features.dtype, seen.features.shape) == (torch.float32, (5, 3 * left * left))
    assert seen.modes is seen.confidences is None
    block = -(-size // 16)
    for row, channel, y, x in [(0, 0, 0, 0), (3, 2, 5, 1), (4, 1, left - 1, 2)]:
        part = images[row, block * y :, block * x :, channel][:block, :block]
        mean = seen.features[row].view(3, left, left)[channel, y, x].item()
        assert mean == pytest.approx(part.mean() / 255, abs=1e-6)


def test_the_hash_of_pixels_says_how_coarse_they_are():
    assert (PixelExtractor(CPU).hash, PixelExtractor(CPU, side=4).hash) == ("pixels-16", "pixels-4")
    grey = np.full((1, 9, 8, 1), 51, np.uint8)
    assert PixelExtractor(CPU, side=1).extract(grey).features.tolist() == [[pytest.approx(0.2)]]


def test_joined_has_the_features_of_one_and_the_modes_of_the_other():
    pixels, lamps = PixelExtractor(CPU), AttributeExtractor(Lamps(), NAMES, PEOPLE, chosen=["Male"])
    joined = CombinedExtractor(pixels, lamps)
    seen, images = joined.extract(lit(PEOPLE)), lit(PEOPLE)
    assert torch.equal(seen.features, pixels.extract(images).features)
    assert torch.equal(seen.modes, lamps.extract(images).modes)
    assert torch.equal(seen.confidences, lamps.extract(images).confidences)
    assert joined.hash == f"pixels-16+{lamps.hash}"
    assert joined.mode_names == ("Male", "no Male")


def test_no_images_are_seen_as_none(digits):
    for extractor, channels, width in [
        (StackedDigitsExtractor(digits), 3, 3 * FEATURES),
        (AttributeExtractor(Lamps(), NAMES, PEOPLE, chosen=["Male"]), 1, 3),
        (PixelExtractor(CPU), 1, 64),
    ]:
        seen = extractor.extract(np.zeros((0, 8, 8, channels), np.uint8))
        assert seen.features.shape == (0, width)
        assert seen.modes is None or seen.modes.shape == seen.confidences.shape == (0,)
