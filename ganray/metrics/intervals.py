"""How sure a number is: the interval that goes with every metric.

Three sources of doubt need three tools. Which samples were drawn: `bootstrap_counts` for what
is computed from counts alone, `bootstrap` for other smooth statistics, `share_interval` for a
share. The same, but through nearest neighbours: the `*_halves`, since a bootstrap is wrong there.
Which `rng_seed` a training started from: `replicate_interval`. Only the last tells whether one
setting beats another; the others tell whether n was large enough.

The interval is one for *the metric's expectation at this n*. Metrics biased by n (KL, number of
modes, recall) compare with a floor measured at the same n, never with the interval at another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit
from scipy.stats import binomtest

from ganray.metrics.frechet import Moments, kid
from ganray.metrics.matrices import TIE, blocks, check_features, squared_distances
from ganray.metrics.precision_recall import Manifold

Sample = NDArray[Any] | torch.Tensor
"""(n, ...): one row for each thing drawn independently (an image, its features, a pair)."""

_NOTHING = 1e-12
"""Smaller than any difference that is more than rounding."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; `str` shows the digits, up to 4, that the interval can bear."""

    value: float
    low: float
    """Lower end of the interval; -inf if nothing bounds it."""
    high: float
    """Upper end of the interval; inf if nothing bounds it."""
    n: int
    """How many independent things it rests on: samples, or replicates."""

    def __str__(self) -> str:
        return f"{self.brief()}, n={self.n:,}"

    def brief(self) -> str:
        """As `str`, without n."""
        width = self.high - self.low
        if max(abs(self.value), width) < _NOTHING:
            return "0 [0, 0]"
        if _NOTHING < width < math.inf:
            # The last digit moves at least 5 times within the interval, and at most 50.
            digits = max(0, math.ceil(math.log10(5 / width)))
            if self.value:
                digits = min(digits, max(0, 3 - math.floor(math.log10(abs(self.value)))))
        elif self.value and math.isfinite(self.value):
            digits = max(0, 2 - math.floor(math.log10(abs(self.value))))  # 3 figures
        else:
            digits = 0
        value, low, high = (f"{x:,.{digits}f}" for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


def bootstrap_counts(
    statistic: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    counts: ArrayLike,
    *,
    rng_seed: int,
    resamples: int = 1000,
    level: float = 0.95,
    centred: bool = True,
) -> Estimate:
    """Bootstrap of what depends on the samples through their counts: KL, modes, NDB, shares.

    Drawing n samples again with replacement gives multinomial counts, so no sample is touched:
    200 resamples of 26,000 samples take 0.2 ms over 10 bins and 60 ms over 1000.

    Resampling adds the metric's bias a second time: 26,000 perfect samples of 1000 modes have
    KL .019 and resamples of them .038. The percentile interval then holds neither the value nor
    the expectation (0 of 60 simulated ones did). So by default it is moved back, by the value
    minus the replicates' mean. Simulated, 87 % to 100 % of the moved intervals hold, of KL and of
    the number of modes alike; 100 % for nearly equal shares, where they are 1.7 times too wide.

    Trap: a bin that was never hit is never hit again. Where all samples are in one bin the
    interval is a point; use `share_interval` to say what share of others may have been missed.

    Args:
        statistic: int64 (..., K) -> (...), over the last axis.
        counts: Whole numbers (K,), not negative; n is their sum.
        rng_seed: Makes the resamples repeatable.
        resamples: Number of replicates, at least 2.
        level: Probability that the interval means to hold, in (0, 1).
        centred: Move the interval as told above; False is the percentile interval of Efron 1979,
            the same for unbiased statistics such as a share.

    Raises:
        ValueError: The arguments break the rules above.
    """
    _refuse_plan(resamples, level)
    given = np.asarray(counts)
    if given.ndim != 1 or given.sum() < 1 or given.min() < 0 or (given != np.rint(given)).any():
        raise ValueError(
            f"counts: shape {given.shape}, sum {given.sum()}; must be whole numbers (K,), none "
            "negative, with a sum of at least 1; hand over how many samples fell into each bin"
        )
    held = given.astype(np.int64)
    n = int(held.sum())
    drawn = np.random.default_rng(rng_seed).multinomial(n, held / n, size=resamples)
    value = float(statistic(held))
    return interval_from_replicates(value, np.asarray(statistic(drawn)), n, level, centred)


def bootstrap(
    statistic: Callable[..., float],
    *samples: Sample,
    rng_seed: int,
    resamples: int = 1000,
    level: float = 0.95,
    centred: bool = True,
) -> Estimate:
    """Bootstrap of a smooth statistic of samples: a mean, a median, a ratio of means.

    Wrong for all that looks at nearest neighbours or at equal samples (precision, recall,
    density, coverage, the birthday test; Vendi score and effective rank unless n is far above the
    number of features): a resample holds a sample 0, 1, 2 ... times, copies are neighbours at
    distance 0, so radii shrink and duplicates appear that nobody drew. Use the `*_halves` there.

    Args:
        statistic: (*samples) -> a number.
        samples: Each (n, ...); several are resampled each on its own. Pass only what is drawn
            anew in thought: a fixed reference set belongs into `statistic`.
        rng_seed: As `bootstrap_counts`.
        resamples: As `bootstrap_counts`.
        level: As `bootstrap_counts`.
        centred: As `bootstrap_counts`.

    Returns:
        The estimate; its n is that of the first sample.

    Raises:
        ValueError: As `bootstrap_counts`, or a sample is empty.
    """
    _refuse_plan(resamples, level)
    _refuse_samples(samples, 1)
    rng = np.random.default_rng(rng_seed)
    replicates = [
        float(statistic(*(sample[rng.integers(0, len(sample), len(sample))] for sample in samples)))
        for _ in range(resamples)
    ]
    value = float(statistic(*samples))
    return interval_from_replicates(value, np.array(replicates), len(samples[0]), level, centred)


def replicate_interval(values: Sequence[float], *, level: float = 0.95) -> Estimate:
    """Mean over runs that differ in `rng_seed` alone, with Student's t-interval.

    What a comparison of settings rests on: a run either collapses or not, so the spread between
    seeds dwarfs that within a run. With 2 runs the interval is 12.7 standard errors wide each
    way, with 5 it is 2.8. One run says nothing of the spread: its interval is without ends.

    Trap: runs that fall into two camps (1 or 10 modes) are not normal; show the values too.

    Args:
        values: (n,) one number a run, all finite, at least one.
        level: Probability that the interval means to hold, in (0, 1).

    Raises:
        ValueError: There is no value, or one is not finite.
    """
    _refuse_plan(2, level)
    runs = np.asarray(values, dtype=np.float64)
    if runs.ndim != 1 or not runs.size or not np.isfinite(runs).all():
        raise ValueError(
            f"values={list(values)}: must be finite numbers, at least one; count runs that "
            "diverged apart from the mean, and say how many"
        )
    n, mean = len(runs), float(runs.mean())
    if n == 1:
        return Estimate(mean, -math.inf, math.inf, 1)
    reach = float(stdtrit(n - 1, (1 + level) / 2) * runs.std(ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - reach, mean + reach, n)


def share_interval(hits: int, n: int, *, level: float = 0.95) -> Estimate:
    """A share hits / n with the exact interval of Clopper and Pearson 1934.

    Holds its level at 0 and n hits too, where a bootstrap would be sure of itself: no hit among
    n leaves room for a share of 3.7 / n.

    Raises:
        ValueError: hits is not in [0, n], or n is below 1.
    """
    _refuse_plan(2, level)
    if not 0 <= hits <= n or n < 1:
        raise ValueError(f"hits={hits} of n={n}: must be in [0, n] with n >= 1; count both anew")
    interval = binomtest(hits, n).proportion_ci(level, method="exact")
    return Estimate(hits / n, float(interval.low), float(interval.high), n)


def interval_from_replicates(
    value: float,
    replicates: NDArray[np.float64],
    n: int,
    level: float = 0.95,
    centred: bool = True,
) -> Estimate:
    """The interval of a value by replicates (R,) of the caller's own; the rest as `bootstrap`."""
    tail = (1 - level) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    moved = value - replicates.mean() if centred else 0.0
    return Estimate(value, float(low + moved), float(high + moved), n)


def _refuse_plan(resamples: int, level: float) -> None:
    if resamples < 2:
        raise ValueError(f"resamples={resamples}: must be at least 2; 1000 make steady intervals")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: must be between 0 and 1, both excluded; try 0.95")


def _refuse_samples(samples: tuple[Sample, ...], least: int) -> None:
    sizes = [len(sample) for sample in samples]
    if not sizes or min(sizes) < least:
        raise ValueError(f"samples of {sizes} rows: each must have at least {least}; draw more")


# The scatter of random halves, many at once: the replicates behind the intervals of a report.

_REACH = 24
"""Neighbours of each fake to know. Its 3rd within a half lies beyond with chance 2e-5."""
_PARTS = 40
"""Of which a half takes 20, where sums of parts are all that a metric needs."""

Replicates = NDArray[np.float64]
"""(R,): the metric of each half."""


def half_sample_manifold(
    real: Manifold,
    fake: torch.Tensor,
    halves: int,
    *,
    rng_seed: int,
    precision_recall_k: int = 3,
    density_coverage_k: int = 5,
) -> dict[str, Replicates]:
    """``manifold.manifold_scores`` of random halves of the fakes, by the names of its fields.

    Args:
        real: Fit with k at least both of the k below.
        fake: float32 or float64 (m, d), finite, m at least 8, on the device of the reals.
        halves: R.
        rng_seed: Of the halves.
        precision_recall_k: As there.
        density_coverage_k: As there.

    Raises:
        ValueError: The fakes are not as above.
    """
    check_features("fake", fake, rows=8, like=real.features.shape[1])
    centre = real.features.double().mean(0)
    reals, fakes = real.features.double() - centre, fake.double() - centre
    in_half = _random_halves(len(fakes), halves, rng_seed, fake.device)
    radii, reach = _radii(fakes, in_half, precision_recall_k)
    precise = torch.zeros(len(fakes), dtype=torch.bool, device=fake.device)
    held = torch.zeros(len(fakes), dtype=torch.int64, device=fake.device)
    recalled = torch.zeros(halves, dtype=torch.int64, device=fake.device)
    covered = torch.zeros_like(recalled)
    closed = real.nearest[:, precision_recall_k - 1, None] * (1 + TIE)
    opened = real.nearest[:, density_coverage_k - 1, None] * (1 - TIE)
    for rows in blocks(len(reals), len(fakes)):
        squares = squared_distances(reals[rows], fakes)
        precise |= (squares <= closed[rows]).any(0)
        inside = squares < opened[rows]
        held += inside.sum(0)
        row, fakes_met = inside.nonzero().T
        row_near, fakes_near = (squares <= reach).nonzero().T
        far = squares[row_near, fakes_near]
        for i, half in enumerate(in_half):
            covered[i] += _distinct(row[half[fakes_met]], len(squares))
            in_ball = half[fakes_near] & (far <= radii[i][fakes_near])
            recalled[i] += _distinct(row_near[in_ball], len(squares))
    weights = in_half.double() / in_half.sum(1, keepdim=True)
    found = {
        "precision": weights @ precise.double(),
        "recall": recalled.double() / len(reals),
        "density": weights @ held.double() / density_coverage_k,
        "coverage": covered.double() / len(reals),
    }
    return {name: values.cpu().numpy() for name, values in found.items()}


def half_sample_moments(
    statistic: Callable[[Moments], float], rows: torch.Tensor, halves: int, *, rng_seed: int
) -> Replicates:
    """A statistic of the moments of random halves of the rows (n, d): Vendi, rank, Frechet.

    A half is 20 of 40 random parts, whose moments are merged.
    """
    parts = [Moments.of(rows[part]) for part in _parts(len(rows), rng_seed)]
    found = []
    for chosen in _random_halves(len(parts), halves, rng_seed).numpy():
        whole = Moments.none(rows.shape[1], rows.device)
        for part, taken in zip(parts, chosen, strict=True):
            whole = whole.merge(part) if taken else whole
        found.append(statistic(whole))
    return np.array(found)


def half_sample_kid(
    real: torch.Tensor, fake: torch.Tensor, halves: int, *, rng_seed: int
) -> Replicates:
    """``frechet.kid`` of random halves of the fakes (m, d) against all reals (n, d)."""
    x, y = real.double(), fake.double()
    groups = [y[part] for part in _parts(len(y), rng_seed)]
    sizes = y.new_tensor([len(group) for group in groups])
    own = torch.stack([((group.square().mean(1) + 1) ** 3).sum() for group in groups])
    across = torch.stack([_sums(group, groups) for group in groups])
    to_real = sum(
        (_sums(x[rows], groups) for rows in blocks(len(x), len(y))), torch.zeros_like(own)
    )
    # The reals against each other: from kid's own sum, all fakes being all groups.
    taken = _random_halves(len(groups), halves + 1, rng_seed).to(y)
    taken[0] = 1
    m = taken @ sizes
    among = ((taken @ across) * taken).sum(1) - taken @ own
    of_fakes = among / (m * (m - 1)) - 2 * (taken @ to_real) / (len(x) * m)
    return (kid(real, fake) + of_fakes[1:] - of_fakes[0]).cpu().numpy()


def _random_halves(
    count: int, halves: int, rng_seed: int, device: torch.device | None = None
) -> torch.Tensor:
    """Bool (halves, count), count // 2 of each row true."""
    rng = np.random.default_rng(rng_seed)
    chosen = np.zeros((halves, count), np.bool_)
    for row in chosen:
        row[rng.permutation(count)[: count // 2]] = True
    return torch.from_numpy(chosen).to(device)


def _parts(count: int, rng_seed: int) -> list[torch.Tensor]:
    """Row numbers of nearly equal random parts."""
    order = np.random.default_rng(rng_seed).permutation(count)
    return [torch.from_numpy(part) for part in np.array_split(order, min(_PARTS, count // 4))]


def _radii(fakes: torch.Tensor, in_half: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Closed squared radii of the fakes' balls: (R, m) in each half, and (m,) the largest known."""
    reach = min(_REACH, len(fakes) - 1)
    # Made before: small tensors that stay would lie where a block was, so that the next does not
    # fit there.
    distances = fakes.new_empty(len(fakes), reach)
    neighbours = distances.new_empty(distances.shape, dtype=torch.int64)
    for rows in blocks(len(fakes), len(fakes)):
        squares = squared_distances(fakes[rows], fakes)
        squares.diagonal(rows.start).fill_(-1)  # itself comes first, before any duplicate
        found = squares.topk(reach + 1, largest=False)
        distances[rows] = found.values[:, 1:] * (1 + TIE)
        neighbours[rows] = found.indices[:, 1:]
    radii = torch.empty(in_half.shape, dtype=distances.dtype, device=distances.device)
    for radius, half in zip(radii, in_half, strict=True):
        nearer = (half[neighbours].cumsum(1) < k).sum(1, keepdim=True)
        radius[:] = distances.gather(1, nearer.clamp_max(distances.shape[1] - 1))[:, 0]
    return radii, distances[:, -1]


def _distinct(rows: torch.Tensor, count: int) -> torch.Tensor:
    """How many of `count` rows are named at least once in int64 (p,)."""
    met = torch.zeros(count, dtype=torch.bool, device=rows.device)
    met[rows] = True
    return met.sum()


def _sums(x: torch.Tensor, groups: list[torch.Tensor]) -> torch.Tensor:
    """Sum of the kernel of x's rows with those of each group, (g,)."""
    return torch.stack([_kernel(x, group).sum() for group in groups])


def _kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x @ y.T).div_(x.shape[1]).add_(1).pow_(3)
