"""Feature extractors: features of images, their modes, and confidences.

Every report names the ``hash`` of its extractor, as metrics compare only between equal extractors.
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
from ganray.evaluation.classifier import Classifier, ImageBatch, as_tensor, batches, check_images

MIN_BALANCED_ACCURACY = 0.9
"""Balanced accuracy from which an attribute may define modes."""
MAX_CORRELATION = 0.5
"""Absolute correlation from which one attribute is left out next to another."""
COVERED = 0.99
"""Share of the reference images whose combinations of attributes are modes of their own."""


@dataclass(frozen=True)
class Features:
    """Features and modes of n images."""

    features: torch.Tensor
    """float32 (n, d), on the extractor's device."""
    modes: torch.Tensor | None
    """int64 (n,) in [0, K), the mode of each image; None if the extractor has no modes."""
    confidences: torch.Tensor | None
    """float32 (n,) in [0, 1], the confidence in each mode; None if there are no modes."""


class FeatureExtractor(Protocol):
    """Extracts features of samples and reference images alike."""

    hash: str
    """Name or 16 hex digits that identify the extractor."""
    mode_names: tuple[str, ...]
    """Names of the K modes; () if there are none."""

    def extract(self, images: ImageBatch) -> Features:
        """Extract the features of uint8 (n, H, W, C) in [0, 255], n at least 0."""
        ...


class ClassExtractor:
    """Features of the reference classifier; modes are its classes, if these have names."""

    def __init__(self, classifier: Classifier, names: tuple[str, ...] = ()) -> None:
        self._classifier = classifier
        self.hash, self.mode_names = classifier.hash, names

    def extract(self, images: ImageBatch) -> Features:
        """Extract features and modes; confidence is the probability of the class."""
        features = self._classifier.features(images)
        if not self.mode_names:
            return Features(features, None, None)
        with torch.no_grad():
            confidences, modes = self._classifier.head(features).softmax(1).max(1)
        return Features(features, modes, confidences)


class StackedDigitsExtractor:
    """Stacked MNIST; modes are the triples of digits, "000" to "999", with red as the hundreds.

    Args:
        classifier: Classifier of one-channel digits; see ``split_channels``.
    """

    mode_names: tuple[str, ...] = tuple(map("".join, itertools.product("0123456789", repeat=3)))

    def __init__(self, classifier: Classifier) -> None:
        self._digits = ClassExtractor(classifier, tuple("0123456789"))
        self.hash = f"channels-{classifier.hash}"

    def extract(self, images: ImageBatch) -> Features:
        """Extract the features of the three channels side by side, (n, 384).

        Confidence is the smallest of the three digits'.
        """
        digits = self._digits.extract(split_channels(images))
        assert digits.modes is not None
        assert digits.confidences is not None
        weights = torch.tensor([100, 10, 1], device=digits.modes.device)
        modes = (digits.modes.unflatten(0, (-1, 3)) * weights).sum(1)
        features = digits.features.unflatten(0, (-1, 3)).flatten(1)
        return Features(features, modes, digits.confidences.unflatten(0, (-1, 3)).amin(1))


def split_channels(images: ImageBatch) -> torch.Tensor:
    """Split uint8 (n, H, W, 3) into its channels, (3n, H, W, 1): R, G, B of each image in turn."""
    check_images("images", images)
    if images.shape[3] != 3:
        raise ValueError(
            f"images: {tuple(images.shape)}; must have 3 channels, with a digit in each; use "
            "ClassExtractor for grey images"
        )
    return as_tensor(images).permute(0, 3, 1, 2).flatten(0, 1).unsqueeze(3)


def split_labels(labels: torch.Tensor) -> torch.Tensor:
    """Split labels of stacked MNIST, int64 (n,) in [0, 1000), into their digits, (3n,)."""
    assert not len(labels) or 0 <= labels.min() <= labels.max() < 1000
    weights = torch.tensor([100, 10, 1], device=labels.device)
    return (labels[:, None] // weights % 10).flatten()


class AttributeExtractor:
    """Features of the reference classifier; modes are combinations of a few attributes.

    Modes have names like "woman, not smiling". Of the 2^k combinations, the fewest that cover 99 %
    of the reference images are modes, the most common first. All others form the last mode,
    "other": each of them is too rare for its absence to mean anything.

    Args:
        classifier: Classifier of all A attributes.
        names: Names of the A attributes.
        attributes: Attributes of the reference images, 0 or 1, (n, A), n at least 1.
        chosen: Names of the k attributes; None for those of ``choose_attributes``.

    Raises:
        UserError: No attribute can define modes.
    """

    def __init__(
        self,
        classifier: Classifier,
        names: Sequence[str],
        attributes: NDArray[np.uint8],
        chosen: Sequence[str] | None = None,
    ) -> None:
        chosen = chosen or choose_attributes(names, attributes, classifier.balanced_accuracy)
        self._classifier = classifier
        self._columns = [list(names).index(name) for name in chosen]
        self._bits = 2 ** torch.arange(len(chosen))
        rows, counts = np.unique(attributes[:, self._columns], axis=0, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        covering = np.searchsorted(counts[order].cumsum(), COVERED * len(attributes)) + 1
        common = torch.from_numpy(rows[order[:covering]].astype(np.int64))
        # The mode for each number that the bits of a combination form; others are the last mode.
        self._modes = torch.full((2 ** len(chosen),), len(common))
        self._modes[(common * self._bits).sum(1)] = torch.arange(len(common))
        self.mode_names = tuple(_mode_name(chosen, row) for row in common.tolist())
        if len(common) < len(self._modes):
            self.mode_names += ("other",)
        identity = json.dumps([classifier.hash, tuple(chosen), self.mode_names])
        self.hash = hashlib.sha256(identity.encode()).hexdigest()[:16]

    def extract(self, images: ImageBatch) -> Features:
        """Extract features and modes.

        Confidence, in [1/2, 1], is that of the least certain of the chosen attributes.
        """
        features = self._classifier.features(images)
        with torch.no_grad():
            probs = self._classifier.head(features)[:, self._columns].sigmoid()
        numbers = ((probs > 0.5) * self._bits.to(features.device)).sum(1)
        modes = self._modes.to(features.device)[numbers]
        return Features(features, modes, torch.maximum(probs, 1 - probs).amin(1))


def choose_attributes(
    names: Sequence[str],
    attributes: NDArray[np.uint8],
    balanced_accuracy: Sequence[float],
    limit: int = 4,
) -> tuple[str, ...]:
    """Choose attributes that the classifier recognises, evenly spread and not correlated.

    Among attributes with a balanced accuracy of at least 0.9, the one closest to half of the images
    comes first, then the next one that correlates by less than 0.5 with all chosen ones, and so on.

    Args:
        names: Names of the A attributes.
        attributes: Attributes of the reference images, 0 or 1, (n, A).
        balanced_accuracy: Balanced accuracies (A,) in [0, 1] or nan.
        limit: Maximum number of attributes.

    Raises:
        UserError: None qualifies.
    """
    share = attributes.mean(0)
    evenness = np.minimum(share, 1 - share)
    usable = (np.asarray(balanced_accuracy) >= MIN_BALANCED_ACCURACY) & (evenness > 0)
    columns = np.flatnonzero(usable)[np.argsort(-evenness[usable], kind="stable")]
    if not len(columns):
        raise UserError(
            f"none of {len(names)} attributes varies and has a balanced accuracy of "
            f"{MIN_BALANCED_ACCURACY} (highest: {np.nanmax([0.0, *balanced_accuracy]):.2f}); use a"
            " larger set of images"
        )
    correlation = np.abs(np.atleast_2d(np.corrcoef(attributes[:, columns], rowvar=False)))
    chosen: list[int] = []
    for i in range(len(columns)):
        if len(chosen) < limit and (correlation[i, chosen] < MAX_CORRELATION).all():
            chosen.append(i)
    return tuple(names[int(column)] for column in columns[chosen])


class PixelExtractor:
    """Average-pooled pixels as features, without modes, for images without labels.

    A random network would show no more, and differ between machines.

    Args:
        device: Where features are computed.
        side: Maximum side after pooling blocks of pixels.
    """

    mode_names: tuple[str, ...] = ()

    def __init__(self, device: torch.device, side: int = 16) -> None:
        self._device, self._side = device, side
        self.hash = f"pixels-{side}"

    def extract(self, images: ImageBatch) -> Features:
        """Extract features in [0, 1], (n, C h w)."""
        check_images("images", images)
        block = [-(-size // self._side) for size in images.shape[1:3]]
        means = [avg_pool2d(x, block, ceil_mode=True) for x in batches(images, self._device)]
        return Features(torch.cat(means).flatten(1) / 255, None, None)


class CombinedExtractor:
    """Features of one extractor with the modes of another."""

    def __init__(self, features: FeatureExtractor, modes: FeatureExtractor) -> None:
        self._features, self._modes = features, modes
        self.hash, self.mode_names = f"{features.hash}+{modes.hash}", modes.mode_names

    def extract(self, images: ImageBatch) -> Features:
        """Extract both; each tensor stays on the device of its extractor."""
        modes = self._modes.extract(images)
        return Features(self._features.extract(images).features, modes.modes, modes.confidences)


_WORDS = {
    "Male": ("man", "woman"),
    "Young": ("young", "old"),
    "Mouth_Slightly_Open": ("mouth open", "mouth closed"),
    "No_Beard": ("no beard", "beard"),
    "Straight_Hair": ("straight hair", "hair not straight"),
    "5_o_Clock_Shadow": ("stubble", "no stubble"),
}
"""Words for the presence and the absence of CelebA's attributes that need words of their own."""
_ADJECTIVES = ("Attractive", "Bald", "Blurry", "Chubby", "Smiling")


def _mode_name(attributes: Sequence[str], present: Sequence[int]) -> str:
    """Return a name such as "woman, smiling, no hat", the sex first."""
    pairs = sorted(zip(attributes, present, strict=True), key=lambda pair: pair[0] != "Male")
    return ", ".join(_words(name, bool(yes)) for name, yes in pairs)


def _words(attribute: str, present: bool) -> str:
    if attribute in _WORDS:
        return _WORDS[attribute][0 if present else 1]
    word = attribute.removeprefix("Wearing_").replace("_", " ").lower()
    return word if present else f"not {word}" if attribute in _ADJECTIVES else f"no {word}"
