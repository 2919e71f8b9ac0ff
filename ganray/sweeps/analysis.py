"""Ranking, paired differences and explained variance of the settings of a sweep.

The unit of replication is the *seed*: runs of one seed share their random numbers in all settings.
So levels are compared within each seed, and every interval is an interval over seeds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit
from scipy.stats import rankdata

from ganray.evaluation.suite import METRICS_BY_NAME
from ganray.metrics.intervals import Estimate, replicate_interval
from ganray.sweeps.axes import Axis
from ganray.sweeps.family import (
    COMPARED,
    LEVELS_ALPHA,
    MIN_SEEDS,
    RANKING_ALPHA,
    confidence,
    paired_intervals,
    ranking_comparisons,
)
from ganray.sweeps.results import RANKED, SHOWN, Results

Array = NDArray[np.float64]

RESIDUAL, HIGHER = ("seeds",), ("higher interactions",)
"""Factors of the `Effect`s that belong to no axis and no pair of axes."""
_UNDETERMINED = 0.9
"""Width from which on the interval of a share, which lies in [0, 1], states nothing."""
_ROUNDING = 1e-9
"""Values this close to 0 are rounding errors."""


@dataclass(frozen=True)
class RankedSetting:
    """A setting in the ranking, with the means of its runs."""

    levels: tuple[str, ...]
    """One label per axis."""
    means: dict[str, Estimate]
    """Means over seeds by metric of `RANKED` and `SHOWN`, where known. The mean of `half_life_kimg`
    covers only the runs that collapsed; its n is their number."""
    n: int
    """Scored runs, diverged ones included."""
    diverged: int
    failed: int
    """Crashed runs, which no mean includes."""
    rank: float
    """Mean of the setting's ranks by each of `RANKED`, from 1; nan if it has none of them."""
    ties_best: bool
    """Whether this is the first setting or is not significantly worse in any of `RANKED`."""


@dataclass(frozen=True)
class Difference:
    """The difference of a metric between two levels of an axis, paired by all other levels."""

    axis: str
    a: str
    b: str
    metric: str
    value: Estimate
    """Mean of a minus b; n counts seeds."""
    level: float
    """Confidence level of this interval by itself; `compare` says what holds together."""
    at: str = ""
    """Level of another axis at which a and b are compared; empty if averaged over all levels."""

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0 and rests on at least `MIN_SEEDS` seeds."""
        return excludes_zero(self.value)

    def swapped(self) -> Difference:
        """Return b minus a."""
        v = self.value
        value = Estimate(-v.value, -v.high, -v.low, v.n)
        return Difference(self.axis, self.b, self.a, self.metric, value, self.level, self.at)


@dataclass(frozen=True)
class Effect:
    """The part of a metric's variance over all runs that an axis or an interaction explains."""

    factors: tuple[str, ...]
    """Names of one or two axes, or `HIGHER`, or `RESIDUAL`."""
    eta2: float
    """Sum of squares of the effect / total; biased upwards, since noise explains variance too."""
    share: Estimate
    """eta squared less its bias; n counts seeds. Meaningless without its interval."""

    @property
    def is_determined(self) -> bool:
        """Whether the interval excludes more than a tenth of all possible shares."""
        return self.share.high - self.share.low < _UNDETERMINED


def excludes_zero(difference: Estimate) -> bool:
    """Return whether the interval excludes 0 and rests on enough seeds."""
    low, high = difference.low, difference.high
    return difference.n >= MIN_SEEDS and (low > _ROUNDING or high < -_ROUNDING)


def ranking(results: Results) -> list[RankedSetting]:
    """Return all settings with a scored run, the best first.

    Settings are ranked by each of `RANKED` (ties share their mean rank), then by the mean of these
    ranks; equal means are ordered by coverage. A setting ties with the first one unless one of
    these metrics is significantly worse, by `paired_intervals` over seeds. As any setting may be
    the first by its luck, the intervals hold for all pairs of settings and all metrics together.
    """
    tally = Counter((t.levels, results.get(t).status) for t in results.plan.trials)
    scored = {s: tally[s, "finished"] + tally[s, "diverged"] for s in results.plan.settings}
    settings = [setting for setting, count in scored.items() if count > 0]
    runs = {metric: _by_setting(results, metric, settings) for metric in (*RANKED, *SHOWN)}
    ranks = _mean_ranks(runs, len(settings))
    order = np.lexsort((-_nanmean(runs["coverage"].T), ranks))  # nan is last
    worse = _worse_than_first({metric: runs[metric][order] for metric in RANKED})
    return [
        RankedSetting(
            settings[i],
            {m: _mean(m, v[i]) for m, v in runs.items() if np.isfinite(v[i]).any()},
            scored[settings[i]],
            tally[settings[i], "diverged"],
            tally[settings[i], "failed"],
            float(ranks[i]),
            bool(i == order[0] or (ranks[i] > 0 and not is_worse)),
        )
        for i, is_worse in zip(order, worse, strict=True)
    ]


def _by_setting(results: Results, metric: str, settings: Sequence[tuple[str, ...]]) -> Array:
    """Return a metric as (settings, seeds), nan where unknown."""
    values, axes = results.array(metric), results.plan.axes
    indices = [
        tuple(axis.labels.index(label) for axis, label in zip(axes, setting, strict=True))
        for setting in settings
    ]
    return np.array([values[index] for index in indices]).reshape(len(settings), values.shape[-1])


def _mean_ranks(runs: dict[str, Array], settings: int) -> Array:
    ranks = [
        rankdata(_nanmean(runs[metric].T) * (1 if better == "lower" else -1), nan_policy="omit")
        for metric, better in RANKED.items()
        if np.isfinite(runs[metric]).any()
    ]
    return _nanmean(np.array(ranks).reshape(len(ranks), settings))


def _nanmean(values: Array) -> Array:
    """Return the mean over the first axis; nan, without a warning, where no value is known."""
    known = np.isfinite(values)
    count = known.sum(0)
    return np.where(count, np.where(known, values, 0).sum(0) / np.maximum(count, 1), math.nan)


def _mean(metric: str, values: Array) -> Estimate:
    """Return the mean over seeds, its interval clipped to the range of the metric."""
    e = replicate_interval(list(values[np.isfinite(values)]))
    low, high = METRICS_BY_NAME[metric].range if metric in METRICS_BY_NAME else (0.0, math.inf)
    return Estimate(e.value, max(low, e.low), min(high, e.high), e.n)


def _worse_than_first(runs: dict[str, Array]) -> NDArray[np.bool_]:
    """Return which settings are significantly worse than the first by any metric, (settings,)."""
    settings = len(next(iter(runs.values())))
    first, second = np.triu_indices(settings, 1)  # pairs with the first setting lead
    level = confidence(RANKING_ALPHA, ranking_comparisons(settings))
    worse = np.zeros(settings, bool)
    for metric, values in runs.items():
        gaps = (values[first] - values[second]) * (1 if RANKED[metric] == "higher" else -1)
        mean, half, seeds = paired_intervals(gaps, level)
        exceeds = (mean - half > _ROUNDING) & (seeds >= MIN_SEEDS)
        worse[1:] |= exceeds[: max(0, settings - 1)]
    return worse


def compare(
    results: Results,
    axes: Sequence[tuple[int, int | None]],
    *,
    alpha: float = LEVELS_ALPHA,
) -> list[Difference]:
    """Return the differences in `COMPARED` between all pairs of levels of some axes, as one family.

    Differences are taken between runs of the same seed with the same levels of all other axes,
    averaged within each seed, and given `paired_intervals` over seeds, Bonferroni over all that are
    returned: the probability that any of these intervals misses is at most `alpha`.

    Args:
        results: Results of the sweep.
        axes: Indices of axes in the plan. If the second one is not None, levels of the first axis
            are compared at each level of the second one separately.
        alpha: Probability of any false claim.
    """
    groups = [
        (metric, axis, at, gaps)
        for axis, within in axes
        for metric in COMPARED
        for at, gaps in _level_gaps(results, metric, axis, within)
    ]
    level = confidence(alpha, sum(len(gaps) for *_, gaps in groups))
    return [
        difference
        for metric, axis, at, gaps in groups
        for difference in _differences(results.plan.axes[axis], gaps, metric, level, at)
    ]


def _level_gaps(
    results: Results, metric: str, axis: int, within: int | None
) -> Iterator[tuple[str, dict[tuple[int, int], Array]]]:
    """Yield levels of the axis `within`, with the known differences of each pair of levels."""
    values, axes = results.array(metric), results.plan.axes
    parts = {"": values}
    if within is not None:
        parts = {at: values.take([i], within) for i, at in enumerate(axes[within].labels)}
    for at, part in parts.items():
        levels = np.moveaxis(part, axis, 0).reshape(part.shape[axis], -1, part.shape[-1])
        pairs = combinations(range(len(levels)), 2)
        gaps = {(i, j): _nanmean(levels[i] - levels[j]) for i, j in pairs}
        known = {pair: gap for pair, gap in gaps.items() if np.isfinite(gap).any()}
        if known:
            yield at, known


def _differences(
    axis: Axis, gaps: dict[tuple[int, int], Array], metric: str, level: float, at: str
) -> Iterator[Difference]:
    columns = (column.tolist() for column in paired_intervals(np.array([*gaps.values()]), level))
    for (i, j), mean, half, seeds in zip(gaps, *columns, strict=True):
        value = Estimate(mean, mean - half, mean + half, seeds)
        yield Difference(axis.name, axis.labels[i], axis.labels[j], metric, value, level, at)


def anova(results: Results, metric: str) -> list[Effect]:
    """Return the part of a metric's variance due to each axis, each pair of axes, and the seeds.

    Type II sums of squares by least squares: an effect is what its columns explain beyond all terms
    that do not contain it. For a balanced design this is the classical decomposition, whose parts
    add up to 1. Axes of one level have no effect and are left out. Without any variance the result
    is empty.

    Intervals are a jackknife that leaves out one seed at a time. Intervals of the noncentral F
    would need equal variances and independent runs; but collapsed settings have no variance, and
    all settings share their seeds. eta squared is biased by the noise it contains, so the jackknife
    also shifts the interval by that bias. In simulated 4 x 3 sweeps with 3, 5 and 10 seeds (normal
    noise, two camps, unequal spread), 92 % to 96 % of the 95 % intervals held a share of two thirds
    or a tenth, and 87 % to 94 % that of the seeds; with heavy tails (t, 3 df) 86 % to 94 %, and
    79 % to 80 %. The intervals of effects that do not exist lie above 0 in at most 5 %.
    `tests/benchmarks/studies.py` has the simulation.

    With fewer than `MIN_SEEDS` seeds nothing can be said, and the result is empty.
    """
    values, axes = results.array(metric), results.plan.axes
    known = np.isfinite(values)
    runs = known.sum(tuple(range(len(axes))))
    seeds = np.flatnonzero(runs)
    if len(seeds) < MIN_SEEDS or np.ptp(values[known]) <= _ROUNDING:
        return []
    levels = np.argwhere(known)[:, :-1]
    used = [i for i in range(len(axes)) if len(np.unique(levels[:, i])) > 1]
    terms = [(i,) for i in used] + list(combinations(used, 2))
    names = [tuple(axes[i].name for i in term) for term in terms] + [HIGHER, RESIDUAL]
    eta2 = _shares(values, terms)
    without = np.array([_shares(np.delete(values, seed, -1), terms) for seed in seeds])
    shares = _jackknife(eta2, without, runs[seeds])
    effects = [Effect(*effect) for effect in zip(names, eta2.tolist(), shares, strict=True)]
    return [e for e in effects if e.factors != HIGHER or len(used) > 2]


def _shares(runs: Array, terms: Sequence[tuple[int, ...]]) -> Array:
    """Return eta squared of each term, of all higher interactions, and of the seeds.

    Args:
        runs: A metric, float64 (axis 1, ..., seeds), nan where unknown.
        terms: Indices of one or two axes each.
    """
    known = np.isfinite(runs)
    counts = known.sum(-1)
    means = _nanmean(np.moveaxis(runs, -1, 0))
    within = float(np.where(known, (runs - means[..., None]) ** 2, 0).sum())
    settings, weights = np.argwhere(counts > 0), np.sqrt(counts[counts > 0])
    values = weights * means[counts > 0]
    indicators = {term: weights[:, None] * _indicators(settings[:, term]) for term in [(), *terms]}

    def unexplained(model: Sequence[tuple[int, ...]]) -> float:
        columns = np.hstack([indicators[term] for term in [(), *model]])
        fit = columns @ np.linalg.lstsq(columns, values)[0]
        return float(((values - fit) ** 2).sum())

    squares = []
    for term in terms:
        others = [other for other in terms if not set(term) <= set(other)]
        squares.append(unexplained(others) - unexplained([*others, term]))
    total = unexplained([]) + within
    parts = np.maximum([*squares, unexplained(terms), within], 0)
    return parts / (total if total > _ROUNDING**2 else math.nan)


def _indicators(settings: NDArray[np.int64]) -> Array:
    """Return (settings, factors) one-hot as (settings, combinations of levels)."""
    if not settings.shape[1]:
        return np.ones((len(settings), 1))
    different, which = np.unique(settings, axis=0, return_inverse=True)
    return np.eye(len(different))[which.ravel()]


def _jackknife(values: Array, without: Array, sizes: NDArray[np.int64]) -> list[Estimate]:
    """Return shares less their bias, with intervals over seeds of different numbers of runs.

    The delete-m jackknife of Busing, Meijer and van der Leeden 1999; Tukey's for equal sizes.

    Args:
        values: Shares of all runs, (T,).
        without: Shares without each seed, (seeds, T).
        sizes: Runs of each seed, (seeds,).
    """
    n = len(sizes)
    if not np.isfinite(without).all():
        return [Estimate(value, 0.0, 1.0, n) for value in values.tolist()]
    times = (sizes.sum() / sizes)[:, None]
    pseudo = times * values - (times - 1) * without
    center = (pseudo / times).sum(0)
    error = np.sqrt(((pseudo - center) ** 2 / (times - 1)).sum(0) / n)
    reach = stdtrit(n - 1, 0.975) * error
    ends = np.clip([center, center - reach, center + reach], 0, 1)
    return [Estimate(value, low, high, n) for value, low, high in ends.T.tolist()]
