"""Results of single modes and attributes: which ones samples lack, and where they vary less.

The intervals hold for all modes or attributes together (Bonferroni), so that the worst one may be
picked out and named.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtri

from ganray.evaluation.comparison import Comparison, ImageStatistics
from ganray.metrics.diversity import vendi_score
from ganray.metrics.intervals import Estimate

MIN_IMAGES_PER_MODE = 20
"""Images of a mode that a subsample must have on average."""
_TINY = 1e-4
"""Added to shares, of which 0 would make any ratio extreme."""
_MAX_SHARES = 100
"""Number of modes up to which the share of each is compared: more have too few images each."""


@dataclass(frozen=True)
class ModeResult:
    """How much of one mode's variety the samples have."""

    name: str
    coverage: Estimate
    """Share of the mode's reference neighbourhoods that contain a sample."""
    coverage_difference: Estimate
    """The same less that of other reference images."""
    vendi_share: Estimate
    """Vendi score of the mode's samples, relative to as many of its reference images."""
    vendi_difference: Estimate
    """The same less that of other reference images."""

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
    difference: Estimate

    @property
    def is_rare(self) -> bool:
        """Whether it is significantly rarer among the samples than among real images."""
        return self.difference.high < 0

    @property
    def is_frequent(self) -> bool:
        """Whether it is significantly more frequent among the samples than among real images."""
        return self.difference.low > 0


def comparable_modes(
    reference: ImageStatistics, samples: ImageStatistics, subsample: float
) -> list[int]:
    """Return the modes whose variety can be compared: those with enough images on both sides.

    Args:
        reference: Statistics of the reference images.
        samples: Statistics of the samples.
        subsample: Share of the images in a subsample, in (0, 1).
    """
    if not samples.has_modes:
        return []
    fewest = np.minimum(reference.counts, samples.counts)
    return np.flatnonzero(fewest * subsample >= MIN_IMAGES_PER_MODE).tolist()


def mode_variety(comparison: Comparison, modes: list[int]) -> np.ndarray:
    """Return coverage and Vendi share within each of K modes, float64 (K, 2)."""
    result = np.full((len(modes), 2), np.nan)
    if not modes:
        return result
    reference, samples = comparison.reference, comparison.samples
    covered = comparison.scores.covered.cpu().numpy()
    for i, mode in enumerate(modes):
        rows = [np.flatnonzero(images.modes == mode) for images in (samples, reference)]
        count = min(map(len, rows))
        if count:
            scores = [
                vendi_score(images.features[torch.from_numpy(at[:count])])
                for images, at in zip((samples, reference), rows, strict=True)
            ]
            result[i] = covered[rows[1]].mean(), scores[0] / scores[1]
    return result


def compare_shares(
    reference: ImageStatistics, samples: ImageStatistics, control: ImageStatistics, level: float
) -> tuple[ShareResult, ...]:
    """Compare the share of each attribute, or of each mode, with that among all real images.

    The share of an attribute is its mean probability.

    Args:
        reference: Statistics of n reference images.
        samples: Statistics of n samples.
        control: Statistics of n other reference images.
        level: Probability with which all intervals are meant to hold, in (0, 1).
    """
    names = samples.attribute_names or samples.mode_names
    if not 0 < len(names) <= _MAX_SHARES:
        return ()
    fake, *real = (_indicators(images) for images in (samples, reference, control))
    real = torch.cat(real)
    means = [x.mean(0).tolist() for x in (fake, real)]
    errors = (fake.var(0) / len(fake) + real.var(0) / len(real)).sqrt().tolist()
    reach = float(ndtri(1 - (1 - level) / (2 * len(names))))
    results = []
    for name, share, expected, error in zip(names, *means, errors, strict=True):
        value = share - expected
        interval = Estimate(value, value - reach * error, value + reach * error, len(fake))
        results.append(ShareResult(name, share, expected, interval))
    return tuple(results)


def _indicators(images: ImageStatistics) -> torch.Tensor:
    """Return the probability of each attribute, or whether each image has each mode, (n, A)."""
    if images.extracted.attributes is not None:
        return images.extracted.attributes.double()
    assert images.extracted.modes is not None
    modes = torch.nn.functional.one_hot(images.extracted.modes, len(images.mode_names))
    return modes.double()


def most_different(shares: tuple[ShareResult, ...], *, rare: bool) -> list[ShareResult]:
    """Return the modes or attributes that are too rare, or too frequent, the most lacking first."""
    found = [share for share in shares if (share.is_rare if rare else share.is_frequent)]
    return sorted(
        found, key=lambda share: (share.share + _TINY) / (share.reference + _TINY), reverse=not rare
    )
