"""What metrics look at instead of pixels: features, modes, and how sure the mode is.

An extractor turns images into a ``Seen``. All of ganray's numbers name its ``hash``, for they
compare only if they were taken through the same eyes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from ganray.metrics.features import Classifier, Images


@dataclass(frozen=True)
class Seen:
    """n images as an extractor sees them."""

    features: torch.Tensor
    """float32 (n, d), on the extractor's device."""
    modes: torch.Tensor | None
    """int64 (n,) in [0, K): the mode each belongs to; None where no modes are known."""
    confidences: torch.Tensor | None
    """float32 (n,) in [0, 1]: how sure that is; None where no modes are known."""


class Extractor(Protocol):
    """Looks at images; made once, used on reals and fakes alike."""

    hash: str
    """Names what it was made of, 16 hex digits or a name."""
    mode_names: tuple[str, ...]
    """Of the K modes; () where none are known."""

    def look(self, images: Images) -> Seen:
        """Look at uint8 (n, H, W, C) in [0, 255], n from 0."""
        ...


class ByClass:
    """Modes are the classes that the reference classifier tells apart."""

    def __init__(self, classifier: Classifier, names: tuple[str, ...]) -> None:
        self._classifier = classifier
        self.hash, self.mode_names = classifier.hash, names

    def look(self, images: Images) -> Seen:
        """As ``Extractor.look``: features are the classifier's, confidence its probability."""
        features = self._classifier.features(images)
        with torch.no_grad():
            sure, modes = self._classifier.head(features).softmax(1).max(1)
        return Seen(features, modes, sure)
