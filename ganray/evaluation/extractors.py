"""What metrics look at instead of pixels: features, modes, and how sure the mode is.

An extractor turns images into a ``Features``. All of ganray's numbers name its ``hash``, for they
compare only if they were taken through the same eyes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import avg_pool2d

from ganray.errors import UserError
from ganray.evaluation.classifier import (
    Classifier,
    ImageBatch,
    Labels,
    as_tensor,
    batches,
    check_images,
)

TOLD = 0.9
"""Balanced accuracy from which an attribute may make modes."""
ALIKE = 0.5
"""Correlation, of either sign, from which one attribute is left out beside another."""
COVERED = 0.99
"""Share of the real images whose combinations are modes of their own."""
MOST_ATTRIBUTES = 10
"""That make modes: 1,024 of them."""


@dataclass(frozen=True)
class Features:
    """n images as an extractor sees them."""

    features: torch.Tensor
    """float32 (n, d), on the extractor's device."""
    modes: torch.Tensor | None
    """int64 (n,) in [0, K): the mode each belongs to; None where no modes are known."""
    confidences: torch.Tensor | None
    """float32 (n,) in [0, 1]: how sure that is; None where no modes are known."""


class FeatureExtractor(Protocol):
    """Looks at images; made once, used on reals and fakes alike."""

    hash: str
    """Names what it was made of, 16 hex digits or a name."""
    mode_names: tuple[str, ...]
    """Of the K modes; () where none are known."""

    def extract(self, images: ImageBatch) -> Features:
        """Look at uint8 (n, H, W, C) in [0, 255], n from 0."""
        ...


class ClassExtractor:
    """Modes are the classes that the reference classifier tells apart."""

    def __init__(self, classifier: Classifier, names: tuple[str, ...]) -> None:
        self._classifier = classifier
        self.hash, self.mode_names = classifier.hash, names

    def extract(self, images: ImageBatch) -> Features:
        """As ``FeatureExtractor.look``: features are the classifier's, confidence its probability."""
        features = self._classifier.features(images)
        with torch.no_grad():
            sure, modes = self._classifier.head(features).softmax(1).max(1)
        return Features(features, modes, sure)


class ClassifierFeatureExtractor:
    """The classifier's features alone, where it tells no modes."""

    mode_names: tuple[str, ...] = ()
    """None are known."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier, self.hash = classifier, classifier.hash

    def extract(self, images: ImageBatch) -> Features:
        """As ``FeatureExtractor.look``."""
        return Features(self._classifier.features(images), None, None)


class StackedDigitsExtractor:
    """Modes are the triples of digits of stacked MNIST, "000" to "999"; red is the hundreds."""

    def __init__(self, classifier: Classifier, names: Sequence[str] = "0123456789") -> None:
        """Look at each channel as an image of its own.

        Args:
            classifier: Of images with one channel; see ``split_channels``.
            names: Of its classes.
        """
        self._classifier = classifier
        self.hash = f"channels-{classifier.hash}"
        self.mode_names = tuple("".join(triple) for triple in itertools.product(names, repeat=3))
        self._weights = torch.tensor([len(names) ** 2, len(names), 1])

    def extract(self, images: ImageBatch) -> Features:
        """As ``FeatureExtractor.look``: C is 3.

        ClassifierFeatureExtractor are those of red, green and blue side by side, (n, 384), confidence is the least
        of their probabilities.

        Raises:
            ValueError: The images have another shape or dtype.
        """
        features = self._classifier.features(_channels(images))
        with torch.no_grad():
            sure, digits = self._classifier.head(features).softmax(1).max(1)
        digits, sure = digits.unflatten(0, (-1, 3)), sure.unflatten(0, (-1, 3))
        modes = (digits * self._weights.to(digits.device)).sum(1)
        return Features(features.unflatten(0, (-1, 3)).flatten(1), modes, sure.amin(1))


def split_channels(images: ImageBatch, labels: Labels) -> tuple[torch.Tensor, torch.Tensor]:
    """Stacked MNIST as single digits, to train the classifier of ``StackedDigitsExtractor`` on.

    20,000 images have as many digits as MNIST: there is no need for more.

    Args:
        images: uint8 (n, H, W, 3) in [0, 255].
        labels: int64 (n,) in [0, 1000): 100 red + 10 green + blue.

    Returns:
        uint8 (3n, H, W, 1) and int64 (3n,) in [0, 10): red, green, blue of the first image, of
        the second, and so on.

    Raises:
        ValueError: ImageBatch or labels are others than these.
    """
    channels, labels = _channels(images), as_tensor(labels)
    sound = labels.dtype == torch.int64 and labels.shape == images.shape[:1]
    if not sound or (len(labels) and not 0 <= labels.min() <= labels.max() < 1000):
        raise UserError(
            f"labels: {str(labels.dtype).removeprefix('torch.')} {tuple(labels.shape)} for "
            f"{len(images)} images; must be int64 in [0, 1000), one for each; give the labels of "
            "stacked MNIST"
        )
    return channels, split_labels(labels)


def split_labels(labels: torch.Tensor) -> torch.Tensor:
    """The labels of ``split_channels`` alone."""
    weights = torch.tensor([100, 10, 1], device=labels.device)
    return (labels[:, None] // weights % 10).flatten()


class AttributeExtractor:
    """Modes are the combinations of a few attributes, as far as real images show them.

    They are named like "Male, no Smiling". Of the 2^k combinations, the fewest that together hold
    99 % of the real images are modes, the commonest first. All the others are the last mode,
    "other": each alone is too rare for its absence to say anything.
    """

    def __init__(
        self,
        classifier: Classifier,
        names: Sequence[str],
        attributes: NDArray[np.uint8],
        chosen: Sequence[str] | None = None,
    ) -> None:
        """Choose the attributes and the modes.

        Args:
            classifier: Of all A attributes.
            names: Of the A attributes.
            attributes: Of the real images, 0 or 1, (n, A), n from 1.
            chosen: Names of 1 to 10 of them; ``choose_attributes`` does if None.

        Raises:
            ValueError: These do not fit each other, or none can be chosen.
        """
        names, balanced = list(names), classifier.balanced_accuracy
        if attributes.shape != (max(len(attributes), 1), len(names)) or len(balanced) != len(names):
            raise UserError(
                f"attributes: {attributes.shape} for {len(names)} names and a classifier of "
                f"{len(balanced)}; must be (n, A), n from 1; take all three from one set"
            )
        self.chosen = tuple(chosen or choose_attributes(names, attributes, balanced))
        """Names of the k chosen attributes."""
        unknown = sorted(set(self.chosen) - set(names))
        if (
            unknown
            or len(set(self.chosen)) < len(self.chosen)
            or len(self.chosen) > MOST_ATTRIBUTES
        ):
            raise UserError(
                f"chosen={list(self.chosen)}: must be up to {MOST_ATTRIBUTES} different ones of "
                f"{names}{f', and {unknown} are not' if unknown else ''}; leave some out"
            )
        self._classifier = classifier
        self._columns = [names.index(name) for name in self.chosen]
        self._bits = 2 ** torch.arange(len(self.chosen))
        combinations = _common(attributes[:, self._columns])
        # Of each number that the bits make, the mode; what is not common is the one after them.
        self._modes = torch.full((2 ** len(self.chosen),), len(combinations))
        self._modes[(combinations * self._bits).sum(1)] = torch.arange(len(combinations))
        self.mode_names = tuple(_name(self.chosen, row) for row in combinations.tolist())
        if len(combinations) < len(self._modes):
            self.mode_names += ("other",)
        made_of = json.dumps([classifier.hash, self.chosen, self.mode_names])
        self.hash = hashlib.sha256(made_of.encode()).hexdigest()[:16]

    def extract(self, images: ImageBatch) -> Features:
        """As ``FeatureExtractor.look``: features are the classifier's.

        Confidence is how sure it is of the least certain of the chosen attributes, in [1/2, 1].
        """
        features = self._classifier.features(images)
        with torch.no_grad():
            has = self._classifier.head(features)[:, self._columns].sigmoid()
        device = features.device
        modes = self._modes.to(device)[((has > 0.5) * self._bits.to(device)).sum(1)]
        return Features(features, modes, torch.maximum(has, 1 - has).amin(1))


def choose_attributes(
    names: Sequence[str],
    attributes: NDArray[np.uint8],
    balanced: Sequence[float],
    most: int = 4,
) -> tuple[str, ...]:
    """Attributes that make good modes: told surely, evenly spread, and no two alike.

    Of those with a balanced accuracy of 0.9, the one nearest to half of the images comes first,
    then the next that correlates by less than 0.5 with all before it, and so on.

    Args:
        names: Of the A attributes.
        attributes: Of the real images, 0 or 1, (n, A).
        balanced: Of the classifier, (A,) in [0, 1] or nan.
        most: How many to choose; fewer are where no more qualify.

    Raises:
        ValueError: None qualifies.
    """
    share = attributes.mean(0)
    evenness = np.minimum(share, 1 - share)
    told = (np.asarray(balanced) >= TOLD) & (evenness > 0)
    columns = np.flatnonzero(told)[np.argsort(-evenness[told], kind="stable")]
    if not len(columns):
        best = np.nanmax([0.0, *balanced])
        raise UserError(
            f"attributes: none of {len(names)} varies and is told with a balanced accuracy of "
            f"{TOLD}, the best has {best:.2f}; train on more images, or name some as chosen"
        )
    alike = np.abs(np.atleast_2d(np.corrcoef(attributes[:, columns], rowvar=False))) >= ALIKE
    chosen: list[int] = []
    for at in range(len(columns)):
        if len(chosen) < most and not alike[at, chosen].any():
            chosen.append(at)
    return tuple(names[int(column)] for column in columns[chosen])


class PixelExtractor:
    """For images of which nothing is known: features are the pixels, coarsely, and no modes.

    Not a random network: that sees no more, and not the same twice.
    """

    mode_names: tuple[str, ...] = ()
    """None are known."""

    def __init__(self, device: torch.device, side: int = 16) -> None:
        """Average blocks of pixels, the smallest that leave no more than `side` a side."""
        self._device, self._side = device, side
        self.hash = f"pixels-{side}"

    def extract(self, images: ImageBatch) -> Features:
        """As ``FeatureExtractor.look``: features are in [0, 1], of each channel row by row, (n, C h w).

        Raises:
            ValueError: The images have another shape or dtype.
        """
        check_images("images", images)
        block = [-(-size // self._side) for size in images.shape[1:3]]
        means = [avg_pool2d(x, block, ceil_mode=True) for x in batches(images, self._device)]
        return Features(torch.cat(means).flatten(1) / 255, None, None)


class CombinedExtractor:
    """ClassifierFeatureExtractor of one extractor, modes of another."""

    def __init__(self, features: FeatureExtractor, modes: FeatureExtractor) -> None:
        self._features, self._modes = features, modes
        self.hash, self.mode_names = f"{features.hash}+{modes.hash}", modes.mode_names

    def extract(self, images: ImageBatch) -> Features:
        """As ``FeatureExtractor.look``; each part stays on its extractor's device."""
        seen = self._modes.extract(images)
        return Features(self._features.extract(images).features, seen.modes, seen.confidences)


def _channels(images: ImageBatch) -> torch.Tensor:
    """uint8 (n, H, W, 3) -> (3n, H, W, 1)."""
    check_images("images", images)
    if images.shape[3] != 3:
        raise UserError(
            f"images: {tuple(images.shape)}; must have 3 channels, a digit in each; use ClassExtractor "
            "for grey images"
        )
    return as_tensor(images).permute(0, 3, 1, 2).flatten(0, 1).unsqueeze(3)


def _common(attributes: NDArray[np.uint8]) -> torch.Tensor:
    """The fewest rows that make up 99 % of all, commonest first: int64 (m, k) of 0 and 1."""
    rows, counts = np.unique(attributes, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    enough = np.searchsorted(counts[order].cumsum(), COVERED * len(attributes)) + 1
    return torch.from_numpy(rows[order[:enough]].astype(np.int64))


def _name(attributes: Sequence[str], has: Sequence[int]) -> str:
    """Such as "Male, no Wearing Hat"; "Beard" for who has not "No_Beard"."""
    readable = [name.replace("_", " ") for name in attributes]
    words = [name if yes else f"no {name}" for name, yes in zip(readable, has, strict=True)]
    return ", ".join(word.removeprefix("no No ") for word in words)
