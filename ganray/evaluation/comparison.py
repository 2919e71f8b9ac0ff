"""Statistics of samples and reference images, from which the metrics are computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ganray.evaluation.extractors import FeatureExtractor, Features
from ganray.metrics import diversity, modes
from ganray.metrics.frechet import Moments, frechet_distance, frechet_distance_of_rows
from ganray.metrics.modes import Counts
from ganray.metrics.precision_recall import Manifold, ManifoldScores, manifold_scores

CONFIDENT = 0.9
"""Confidence from which on an image counts as confident about its mode."""

_TINY = 1e-9

CountStatistic = Callable[[Counts, Counts], float]
"""Function of the samples' and the reference images' counts per mode, int64 (K,) each."""


@dataclass(frozen=True)
class ImageStatistics:
    """Features of n images and the statistics that metrics are computed from, n at least 6."""

    extracted: Features
    mode_names: tuple[str, ...]
    """Names of the K modes; () if the extractor has none."""
    attribute_names: tuple[str, ...]
    """Names of the A attributes; () if the extractor has none."""
    hash: str
    """Hash of the extractor."""

    @classmethod
    def of(cls, extractor: FeatureExtractor, extracted: Features) -> ImageStatistics:
        """Return the statistics of an extractor's features."""
        names = extractor.mode_names, extractor.attribute_names
        return cls(extracted, *names, extractor.hash)

    def take(self, rows: torch.Tensor) -> ImageStatistics:
        """Return the statistics of some of the images, int64 (m,)."""
        return ImageStatistics(
            self.extracted.take(rows), self.mode_names, self.attribute_names, self.hash
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.features)

    @property
    def features(self) -> torch.Tensor:
        """Feature matrix, (n, d)."""
        return self.extracted.features

    @property
    def whitened(self) -> torch.Tensor:
        """Features for Vendi scores, (n, d): whitened, if the extractor knows how, else the same.

        At length 1 features of real images have cosines near 1 and their score is low, so that
        noise and blends raise it; see "Which features serve faces best" in the README.
        """
        whitened = self.extracted.whitened
        return self.features if whitened is None else whitened

    @property
    def has_modes(self) -> bool:
        """Whether each image has a mode."""
        return self.extracted.modes is not None

    @cached_property
    def modes(self) -> np.ndarray:
        """Mode of each image, int64 (n,)."""
        assert self.extracted.modes is not None
        return self.extracted.modes.cpu().numpy()

    @cached_property
    def moments(self) -> Moments:
        """Moments of the features."""
        return Moments.of(self.features)

    @cached_property
    def vendi(self) -> float:
        """Vendi score of the whitened features."""
        return diversity.vendi_score(self.whitened)

    @cached_property
    def manifold(self) -> Manifold:
        """Manifold of the images."""
        return Manifold.fit(self.features)

    @cached_property
    def duplicate_thresholds(self) -> tuple[float, float]:
        """Distances of features and of coarse pixels up to which images are duplicates."""
        images = self.extracted.features, self.extracted.pixels
        first, second = map(diversity.duplicate_threshold, images)
        return first, second

    @cached_property
    def spreads(self) -> tuple[float, float]:
        """Root of the total variance of features and of coarse pixels."""
        images = self.extracted.features, self.extracted.pixels
        first, second = (rows.double().var(0).sum().sqrt().item() for rows in images)
        return first, second

    @cached_property
    def counts(self) -> Counts:
        """Number of images per mode, int64 (K,)."""
        return self._count(at_least=0.0)

    @cached_property
    def confident_counts(self) -> Counts:
        """Number of confident images per mode and, last, of all others, int64 (K + 1,)."""
        confident = self._count(at_least=CONFIDENT)
        return np.append(confident, len(self) - confident.sum())

    def _count(self, at_least: float) -> Counts:
        assert self.extracted.confidences is not None
        confidences = self.extracted.confidences.cpu().numpy()
        names = self.mode_names
        return modes.count_confident(self.modes, confidences, len(names), at_least=at_least)


@dataclass(frozen=True)
class Comparison:
    """Samples and as many reference images."""

    reference: ImageStatistics
    samples: ImageStatistics

    def __post_init__(self) -> None:
        assert self.samples.hash == self.reference.hash
        if len(self.samples) != len(self.reference):
            raise ValueError(
                f"{len(self.samples)} samples but {len(self.reference)} reference images; the"
                " numbers must be equal, as most metrics depend on both"
            )

    @cached_property
    def scores(self) -> ManifoldScores:
        """Precision, recall, density and coverage."""
        return manifold_scores(self.reference.manifold, self.samples.manifold)

    @cached_property
    def duplicates(self) -> torch.Tensor:
        """Number of near duplicates of each sample among the others, int64 (n,).

        If samples spread less than real images, as blurred ones do, so do duplicates: thresholds
        shrink in proportion.
        """
        thresholds = self.reference.duplicate_thresholds
        pairs = zip(thresholds, self.reference.spreads, self.samples.spreads, strict=True)
        scaled = [near * min(1.0, fake / max(real, _TINY)) for near, real, fake in pairs]
        images = self.samples.extracted
        return diversity.count_duplicates([images.features, images.pixels], scaled)

    @property
    def frechet(self) -> float:
        """Frechet distance of the features."""
        both = self.reference, self.samples
        if len(self.samples) < self.samples.features.shape[1]:
            return frechet_distance_of_rows(*(images.features for images in both))
        return frechet_distance(*(images.moments for images in both))

    def simulate(self, statistic: CountStatistic) -> float:
        """Return the mean of a statistic of ideal generators, if these samples are real images.

        Both sides are drawn from the counts of all real images, because the reference images are
        a random sample, too, and add as much to a divergence.
        """
        shares = (self.reference.counts + self.samples.counts) / (2 * len(self.samples))
        rng = np.random.default_rng(0)
        pairs = rng.multinomial(len(self.samples), shares, size=(200, 2))
        return float(np.mean([statistic(*pair) for pair in pairs]))
