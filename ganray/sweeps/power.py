"""Seeds that a sweep needs: what jobs/sweep.py --power prints. Imports no Torch and no Ray."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import pvariance
from typing import Any

from scipy.special import nctdtrinc, stdtrit

from ganray import log
from ganray.config.commands import SweepConfig
from ganray.config.schema import Config
from ganray.errors import UserError
from ganray.files import read_json
from ganray.sweeps import design
from ganray.sweeps.axes import DEFAULT_AXES, parse_axis
from ganray.sweeps.family import (
    COMPARED,
    FEW_SEEDS_CAVEAT,
    LEVELS_ALPHA,
    RANKING_ALPHA,
    confidence,
    count_comparisons,
    ranking_comparisons,
)

POWER = 0.8
"""Probability of finding the smallest difference."""
TYPICAL_SPREADS = {"coverage": 0.02, "recall": 0.04}
"""Standard deviations of runs between seeds where no sweep has measured them: those of the sweeps
on MNIST in tests/benchmarks/README.md. The faces of `cpu32` have 0.05 in coverage."""
_SEEDS = (3, 5, 10, 20)
_ENDED = ("finished", "diverged")
_REMEDY = "resume the sweep, which writes it again"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairFamily:
    """All pairs of some levels, or of all settings, that a sweep compares."""

    title: str
    levels: int
    """Number of levels or settings."""
    settings: float
    """Number of settings of each level, over which each seed is averaged."""
    alpha: float
    """Probability of a false claim about a single pair."""


def comparisons(titles: Sequence[str], levels: Sequence[int], settings: int) -> list[PairFamily]:
    """Return what a sweep compares: the levels of each axis, then all settings."""
    of_levels = 1 - confidence(LEVELS_ALPHA, count_comparisons(levels))
    of_settings = 1 - confidence(RANKING_ALPHA, ranking_comparisons(settings))
    found = [
        PairFamily(title, count, settings / count, of_levels)
        for title, count in zip(titles, levels, strict=True)
    ]
    found.append(PairFamily("single settings", settings, 1, of_settings))
    return [comparison for comparison in found if comparison.levels > 1]


def smallest_difference(comparison: PairFamily, seeds: int, spread: float) -> float:
    """Return the smallest difference that is found with a probability of 80 %.

    Student's noncentral t with the degrees of freedom that `paired_intervals` has on average if
    runs vary equally and independently, by the expected squares of a Wishart matrix. The larger of
    two variances exceeds the mean one by 0.4 of its standard deviation.

    Args:
        comparison: Levels or settings.
        seeds: Number of seeds, at least 2.
        spread: Standard deviation of the metric of a run between seeds.
    """
    free, others = seeds - 1, comparison.levels - 1
    df = free * (others * free + 2) / (free + others + 1)
    larger = 1 + 0.4 * math.sqrt(2 / free) if others > 1 else 1
    error = spread * math.sqrt(2 * larger / (comparison.settings * seeds))
    return error * float(nctdtrinc(df, 1 - POWER, stdtrit(df, 1 - comparison.alpha / 2)))


def log_power(config: Config, options: SweepConfig, read: Callable[[str, str], Any]) -> None:
    """Log the smallest differences that a sweep with these axes finds, by number of seeds.

    Args:
        config: Config that all runs have in common. Its name is that of a finished sweep, whose
            spreads are used; if empty, the newest one in the home.
        options: Axes and design.
        read: Parser of the values of a field.

    Raises:
        UserError: The axes are wrong, or there is no such sweep.
    """
    if options.design in ("tpe", "asha", "pbt"):
        raise UserError(
            f"sweep.design={options.design} compares no levels, so it has no power; use grid,"
            " random or sobol"
        )
    axes = [parse_axis(text, config, read) for text in options.axis or DEFAULT_AXES]
    plan = design.make_plan("power", axes, 1, design=options.design, settings=options.settings)
    counts = [len(axis.levels) for axis in axes]
    if len(plan.settings) == 1:
        names = ", ".join(axis.name for axis in axes)
        raise UserError(
            f"sweep.axis: {names} has one setting; nothing to compare; give more levels"
        )
    source, spreads = _spreads(config.home, config.name)
    rows = [["levels of", "metric", *(f"{seeds} seeds" for seeds in _SEEDS)]]
    for comparison in comparisons([axis.title for axis in axes], counts, len(plan.settings)):
        for metric, spread in spreads.items():
            found = [smallest_difference(comparison, seeds, spread) for seeds in _SEEDS]
            cells = [log.two_digits(x) if x < 1 else "-" for x in found]
            rows.append([comparison.title, metric, *cells])
    known = ", ".join(f"{metric} {log.two_digits(x)}" for metric, x in spreads.items())
    logger.info("smallest difference that is found with a probability of %.0f %%", 100 * POWER)
    logger.info(_aligned(rows))
    logger.info(
        log.wrap(
            f"Standard deviations between seeds: {known}, {source}. Single settings: another one"
            " and the first of the ranking. -: none, as these metrics lie in [0, 1]. If nothing"
            f" differs, about 5 % of sweeps at most claim a difference; {FEW_SEEDS_CAVEAT}."
        )
    )


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = log.columns() - sum(widths[1:]) - 2 * (len(widths) - 1)
    widths[0] = min(widths[0], max(10, room))
    lines = [
        "  ".join(
            entry[:width].ljust(width) if i < 2 else entry.rjust(width)
            for i, (entry, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(lines)


def _spreads(home: Path, name: str) -> tuple[str, Mapping[str, float]]:
    """Return where spreads come from, and the spread of each metric."""
    reports = home.glob(f"sweeps/{name or '*'}/report.json")
    for path in sorted(reports, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            spreads = measured_spreads(path.parent)
            preset = read_json(path.parent / "config.json", _REMEDY).get("preset", "unknown")
        except UserError:
            if name:
                raise
            continue
        if spreads:
            return f"those of the sweep {path.parent.name} (preset {preset})", spreads
    if name:
        raise UserError(
            f"sweep.power: {home} holds no finished sweep named {name!r} with two seeds or more;"
            " leave out --name for typical spreads"
        )
    return f"typical of MNIST, as {home} holds no finished sweep", TYPICAL_SPREADS


def measured_spreads(folder: Path) -> dict[str, float]:
    """Return the standard deviations of a sweep's runs within settings, by metric; {} if unknown.

    Args:
        folder: Folder of a sweep with a plan and a report.

    Raises:
        UserError: The plan or the report is damaged.
    """
    report, trials = read_json(folder / "report.json", _REMEDY), design.load_plan(folder).trials
    try:
        ended = [
            (trial.levels, run["values"])
            for trial in trials
            if (run := report["runs"].get(trial.name, {})).get("status") in _ENDED
        ]
    except (KeyError, AttributeError) as error:
        raise UserError(f"{folder / 'report.json'}: damaged ({error!r}); {_REMEDY}") from error
    spreads = {}
    for metric in COMPARED:
        settings = defaultdict(list)
        for levels, values in ended:
            if metric in values:
                settings[levels].append(values[metric])
        squares = sum(len(values) * pvariance(values) for values in settings.values())
        free = sum(len(values) - 1 for values in settings.values())
        if free and squares:
            spreads[metric] = math.sqrt(squares / free)
    return spreads
