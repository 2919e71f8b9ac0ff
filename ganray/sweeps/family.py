"""Error rates of a sweep's claims, and the intervals that keep them. Imports neither Torch nor Ray.

The summary of a sweep claims differences between levels of all axes in the metrics of `COMPARED`,
and that settings are worse than the first of the ranking in a metric of `RANKED_BY`. All of these
claims are one family: of sweeps in which nothing differs, about 5 % at most claim anything (the
simulations in README.md have one case with 6 %). Bonferroni divides `LEVELS_ALPHA` among the former
and `RANKING_ALPHA` among the latter. Claims of interactions are not part of the family: each has an
interval of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Array = NDArray[np.float64]

COMPARED = ("coverage", "recall")
"""Metrics whose differences and explained variance are reported."""
RANKED_BY = ("recall", "coverage", "vendi_share", "kl_corrected")
"""Metrics that settings are ranked by."""
LEVELS_ALPHA, RANKING_ALPHA = 0.04, 0.01
"""Probabilities of any false claim about levels, and about the ranking."""
WITHIN_ALPHA = 0.05
"""Probability of any false claim about levels of an axis at single levels of another axis."""
MIN_SEEDS = 3
"""Minimum number of seeds for a significant difference: two seeds may agree by chance."""

FEW_SEEDS_CAVEAT = (
    "with 3 seeds 6 % if some settings collapse by chance and others, of the same mean, never do"
)
"""The one simulation in README.md in which more than 5 % of sweeps claim something."""


def confidence(alpha: float, comparisons: int) -> float:
    """Return the confidence level of each of so many intervals that miss with `alpha` at most."""
    return 1 - alpha / max(1, comparisons)


def count_comparisons(levels: Sequence[int]) -> int:
    """Return the number of differences between levels of axes with so many levels each."""
    return len(COMPARED) * sum(math.comb(count, 2) for count in levels)


def ranking_comparisons(settings: int) -> int:
    """Return the number of pairs of settings by metric, any of which may lead by its luck."""
    return len(RANKED_BY) * math.comb(settings, 2)


def paired_intervals(gaps: Array, level: float) -> tuple[Array, Array, NDArray[np.int64]]:
    """Return the mean over seeds of each gap, half the width of its interval, and its seeds.

    The variance of a gap is its own or the mean of all gaps, whichever is larger. By itself, a
    variance of few seeds is often far too small: runs that collapse by chance give gaps that agree
    in all seeds. The degrees of freedom are those of the mean variance of gaps that are correlated
    and vary unequally (Box 1954, as in the correction of Greenhouse and Geisser 1959). A single gap
    has Student's paired interval.

    Args:
        gaps: Differences between all pairs of some levels, float64 (pairs, seeds); nan where
            unknown.
        level: Confidence level of each interval.
    """
    known = np.isfinite(gaps)
    seeds = known.sum(1)
    mean = np.where(seeds, np.where(known, gaps, 0).sum(1) / np.maximum(seeds, 1), math.nan)
    residuals = np.where(known, gaps - mean[:, None], 0)
    squares, free = (residuals**2).sum(1), np.maximum(seeds - 1, 0)
    variance = np.maximum(squares / np.maximum(free, 1), squares.sum() / max(free.sum(), 1))
    products = residuals.T @ residuals
    total = (products**2).sum()
    independent = np.trace(products) ** 2 / total if total else 1.0
    reach = stdtrit(np.maximum(free, 1) * independent, (1 + level) / 2)
    half = reach * np.sqrt(variance / np.maximum(seeds, 1))
    return mean, np.where(free, half, math.inf), seeds
