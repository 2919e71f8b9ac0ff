"""Which settings differ, and what the seeds allow to say of it. Pure; reads `Results` alone.

The unit of replication is the *seed*: runs of one seed share their luck, in all cells. So levels
are compared within each seed, and every interval is one over seeds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit
from scipy.stats import rankdata, ttest_ind

from ganray.metrics.intervals import Estimate, replicate_interval
from ganray.sweeps.results import RANKED, SHOWN, Results

Array = NDArray[np.float64]

FEWEST_SEEDS = 3
"""That a difference needs to be supported: two that agree may do so by luck."""
RESIDUAL, HIGHER = ("seeds",), ("higher interactions",)
"""Names of `Effect`s that are not of one axis or two."""
_ALPHA = 0.05
_MOST = {"recall": 1.0, "coverage": 1.0, "precision": 1.0, "sure_share": 1.0}
_TINY = 1e-9
"""What rounding may leave of 0."""


@dataclass(frozen=True)
class Row:
    """A cell, and how it fared."""

    levels: tuple[str, ...]
    """A label for each axis."""
    means: dict[str, Estimate]
    """Over seeds, by the names of `RANKED` and `SHOWN`, those that are known. `half_life_kimg` is
    that of runs which collapsed; its n tells how many did."""
    n: int
    """Runs that count, those that diverged among them."""
    diverged: int
    failed: int
    """Runs that crashed; no mean has them."""
    rank: float
    """Mean over `RANKED` of the cell's rank, from 1; nan if it has none of them."""
    best_tied: bool
    """Whether it is the first cell, or cannot be told from it."""


@dataclass(frozen=True)
class Difference:
    """One level of an axis against another, all else being equal."""

    axis: str
    a: str
    b: str
    metric: str
    value: Estimate
    """Of a minus b; n is in seeds."""
    level: float
    """Of the interval: 95 % for all pairs together."""
    at: str = ""
    """The level of another axis at which they are compared; "" is all of them."""

    @property
    def supported(self) -> bool:
        """Whether the interval excludes 0, and enough seeds were there to trust it."""
        return excludes_zero(self.value)

    def turned(self) -> Difference:
        """The same, as b minus a."""
        v = self.value
        value = Estimate(-v.value, -v.high, -v.low, v.n)
        return Difference(self.axis, self.b, self.a, self.metric, value, self.level, self.at)


@dataclass(frozen=True)
class Effect:
    """What explains a part of a metric's variance over all runs."""

    factors: tuple[str, ...]
    """Names of one axis or two, or `HIGHER`, or `RESIDUAL`."""
    eta2: float
    """SS of the effect / SS in all, of these runs; too high, as noise explains things, too."""
    share: Estimate
    """The same less that bias; n is in seeds. Never to be quoted without its interval."""


def excludes_zero(difference: Estimate) -> bool:
    """Whether so many replicates tell the difference from 0."""
    low, high = difference.low, difference.high
    return difference.n >= FEWEST_SEEDS and (low > _TINY or high < -_TINY)


def ranking(results: Results) -> list[Row]:
    """All cells that have a run that counts, the best first.

    Cells are ranked by each of `RANKED` (ties share their mean rank), and by the mean of these
    ranks. A cell is not told from the first unless one of these metrics shows it worse, by an
    interval over the seeds of both (Welch's, if they share fewer than 3) that excludes 0.
    Intervals are widened by Bonferroni over all metrics and all cells but one. This suffices
    although the first is picked by its results: a cell that in truth is as good as any, by each of
    these metrics, falls to whichever of the others in 1 of 40 studies at most. (Simulated with 12
    cells that are alike, 2 % or fewer fell; but of runs in two camps with 3 seeds, 8 %.)
    """
    tally = Counter((t.levels, results.get(t).status) for t in results.plan.trials)
    cells = [
        cell
        for cell in results.plan.settings
        if tally[cell, "finished"] + tally[cell, "diverged"] > 0
    ]
    runs = {metric: _by_cell(results, metric, cells) for metric in (*RANKED, *SHOWN)}
    ranks = _mean_ranks(runs, len(cells))
    order = sorted(range(len(cells)), key=lambda i: (math.isnan(ranks[i]), ranks[i]))
    return [
        Row(
            cells[i],
            {m: _mean(m, v[i]) for m, v in runs.items() if np.isfinite(v[i]).any()},
            tally[cells[i], "finished"] + tally[cells[i], "diverged"],
            tally[cells[i], "diverged"],
            tally[cells[i], "failed"],
            float(ranks[i]),
            bool(i == order[0] or (ranks[i] > 0 and not _worse(runs, i, order[0], len(cells)))),
        )
        for i in order
    ]


def _by_cell(results: Results, metric: str, cells: Sequence[tuple[str, ...]]) -> Array:
    """A metric's values: (cells, replicates), nan where there is none."""
    found, axes = results.array(metric), results.plan.axes
    places = [[a.labels.index(label) for a, label in zip(axes, c, strict=True)] for c in cells]
    return np.array([found[tuple(place)] for place in places]).reshape(len(cells), found.shape[-1])


def _mean_ranks(runs: dict[str, Array], cells: int) -> Array:
    ranks = [
        rankdata(_nanmean(runs[metric].T) * (1 if better == "lower" else -1), nan_policy="omit")
        for metric, better in RANKED.items()
        if np.isfinite(runs[metric]).any()
    ]
    return _nanmean(np.array(ranks).reshape(len(ranks), cells))


def _nanmean(values: Array) -> Array:
    """Over the first axis; nan, without a word, where there is no value."""
    known = np.isfinite(values)
    count = known.sum(0)
    return np.where(count, np.where(known, values, 0).sum(0) / np.maximum(count, 1), math.nan)


def _mean(metric: str, values: Array) -> Estimate:
    """Without the part of the interval that no value of the metric could have."""
    e = replicate_interval(list(values[np.isfinite(values)]))
    least = -math.inf if metric == "kl_corrected" else 0.0
    return Estimate(e.value, max(least, e.low), min(_MOST.get(metric, math.inf), e.high), e.n)


def _worse(runs: dict[str, Array], cell: int, best: int, cells: int) -> bool:
    level = 1 - _ALPHA / (len(RANKED) * (cells - 1))
    for metric, better in RANKED.items():
        gap = _gap(runs[metric][best], runs[metric][cell], level)
        if excludes_zero(gap) and (gap.value > 0) == (better == "higher"):
            return True
    return False


def _gap(a: Array, b: Array, level: float) -> Estimate:
    """Mean of a minus b, paired where both are known."""
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() >= FEWEST_SEEDS:
        return replicate_interval(list((a - b)[both]), level=level)
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    n = min(len(a), len(b))
    if n < FEWEST_SEEDS:
        return Estimate(math.nan, -math.inf, math.inf, n)
    value = float(a.mean() - b.mean())
    if np.ptp(a) == np.ptp(b) == 0:
        return Estimate(value, value, value, n)
    ends = ttest_ind(a, b, equal_var=False).confidence_interval(level)
    return Estimate(value, float(ends.low), float(ends.high), n)


def compare(
    results: Results, metric: str, axis_index: int, *, within: int | None = None
) -> list[Difference]:
    """Each pair of levels of an axis, where both have runs.

    Differences are taken where both have a run of the same seed with the same levels of all other
    axes, averaged within each seed, and given Student's interval over seeds. Bonferroni over the
    pairs of the axis, so that 95 % of studies have all their intervals right.

    Trap: runs that fall into two camps. Simulated with 4 levels that are alike, of one cell each,
    14 % of studies of 3 seeds supported a difference, of 5 or 10 seeds 4 % or fewer.

    Args:
        results: of the study.
        metric: of `RANKED` or `SHOWN`.
        axis_index: of the axis.
        within: another axis: compare at each of its levels on its own; all these intervals are
            right together.
    """
    found, axes = results.array(metric), results.plan.axes
    axis = axes[axis_index]
    pairs = list(combinations(range(len(axis.levels)), 2))
    parts = {"": found}
    if within is not None:
        parts = {at: found.take([i], within) for i, at in enumerate(axes[within].labels)}
    level = 1 - _ALPHA / max(1, len(pairs) * len(parts))
    differences = []
    for at, part in parts.items():
        for i, j in pairs:
            gaps = part.take(i, axis_index) - part.take(j, axis_index)
            by_seed = _nanmean(gaps.reshape(-1, gaps.shape[-1]))
            by_seed = by_seed[np.isfinite(by_seed)]
            if by_seed.size:
                value = replicate_interval(list(by_seed), level=level)
                a, b = axis.labels[i], axis.labels[j]
                differences.append(Difference(axis.name, a, b, metric, value, level, at))
    return differences


def anova(results: Results, metric: str) -> list[Effect]:
    """What part of a metric's variance is due to each axis, to each two together, and to luck.

    Type II sums of squares, by least squares: each effect is what its columns explain beyond all
    terms that do not contain it. Where cells are balanced this is the classical decomposition,
    whose parts add up to 1. Axes of one level have no effect and are left out; so is all, where
    there is no variance.

    Intervals are a jackknife that leaves out one seed at a time. Those of the noncentral F would
    need cells of one variance and runs that are independent; cells that collapsed have none, and a
    seed is shared by all cells. eta squared is biased by the noise it contains, and the interval
    has to be moved by that bias, too: of simulated 4 x 3 studies with 3, 5 and 10 seeds, with even
    noise, noise by seed, collapsed cells, and runs in two camps, 90 % to 100 % of the 95 %
    intervals held the truth of an effect and 86 % to 100 % that of the seeds; where they were not
    moved, as few as 74 %. Of effects that are none, 2 % or fewer had an interval above 0.

    With fewer than 3 seeds shares are eta squared itself, and may be anything from 0 to 1.
    """
    found, axes = results.array(metric), results.plan.axes
    known = np.isfinite(found)
    if not known.any() or np.ptp(found[known]) <= _TINY:
        return []
    has = np.argwhere(known)[:, :-1]
    used = [i for i in range(len(axes)) if len(np.unique(has[:, i])) > 1]
    terms = [(i,) for i in used] + list(combinations(used, 2))
    names = [tuple(axes[i].name for i in term) for term in terms] + [HIGHER, RESIDUAL]
    eta2 = _shares(found, terms)
    runs = known.sum(tuple(range(len(axes))))
    seeds = np.flatnonzero(runs)
    without = np.array([_shares(np.delete(found, seed, -1), terms) for seed in seeds])
    shares = _jackknife(eta2, without, runs[seeds])
    effects = [Effect(*one) for one in zip(names, eta2.tolist(), shares, strict=True)]
    return [e for e in effects if e.factors != HIGHER or len(used) > 2]


def _shares(found: Array, terms: Sequence[tuple[int, ...]]) -> Array:
    """Sums of squares over that in all: each term's, of higher interactions, between seeds."""
    known = np.isfinite(found)
    counts = known.sum(-1)
    means = _nanmean(np.moveaxis(found, -1, 0))
    within = float(np.where(known, (found - means[..., None]) ** 2, 0).sum())
    places, weights = np.argwhere(counts > 0), np.sqrt(counts[counts > 0])
    values = weights * means[counts > 0]

    def unexplained(model: Sequence[tuple[int, ...]]) -> float:
        columns = np.hstack([_indicators(places[:, term]) for term in [(), *model]])
        columns = columns * weights[:, None]
        fit = columns @ np.linalg.lstsq(columns, values)[0]
        return float(((values - fit) ** 2).sum())

    squares = []
    for term in terms:
        others = [other for other in terms if not set(term) <= set(other)]
        squares.append(unexplained(others) - unexplained([*others, term]))
    total = unexplained([]) + within
    parts = np.maximum([*squares, unexplained(terms), within], 0)
    return parts / (total if total > _TINY**2 else math.nan)


def _indicators(places: NDArray[np.int64]) -> Array:
    """(cells, factors) -> (cells, combinations of levels), 1 where the cell has it."""
    if not places.shape[1]:
        return np.ones((len(places), 1))
    different, which = np.unique(places, axis=0, return_inverse=True)
    return np.eye(len(different))[which.ravel()]


def _jackknife(values: Array, without: Array, sizes: NDArray[np.int64]) -> list[Estimate]:
    """Shares, less their bias, with intervals; of seeds that may hold different numbers of runs.

    The delete-m jackknife of Busing, Meijer and van der Leeden 1999; with equal sizes it is
    Tukey's. (T,) values, (seeds, T) values without each seed, (seeds,) runs.
    """
    n = len(sizes)
    if n < FEWEST_SEEDS or not np.isfinite(without).all():
        return [Estimate(value, 0.0, 1.0, n) for value in values.tolist()]
    times = (sizes.sum() / sizes)[:, None]
    pseudo = times * values - (times - 1) * without
    centre = (pseudo / times).sum(0)
    error = np.sqrt(((pseudo - centre) ** 2 / (times - 1)).sum(0) / n)
    reach = stdtrit(n - 1, 1 - _ALPHA / 2) * error
    ends = np.clip([centre, centre - reach, centre + reach], 0, 1)
    return [Estimate(value, low, high, n) for value, low, high in ends.T.tolist()]
