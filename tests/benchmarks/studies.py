"""False and true claims of simulated sweeps: ``python -m tests.benchmarks.studies``.

Prints how many sweeps in which nothing differs claim something, how often levels that differ are
found, and how well the shares of variance hold. Spreads are standard deviations of a run between
seeds; all metrics of a run share half of their variance.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from ganray.sweeps.analysis import anova, ranking
from ganray.sweeps.axes import Axis, Level
from ganray.sweeps.design import SweepPlan, make_plan
from ganray.sweeps.power import comparisons, smallest_difference
from ganray.sweeps.report import pairwise_differences
from ganray.sweeps.results import RANKED, Results, RunResult
from ganray.sweeps.summary import interactions

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]
"""Function from (rng, (metrics, axis 1, ..., seeds)) to noise of mean 0."""

GRID, SINGLE = (4, 3, 3), (4,)
"""Levels of the axes of the simulated sweeps."""
SEEDS = (3, 5, 10)


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return normal noise."""
    return _shared(rng.standard_normal, shape)


def heavy_tails(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return Student's t with 3 degrees of freedom."""
    return _shared(partial(rng.standard_t, 3), shape) / math.sqrt(3)


def two_camps(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return -1 or 1 for each run, in all metrics alike, and a tenth of that as noise."""
    return rng.choice([-1.0, 1.0], (1, *shape[1:])) + 0.1 * rng.standard_normal(shape)


def unequal_spread(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return normal noise, 40 times as wide at the last level of the first axis as at its first."""
    spread = np.geomspace(1, 40, shape[1])
    spread /= math.sqrt((spread**2).mean())
    return spread.reshape(-1, *[1] * (len(shape) - 2)) * normal(rng, shape)


def some_camps(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return two camps for every other setting, and hardly any noise for the others."""
    settings = np.arange(math.prod(shape[1:-1])).reshape(*shape[1:-1], 1) % 2 == 0
    return np.where(settings, two_camps(rng, shape), 0.1 * rng.standard_normal(shape))


def _shared(draw: Callable[..., Array], shape: tuple[int, ...]) -> Array:
    return (draw(size=(1, *shape[1:])) + draw(size=shape)) / math.sqrt(2)


NOISES: dict[str, Draw] = {
    "normal": normal,
    "heavy tails (t, 3 df)": heavy_tails,
    "two camps": two_camps,
    "spread 1 : 40 by level": unequal_spread,
    "half of the settings in two camps": some_camps,
}


@dataclass(frozen=True)
class Study(Results):
    """Finished sweep with given values."""

    values: Mapping[str, Array]
    """(axis 1, ..., seeds) by metric."""

    def array(self, metric: str) -> Array:
        """Return a metric of all runs."""
        return self.values.get(metric, np.full_like(self.values["coverage"], math.nan))


def study(noise: Array, effect: float = 0) -> Study:
    """Return a sweep with this noise (metrics, axis 1, ..., seeds).

    Level 0 of the first axis is better by `effect` in all metrics.
    """
    values = noise.copy()
    values[:, 0] += effect
    metrics = {
        name: values[i] if better == "higher" else -values[i]
        for i, (name, better) in enumerate(RANKED.items())
    }
    return Study(*finished(noise.shape[1:-1], noise.shape[-1]), metrics)


@cache
def finished(shape: tuple[int, ...], seeds: int) -> tuple[SweepPlan, dict[str, RunResult]]:
    """Return the plan of a sweep with so many levels of each axis, and its runs."""
    sections = ("latent.size", "optimizer.name", "loss.name")
    axes = [
        Axis(name, tuple(Level(f"{i}", {name: i}) for i in range(count)))
        for name, count in zip(sections, shape, strict=False)
    ]
    plan = make_plan("s", axes, seeds)
    return plan, {trial.name: RunResult("finished", {}) for trial in plan.trials}


def false_claims(results: Results, effect: float) -> tuple[bool, bool, bool]:
    """Return whether levels, settings, or, without an effect, interactions are falsely claimed."""
    effects = [] if effect else anova(results, "coverage")
    axis = results.plan.axes[0].name
    levels = any(
        d.significant and not d.at and not (effect and d.axis == axis and d.a == "0")
        for d in pairwise_differences(results, effects)
    )
    first, *others = ranking(results)
    worse = [row for row in others if not row.ties_best]
    settings = any(not effect or first.levels[0] != "0" or row.levels[0] == "0" for row in worse)
    return levels, settings, bool(interactions(effects))


def found(results: Results) -> tuple[float, float]:
    """Return the shares of true differences in coverage that are found, of levels and settings."""
    axis = results.plan.axes[0].name
    levels = [
        d.significant
        for d in pairwise_differences(results, [])
        if d.axis == axis and d.metric == "coverage" and d.a == "0"
    ]
    settings = [not row.ties_best for row in ranking(results) if row.levels[0] != "0"]
    return float(np.mean(levels)), float(np.mean(settings))


def draws(noise: Draw, shape: Sequence[int], seeds: int, studies: int) -> list[Array]:
    """Return the noise of so many sweeps, each of shape (metrics, axis 1, ..., seeds)."""
    size = (len(RANKED), *shape, seeds)
    return [noise(np.random.default_rng([seeds, *shape, i]), size) for i in range(studies)]


def false_table(studies: int) -> Iterator[str]:
    """Yield a Markdown table of the sweeps with a false claim in percent, by number of seeds."""
    yield from (
        f"| % of {studies:,} sweeps, with {', '.join(map(str, SEEDS))} seeds | axes | levels"
        " | ranking | any claim | beside an effect |",
        "|---|---|---|---|---|---|",
    )
    for name, noise in NOISES.items():
        for shape in (GRID, SINGLE):
            rows = []
            for seeds in SEEDS:
                noises = draws(noise, shape, seeds, studies)
                null = np.array([false_claims(study(values), 0) for values in noises])
                beside = np.array([false_claims(study(values, 3), 3) for values in noises])
                rows.append([*null.mean(0)[:2], null.any(1).mean(), beside.any(1).mean()])
            cells = [
                ", ".join(f"{100 * x:.1f}" for x in column) for column in zip(*rows, strict=True)
            ]
            yield f"| {name} | {_name(shape)} | {' | '.join(cells)} |"


def power_table(studies: int) -> Iterator[str]:
    """Yield a Markdown table of the power at the differences that ``--power`` prints."""
    yield from (
        f"| levels | seeds | 80 % by calculation at | found: {' | '.join(list(NOISES)[:4])} |",
        "|---|---|---|---|---|---|---|",
    )
    for shape in (GRID, SINGLE):
        for settings in (False, True):
            of_axis, *_, of_settings = comparisons([""] * len(shape), shape, math.prod(shape))
            comparison = of_settings if settings else of_axis
            for seeds in SEEDS:
                effect = smallest_difference(comparison, seeds, 1)
                cells = []
                for noise in list(NOISES.values())[:4]:
                    noises = draws(noise, shape, seeds, studies)
                    shares = [found(study(values, effect))[settings] for values in noises]
                    cells.append(f"{100 * np.mean(shares):.0f} %")
                what = f"{'settings' if settings else 'first axis'} of {_name(shape)}"
                yield f"| {what} | {seeds} | {effect:.2f} spreads | {' | '.join(cells)} |"


def variance_table(studies: int) -> Iterator[str]:
    """Yield a Markdown table of how often the intervals of shares hold the true share, in percent.

    The first axis explains two thirds of the variance, the second a tenth.
    """
    yield from (
        f"| % of {studies:,} sweeps, with {', '.join(map(str, SEEDS))} seeds | large share"
        " | small share | seeds |",
        "|---|---|---|---|",
    )
    shape = (4, 3)
    large, small = (np.linspace(-1, 1, count) for count in shape)
    means = math.sqrt(0.67 / 0.23 / large.var()) * large[:, None] + (
        math.sqrt(0.1 / 0.23 / small.var()) * small
    )
    truth = np.array([0.67, 0.1, 0.23])
    for name, noise in list(NOISES.items())[:4]:
        rows = []
        for seeds in SEEDS:
            held = []
            for values in draws(noise, shape, seeds, studies):
                effects = anova(study(means[..., None] + values), "coverage")
                shares = [e.share for e in effects if len(e.factors) == 1]
                held.append([s.low <= t <= s.high for s, t in zip(shares, truth, strict=True)])
            rows.append(np.mean(held, 0))
        cells = [", ".join(f"{100 * x:.0f}" for x in column) for column in zip(*rows, strict=True)]
        yield f"| {name} | {' | '.join(cells)} |"


def _name(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) + (" levels" if len(shape) == 1 else "")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=500)
    options = parser.parse_args()
    for table in (false_table, power_table, variance_table):
        for line in table(options.studies):
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
