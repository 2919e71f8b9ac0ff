"""95 % confidence intervals of metrics.

Which one to use depends on what varies between repetitions:

- the samples *and* the reference images: ``subsample_interval``;
- the samples alone, for a share of independent samples: ``share_interval``;
- the `rng_seed` of the training: ``replicate_interval``. Only this one shows whether one setting
  beats another; the others show whether n was large enough.

Why subsamples: a bootstrap resample holds an image 0, 1, 2 ... times. Copies are neighbors at
distance 0, so radii shrink and duplicates appear that nobody drew, and the intervals of coverage
and recall never hold. A subsample drawn *without* replacement has no copies (Politis and Romano
1994). For m of n images, a statistic that converges as 1 / sqrt(n) scatters with the variance
sigma^2 (1/m - 1/n), so sigma / sqrt(n) is the spread of subsamples times sqrt(m / (n - m)).

Every interval is one for *the expectation of the metric at this n*, which biases many metrics (KL,
number of modes, recall): they compare only at equal n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

LEVEL = 0.95
"""Probability with which an interval is meant to hold."""
TAIL = (1 - LEVEL) / 2
"""Probability on either side of an interval."""

_TINY = 1e-12
"""Smaller than any difference that is not rounding."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval."""

    value: float
    low: float
    """Lower end of the interval; -inf if nothing bounds it."""
    high: float
    """Upper end of the interval; inf if nothing bounds it."""
    n: int
    """Number of independent samples or replicates behind it."""

    def named(self, name: str) -> dict[str, float]:
        """Return the value and the ends of the interval as `name`, `name_low` and `name_high`."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}

    def brief(self) -> str:
        """Return "value [low, high]" with the digits, at most 4, that the interval justifies.

        An interval that nothing bounds is left out.
        """
        width = self.high - self.low
        if max(abs(self.value), width) < _TINY:
            return "0 [0, 0]"
        if _TINY < width < math.inf:
            # The last digit changes at least 5 and at most 50 times within the interval.
            digits = max(0, math.ceil(math.log10(5 / width)))
            if self.value:
                digits = min(digits, max(0, 3 - math.floor(math.log10(abs(self.value)))))
        elif self.value and math.isfinite(self.value):
            digits = max(0, 2 - math.floor(math.log10(abs(self.value))))
        else:
            digits = 0
        value, low, high = (f"{x:z,.{digits}f}" for x in (self.value, self.low, self.high))
        return value if self.low == -self.high == -math.inf else f"{value} [{low}, {high}]"


def replicate_interval(values: Sequence[float], *, level: float = LEVEL) -> Estimate:
    """Return the mean over runs that differ in `rng_seed` only, with Student's t-interval.

    Comparisons of settings rest on it: a run either collapses or not, so the spread between seeds
    exceeds by far that within a run. With 2 runs the interval extends 12.7 standard errors to
    either side, with 5 runs 2.8. One run shows no spread: its interval is unbounded.

    Trap: runs that fall into two groups (1 or 10 modes) are not normal; show the values as well.

    Args:
        values: One number per run (n,), all finite, at least one.
        level: Probability with which the interval is meant to hold, in (0, 1).
    """
    runs = np.asarray(values, dtype=np.float64)
    if runs.ndim != 1 or not runs.size or not np.isfinite(runs).all():
        raise ValueError(
            f"values={list(values)}: must be finite numbers, at least one; count diverged runs "
            "apart from the mean"
        )
    n, mean = len(runs), float(runs.mean())
    if n == 1:
        return Estimate(mean, -math.inf, math.inf, 1)
    reach = float(stdtrit(n - 1, (1 + level) / 2) * runs.std(ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - reach, mean + reach, n)


def share_interval(hits: int, n: int) -> Estimate:
    """Return the share hits / n with the exact interval of Clopper and Pearson (1934).

    It is right for 0 and n hits too, where resampling gives a point: no hit among n samples
    leaves room for a share of 3.7 / n.
    """
    from scipy.stats import binomtest  # takes half a second, which workers need not wait for

    interval = binomtest(hits, n).proportion_ci(LEVEL, method="exact")
    return Estimate(hits / n, float(interval.low), float(interval.high), n)


def subsample_interval(
    value: float, replicates: NDArray[np.float64], m: int, n: int, level: float = LEVEL
) -> Estimate:
    """Return `value`, of n images, with Student's t-interval by its spread between subsamples.

    Args:
        value: Metric of all n images.
        replicates: The metric of random subsamples without replacement, (R,), R at least 2.
        m: Images in a subsample, fewer than n.
        n: Number of all images.
        level: Probability with which the interval is meant to hold, in (0, 1).
    """
    deviation = float(np.std(replicates, ddof=1)) * math.sqrt(m / (n - m))
    reach = float(stdtrit(len(replicates) - 1, (1 + level) / 2)) * deviation
    return Estimate(value, value - reach, value + reach, n)
