"""Results of single modes and attributes: which ones samples lack, and where they vary less.

Intervals and tests hold for all modes or attributes together (Bonferroni), so that the worst one
may be picked out and named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ganray.evaluation.comparison import ImageStatistics
from ganray.metrics.diversity import vendi_score
from ganray.metrics.intervals import Estimate
from ganray.metrics.precision_recall import DENSITY_COVERAGE_K, Manifold, manifold_scores

HELD = 0.1
"""A mode is held if its share of the samples is at least this part of its reference share."""
MIN_IMAGES_PER_MODE = 20
"""Images of a mode that a subsample must have on average."""
_TINY = 1e-4
"""Added to shares, of which 0 would make any ratio extreme."""
_MAX_SHARES = 100
"""Number of modes up to which the share of each is compared: more have too few images each."""


@dataclass(frozen=True)
class ModeResult:
    """Variety of the samples within one mode, beside that of real images."""

    name: str
    coverage: Estimate
    """Share of the mode's reference neighborhoods with a sample of the mode, for as many of both:
    how often it occurs does not count."""
    coverage_difference: Estimate
    """Difference from the same score of other reference images."""
    vendi_share: Estimate
    """Vendi score of the mode's samples, relative to as many of its reference images."""
    vendi_difference: Estimate
    """Difference from the same score of other reference images."""

    @property
    def lack(self) -> float:
        """The larger of the two differences, negative if the samples have less variety."""
        return min(self.coverage_difference.value, self.vendi_difference.value)

    @property
    def is_narrow(self) -> bool:
        """Whether the mode has significantly less variety than real images."""
        return self.coverage_difference.high < 0 or self.vendi_difference.high < 0

    def __str__(self) -> str:
        """Return the mode with the score that it lacks most."""
        if self.coverage_difference.high < 0:
            real = self.coverage.value - self.coverage_difference.value
            return f"{self.name}, of which samples lie near {self.coverage.value:.0%} ({real:.0%})"
        real = self.vendi_share.value - self.vendi_difference.value
        return f"{self.name}, with {self.vendi_share.value:.0%} of its Vendi score ({real:.0%})"


@dataclass(frozen=True)
class ShareResult:
    """Share of the samples that have a mode or attribute."""

    name: str
    share: float
    reference: float
    """Share of all real images, those of the reference and others."""
    is_rare: bool
    """Whether it is significantly rarer among the samples than among real images."""
    is_frequent: bool
    """Whether it is significantly more frequent among the samples than among real images."""


def comparable_modes(sides: Sequence[ImageStatistics], subsample: float) -> list[int]:
    """Return the modes whose variety can be compared: those with enough images on all sides.

    Args:
        sides: Statistics of the samples, reference images and others.
        subsample: Share of the images in a subsample, in (0, 1).
    """
    if not sides[0].has_modes:
        return []
    fewest = np.min([side.counts for side in sides], axis=0)
    return np.flatnonzero(fewest * subsample >= MIN_IMAGES_PER_MODE).tolist()


def mode_variety(
    reference: ImageStatistics, sides: Sequence[ImageStatistics], modes: list[int]
) -> np.ndarray:
    """Return coverage and Vendi share within K modes, of equally many images: float64 (S, K, 2).

    Args:
        reference: Statistics of the reference images.
        sides: Statistics of S sets of images to compare with them, such as samples and control.
        modes: The K modes, see `comparable_modes`.
    """
    result = np.full((len(sides), len(modes), 2), np.nan)
    for i, mode in enumerate(modes):
        rows = [torch.from_numpy(np.flatnonzero(x.modes == mode)) for x in (reference, *sides)]
        count = min(map(len, rows))
        if count <= DENSITY_COVERAGE_K:
            continue
        real, *others = (
            (x.features[at[:count]], vendi_score(x.whitened[at[:count]]))
            for x, at in zip((reference, *sides), rows, strict=True)
        )
        manifold, vendi = Manifold.fit(real[0]), real[1]
        for side, (features, other_vendi) in enumerate(others):
            scores = manifold_scores(manifold, Manifold.fit(features))
            result[side, i] = scores.coverage, other_vendi / vendi
    return result


def compare_shares(
    reference: ImageStatistics, samples: ImageStatistics, control: ImageStatistics, level: float
) -> tuple[ShareResult, ...]:
    """Compare the share of each attribute, or of each mode, with that among all real images.

    The test is Fisher's exact one, as rare attributes have too few images for others.

    Args:
        reference: Statistics of n reference images.
        samples: Statistics of n samples.
        control: Statistics of n other reference images.
        level: Probability of no false claim, in (0, 1).
    """
    names = samples.attribute_names or samples.mode_names
    if not 0 < len(names) <= _MAX_SHARES:
        return ()
    fake, *real = (_counts(images) for images in (samples, reference, control))
    n, real = len(samples), np.sum(real, axis=0)
    from scipy.stats import hypergeom  # takes half a second, which workers need not wait for

    # Of all 3n images, as many as have the attribute, how many are samples?
    draws = hypergeom(3 * n, fake + real, n)
    alpha = (1 - level) / (2 * len(names))
    rare, frequent = draws.cdf(fake) < alpha, draws.sf(fake - 1) < alpha
    columns = zip(names, fake / n, real / (2 * n), rare, frequent, strict=True)
    return tuple(ShareResult(a, float(b), float(c), bool(d), bool(e)) for a, b, c, d, e in columns)


def lost_modes(
    reference: ImageStatistics, samples: ImageStatistics, control: ImageStatistics, level: float
) -> list[int]:
    """Return the modes that the samples do not hold, the most frequent first.

    A mode is held if its share of the samples is at least ``HELD`` of its reference share. Real
    images do not hold all rare modes either. So a mode counts only if it is significantly rarer
    among the samples than among real images (Fisher's exact test), or, if no single one of many
    rare modes is, if samples hold significantly fewer of them than other real images do (McNemar's
    test).
    """
    if not samples.has_modes:
        return []
    from scipy.stats import binomtest, hypergeom

    n, real = len(samples), reference.counts + control.counts
    missing, others = (
        (reference.counts > 0) & (images.counts < np.maximum(1, HELD * reference.counts))
        for images in (samples, control)
    )
    rarer = hypergeom(3 * n, samples.counts + real, n).cdf(samples.counts)
    lost = missing & (rarer < (1 - level) / len(missing))
    only = missing & ~others
    if not lost.any() and only.any():
        differ = int((missing ^ others).sum())
        if binomtest(int(only.sum()), differ, alternative="greater").pvalue < 1 - level:
            lost = only
    modes = np.flatnonzero(lost)
    return modes[np.argsort(-reference.counts[modes], kind="stable")].tolist()


def _counts(images: ImageStatistics) -> np.ndarray:
    """Return the number of images with each attribute, or without attributes each mode, (A,)."""
    if images.attribute_names:
        assert images.extracted.attributes is not None
        return (images.extracted.attributes > 0.5).sum(0).cpu().numpy()
    return images.counts


def most_different(shares: tuple[ShareResult, ...], *, rare: bool) -> list[ShareResult]:
    """Return the modes or attributes that are too rare, or too frequent, the most lacking first."""
    found = [share for share in shares if (share.is_rare if rare else share.is_frequent)]
    return sorted(
        found, key=lambda share: (share.share + _TINY) / (share.reference + _TINY), reverse=not rare
    )
