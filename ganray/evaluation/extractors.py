"""Feature extractors: features of images, their modes, and confidences.

Every report names the ``hash`` of its extractor, as metrics compare only between equal extractors.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import avg_pool2d, normalize

from ganray.errors import UserError
from ganray.evaluation.classifier import Classifier, ImageBatch, as_tensor, batches, check_images

MIN_BALANCED_ACCURACY, SURE_BALANCED_ACCURACY = 0.9, 0.97
"""Balanced accuracies from which an attribute's share is compared, and from which it defines modes:
with 0.9, the classifier would be confident of all attributes in half of the real faces only."""
MAX_CORRELATION = 0.5
"""Absolute correlation from which one attribute is left out next to another."""
COVERED = 0.99
"""Share of the reference images whose combinations of attributes are modes of their own."""


@dataclass(frozen=True)
class Features:
    """Features, coarse pixels, modes and attributes of n images, on the extractor's device."""

    features: torch.Tensor
    """float32 (n, d)."""
    pixels: torch.Tensor
    """float32 (n, p) in [0, 1], see ``coarse_pixels``."""
    modes: torch.Tensor | None = None
    """int64 (n,) in [0, K), the mode of each image; None if the extractor has no modes."""
    confidences: torch.Tensor | None = None
    """float32 (n,) in [0, 1], the confidence in each mode; None if there are no modes."""
    attributes: torch.Tensor | None = None
    """float32 (n, A) in [0, 1], the probability of each attribute; None if there are none."""
    whitened: torch.Tensor | None = None
    """float32 (n, d), coordinates of the features in which real images vary equally in all
    directions; None if the extractor was not trained on such images."""

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Features:
        """Apply a function to each tensor."""
        results: dict[str, Any] = {}
        for field in fields(self):
            tensor = getattr(self, field.name)
            results[field.name] = None if tensor is None else function(tensor)
        return Features(**results)

    def take(self, rows: torch.Tensor) -> Features:
        """Return the features of some of the images, int64 (m,)."""
        return self.map(lambda tensor: tensor[rows])

    @staticmethod
    def concatenate(parts: Sequence[Features]) -> Features:
        """Return the features of the images of all parts, at least one, in order."""
        results: dict[str, Any] = {}
        for field in fields(Features):
            tensors = [getattr(part, field.name) for part in parts]
            results[field.name] = None if tensors[0] is None else torch.cat(tensors)
        return Features(**results)


class FeatureExtractor(Protocol):
    """Extracts features of samples and reference images alike."""

    hash: str
    """Name or 16 hex digits that identify the extractor; features of published networks begin with
    the network's name."""
    mode_names: tuple[str, ...]
    """Names of the K modes; () if there are none."""
    attribute_names: tuple[str, ...]
    """Names of the A attributes; () if there are none."""

    def extract(self, images: ImageBatch) -> Features:
        """Extract the features of uint8 (n, H, W, C) in [0, 255], n at least 0."""
        ...


def coarse_pixels(images: ImageBatch, device: torch.device, side: int = 16) -> torch.Tensor:
    """Return the means of square blocks of pixels, at most `side` a side: (n, C h w) in [0, 1].

    Args:
        images: uint8 (n, H, W, C), n at least 0.
        device: Where they are computed.
        side: Maximum side after pooling.
    """
    check_images("images", images)
    block = [-(-size // side) for size in images.shape[1:3]]
    means = [avg_pool2d(x, block, ceil_mode=True) for x in batches(images, device)]
    return torch.cat(means).flatten(1) / 255


class ClassExtractor:
    """Features of the reference classifier at length 1; modes are its classes, if they have names.

    Features of samples that excite the classifier little are short, so that without the
    normalization they would seem to be near each other, and within the reference images' balls:
    blurred images would have perfect precision, and no diversity.
    """

    attribute_names: tuple[str, ...] = ()

    def __init__(self, classifier: Classifier, names: tuple[str, ...] = ()) -> None:
        self._classifier = classifier
        self.hash, self.mode_names = classifier.hash, names

    def extract(self, images: ImageBatch) -> Features:
        """Extract features and modes; confidence is the probability of the class."""
        raw = self._classifier.features(images)
        pixels, whitened = coarse_pixels(images, raw.device), self._classifier.whiten(raw)
        result = Features(normalize(raw), pixels, whitened=whitened)
        if not self.mode_names:
            return result
        with torch.no_grad():
            confidences, modes = self._classifier.head(raw).softmax(1).max(1)
        return replace(result, modes=modes, confidences=confidences)


class StackedDigitsExtractor:
    """Stacked MNIST; modes are the triples of digits, "000" to "999", with red as the hundreds.

    Args:
        classifier: Classifier of one-channel digits; see ``split_channels``.
    """

    mode_names: tuple[str, ...] = tuple(map("".join, itertools.product("0123456789", repeat=3)))
    attribute_names: tuple[str, ...] = ()

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
        assert digits.whitened is not None
        weights = torch.tensor([100, 10, 1], device=digits.modes.device)
        return Features(
            digits.features.unflatten(0, (-1, 3)).flatten(1),
            digits.pixels.unflatten(0, (-1, 3)).flatten(1),
            (digits.modes.unflatten(0, (-1, 3)) * weights).sum(1),
            digits.confidences.unflatten(0, (-1, 3)).amin(1),
            whitened=digits.whitened.unflatten(0, (-1, 3)).flatten(1),
        )


def split_channels(images: ImageBatch) -> torch.Tensor:
    """Split uint8 (n, H, W, 3) into its channels, (3n, H, W, 1): R, G, B of each image in turn."""
    check_images("images", images)
    if images.shape[3] != 3:
        raise ValueError(
            f"images: {tuple(images.shape)}; must have 3 channels, with a digit in each; use "
            "ClassExtractor for gray images"
        )
    return as_tensor(images).permute(0, 3, 1, 2).flatten(0, 1).unsqueeze(3)


def split_labels(labels: torch.Tensor) -> torch.Tensor:
    """Split labels of stacked MNIST, int64 (n,) in [0, 1000), into their digits, (3n,)."""
    assert not len(labels) or 0 <= labels.min() <= labels.max() < 1000
    weights = torch.tensor([100, 10, 1], device=labels.device)
    return (labels[:, None] // weights % 10).flatten()


class AttributeExtractor:
    """Features of the reference classifier; modes are combinations of a few attributes.

    Modes have names like "woman, smiling". Of the 2^k combinations, the fewest that cover 99 %
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
        recognized = np.array(classifier.balanced_accuracy) >= MIN_BALANCED_ACCURACY
        self._recognized = np.flatnonzero(recognized).tolist()
        self.attribute_names = tuple(_words(names[i], True) for i in self._recognized)
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
        raw = self._classifier.features(images)
        with torch.no_grad():
            attributes = self._classifier.head(raw).sigmoid()
        probs = attributes[:, self._columns]
        attributes = attributes[:, self._recognized]
        numbers = ((probs > 0.5) * self._bits.to(raw.device)).sum(1)
        modes = self._modes.to(raw.device)[numbers]
        confidences = torch.maximum(probs, 1 - probs).amin(1)
        pixels, whitened = coarse_pixels(images, raw.device), self._classifier.whiten(raw)
        return Features(normalize(raw), pixels, modes, confidences, attributes, whitened)


def choose_attributes(
    names: Sequence[str],
    attributes: NDArray[np.uint8],
    balanced_accuracy: Sequence[float],
    limit: int = 4,
) -> tuple[str, ...]:
    """Choose attributes that the classifier recognizes, evenly spread and not correlated.

    Among attributes with a balanced accuracy of at least 0.97, or 0.9 if there are none, the one
    closest to half of the images comes first, then the next one that correlates by less than 0.5
    with all chosen ones, and so on.

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
    accuracy = np.where(evenness > 0, np.nan_to_num(balanced_accuracy), 0)
    usable = accuracy >= SURE_BALANCED_ACCURACY
    if not usable.any():
        usable = accuracy >= MIN_BALANCED_ACCURACY
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
    """Coarse pixels as features, without modes, for images without labels.

    A random network would show no more, and differ between machines.

    Args:
        device: Where features are computed.
        side: See ``coarse_pixels``.
    """

    mode_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()

    def __init__(self, device: torch.device, side: int = 16) -> None:
        self._device, self._side = device, side
        self.hash = f"pixels-{side}"

    def extract(self, images: ImageBatch) -> Features:
        """Extract features in [0, 1], (n, C h w)."""
        pixels = coarse_pixels(images, self._device, self._side)
        return Features(pixels, pixels)


class CombinedExtractor:
    """Features of one extractor with the modes and attributes of another."""

    def __init__(self, features: FeatureExtractor, modes: FeatureExtractor) -> None:
        self._features, self._modes = features, modes
        self.hash = f"{features.hash}+{modes.hash}"
        self.mode_names, self.attribute_names = modes.mode_names, modes.attribute_names

    def extract(self, images: ImageBatch) -> Features:
        """Extract features and modes."""
        own = self._features.extract(images)
        return replace(self._modes.extract(images), features=own.features, whitened=own.whitened)


_WORDS = {
    "Male": ("man", "woman"),
    "Young": ("young", "old"),
    "Mouth_Slightly_Open": ("mouth open", "mouth closed"),
    "No_Beard": ("no beard", "beard"),
    "Straight_Hair": ("straight hair", "hair not straight"),
    "5_o_Clock_Shadow": ("stubble", "no stubble"),
}
"""Words for the presence and the absence of CelebA's attributes that need words of their own."""


def _mode_name(attributes: Sequence[str], present: Sequence[int]) -> str:
    """Return a name such as "woman, smiling, black hair", the sex first.

    What is absent is left out, unless there is a word for it.
    """
    pairs = sorted(zip(attributes, present, strict=True), key=lambda pair: pair[0] != "Male")
    words = [_words(name, bool(yes)) for name, yes in pairs if yes or name in _WORDS]
    names = ", ".join(_words(name, True) for name in attributes)
    return ", ".join(words) or (f"none of {names}" if len(attributes) > 1 else f"no {names}")


def _words(attribute: str, present: bool) -> str:
    if attribute in _WORDS:
        return _WORDS[attribute][0 if present else 1]
    return attribute.removeprefix("Wearing_").replace("_", " ").lower()
