"""Statistics of samples and reference images, from which the metrics are estimated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ganray.evaluation.extractors import FeatureExtractor, Features
from ganray.metrics import diversity, intervals, modes
from ganray.metrics.frechet import Moments, kid
from ganray.metrics.intervals import Estimate, Replicates
from ganray.metrics.modes import Counts
from ganray.metrics.precision_recall import Manifold, ManifoldScores, manifold_scores

CONFIDENT = 0.9
"""Confidence from which on an image counts as confident about its mode."""

CountStatistic = Callable[[Counts, Counts], float]
"""Function of the samples' and the reference images' counts per mode, int64 (K,) each."""


@dataclass(frozen=True)
class ImageStatistics:
    """Features of n images and the statistics that metrics are computed from, n at least 6."""

    extracted: Features
    mode_names: tuple[str, ...]
    """Names of the K modes; () if the extractor has none."""
    hash: str
    """Hash of the extractor."""
    moments: Moments
    vendi: float

    @classmethod
    def of(cls, extractor: FeatureExtractor, extracted: Features) -> ImageStatistics:
        """Compute the statistics of an extractor's features; ValueError if they are not finite."""
        rows = extracted.features
        return cls(
            extracted,
            extractor.mode_names,
            extractor.hash,
            moments=Moments.of(rows),
            vendi=diversity.vendi_score(rows),
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.features)

    @property
    def features(self) -> torch.Tensor:
        """Feature matrix, (n, d)."""
        return self.extracted.features

    @property
    def has_modes(self) -> bool:
        """Whether each image has a mode."""
        return self.extracted.modes is not None

    @cached_property
    def manifold(self) -> Manifold:
        """Manifold of the images."""
        return Manifold.fit(self.features)

    @cached_property
    def wide_manifold(self) -> Manifold:
        """The manifold with the neighbours that intervals need."""
        return Manifold.fit(self.features, min(intervals.REACH, len(self) - 1))

    @cached_property
    def directions(self) -> torch.Tensor:
        """Features scaled to length 1, float64 (n, d).

        A classifier's features of samples that excite it little are short, so that different
        images would count as the same one.
        """
        return diversity.normalize_rows(self.features)

    @cached_property
    def duplicate_threshold(self) -> float:
        """Distance of directions up to which two samples count as the same image."""
        return diversity.duplicate_threshold(Manifold.fit(self.directions, k=1))

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
        labels, confidences = self.extracted.modes, self.extracted.confidences
        assert labels is not None
        assert confidences is not None
        arrays = labels.cpu().numpy(), confidences.cpu().numpy()
        return modes.count_confident(*arrays, len(self.mode_names), at_least=at_least)


@dataclass(frozen=True)
class Comparison:
    """Samples and as many reference images, with estimates of metrics of the samples."""

    reference: ImageStatistics
    samples: ImageStatistics
    resamples: int = 0
    """Number of replicates per interval; 0: intervals are not computed, and are infinite."""
    rng_seed: int = 0
    """Seed of the replicates."""

    def __post_init__(self) -> None:
        assert self.samples.hash == self.reference.hash
        if len(self.samples) != len(self.reference):
            raise ValueError(
                f"{len(self.samples)} samples but {len(self.reference)} reference images; the"
                " numbers must be equal, as most metrics depend on both"
            )

    def from_counts(self, statistic: CountStatistic, counts: Counts | None = None) -> Estimate:
        """Estimate a statistic of the counts of the samples, `samples.counts` by default."""
        counts = self.samples.counts if counts is None else counts

        def of_rows(rows: Counts) -> np.ndarray:
            return np.apply_along_axis(statistic, -1, rows, self.reference.counts)

        if not self.resamples:
            return self._unbounded(float(of_rows(counts)))
        return intervals.bootstrap_counts(
            of_rows, counts, rng_seed=self.rng_seed, resamples=self.resamples
        )

    def from_moments(self, statistic: Callable[[Moments], float]) -> Estimate:
        """Estimate a statistic of the moments of the samples' features."""
        value = statistic(self.samples.moments)
        return self._estimate(value, lambda: self._half_samples(statistic, self.samples.features))

    def from_manifolds(self, name: str) -> Estimate:
        """Estimate a field of ``ManifoldScores``."""
        scores, replicates = self._manifold_scores
        return self._estimate(getattr(scores, name), lambda: replicates[name])

    def vendi(self, unit: float = 1.0) -> Estimate:
        """Estimate the Vendi score of the samples in this unit."""
        return self._estimate(self.samples.vendi / unit, lambda: self._half_sample_vendi / unit)

    def kid(self) -> Estimate:
        """Estimate the kernel distance."""
        both = self.reference.features, self.samples.features
        value, options = kid(*both), {"rng_seed": self.rng_seed}
        return self._estimate(
            value, lambda: intervals.half_sample_kid(*both, value, self.resamples, **options)
        )

    def simulate(self, statistic: CountStatistic) -> float:
        """Return the mean of a statistic of ideal generators, if these samples are real images.

        Both sides are drawn from the counts of all real images, because the reference images are
        a random sample, too, and add as much to a divergence.
        """
        shares = (self.reference.counts + self.samples.counts) / (2 * len(self.samples))
        rng = np.random.default_rng(0)
        pairs = rng.multinomial(len(self.samples), shares, size=(200, 2))
        return float(np.mean([statistic(*pair) for pair in pairs]))

    def _estimate(self, value: float, replicates: Callable[[], Replicates]) -> Estimate:
        if not self.resamples:
            return self._unbounded(value)
        return intervals.interval_from_replicates(value, replicates(), len(self.samples))

    def _unbounded(self, value: float) -> Estimate:
        return Estimate(value, -math.inf, math.inf, len(self.samples))

    def _half_samples(
        self, statistic: Callable[[Moments], float], rows: torch.Tensor
    ) -> Replicates:
        seed = self.rng_seed
        return intervals.half_sample_moments(statistic, rows, self.resamples, rng_seed=seed)

    @cached_property
    def _half_sample_vendi(self) -> Replicates:
        rows = diversity.normalize_rows(self.samples.features)
        return self._half_samples(diversity.vendi_from_moments, rows)

    @cached_property
    def _manifold_scores(self) -> tuple[ManifoldScores, dict[str, Replicates]]:
        """Scores of the samples and, if there are intervals, of random halves."""
        if not self.resamples:
            return manifold_scores(self.reference.manifold, self.samples.manifold), {}
        both = self.reference.manifold, self.samples.wide_manifold
        return intervals.half_sample_manifold(*both, self.resamples, rng_seed=self.rng_seed)
