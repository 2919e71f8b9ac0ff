"""A study in words and tables: only what its intervals support. Pure; text in, none out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import get_args

import numpy as np

from ganray.metrics.intervals import Estimate
from ganray.sweeps.analysis import (
    FEWEST_SEEDS,
    HIGHER,
    RESIDUAL,
    Difference,
    Effect,
    Row,
    anova,
    compare,
)
from ganray.sweeps.axes import Axis
from ganray.sweeps.results import Results, Status

_COLUMNS = {
    "coverage": "coverage",
    "recall": "recall",
    "vendi_share": "Vendi",
    "kl_corrected": "KL",
    "modes_held": "modes",
    "half_life_kimg": "half-life",
    "images_per_s": "images/s",
}
_LAYOUTS = ((4, 7), (3, 7), (2, 7), (1, 7), (1, 6), (1, 5), (0, 5), (0, 2))
"""How many of these columns have intervals, and how many are there; the widest that fits."""
_NAMED = 3
"""Things that a sentence names; more are counted."""
_DEPENDS = 0.05
"""Share of the variance from which on an interaction is told."""


def summary(results: Results, rows: Sequence[Row], *, censored: bool = False) -> str:
    """A paragraph on what the study has shown; what no interval supports is not said.

    Args:
        results: of the study.
        rows: their `ranking`.
        censored: runs were chosen or stopped by their results (tpe, asha, pbt).
    """
    said = [_counts(results)]
    seeds = int(np.isfinite(results.array("coverage")).any(_others(results)).sum())
    if censored:
        said += [
            "Runs were chosen or stopped by their results, so effects of the axes cannot be told"
            " from them, and none are given.",
            _picked(results, rows),
        ]
    elif not seeds:
        said += ["No run has a coverage yet, so nothing can be concluded."]
    elif seeds < FEWEST_SEEDS:
        said += [
            f"With {_number(seeds, 'seed')} nothing can be concluded on what differs: it takes"
            f" {FEWEST_SEEDS} or more."
        ]
    else:
        axes = [i for i, axis in enumerate(results.plan.axes) if len(axis.levels) > 1]
        said += ["Brackets hold 95 % intervals over seeds, of all pairs of levels together."]
        said += judges(results.plan.axes)
        said += [_axis(results, i, [j for j in axes if j != i]) for i in axes]
        said += _variance(results, anova(results, "coverage"))
        said += [_best(results, rows)]
    return " ".join(filter(None, said))


def judges(axes: Sequence[Axis]) -> list[str]:
    """Which images runs are compared with, where they learn others than the base's."""
    own = [axis.title for axis in axes if axis.own_reference]
    said = [
        f"Runs of each level of {title} are compared with its own images, through a classifier of"
        " its own: so coverage of one level does not compare with that of another."
        for title in own
    ]
    if any(axis.shared_reference for axis in axes):
        of = f" of one {' and '.join(own)}" if own else ""
        said.append(f"All runs{of} are compared with the same images, whichever they learn.")
    return said


def _others(results: Results) -> tuple[int, ...]:
    """The array's dimensions but the seeds'."""
    return tuple(range(len(results.plan.axes)))


def _counts(results: Results) -> str:
    tally = Counter(results.get(trial).status for trial in results.plan.trials)
    order = ("finished", "diverged", "failed", "stopped", "running", "waiting")
    assert set(order) == set(get_args(Status))
    told = ", ".join(f"{tally[status]} {status}" for status in order if tally[status])
    return f"{_number(len(results.plan.trials), 'run')}: {told}."


def _picked(results: Results, rows: Sequence[Row]) -> str:
    if not rows or "coverage" not in rows[0].means:
        return ""
    return (
        f"First of what was tried is {_cell(results.plan.axes, rows[0])}, with coverage"
        f" {rows[0].means['coverage'].value:.2g}; as it was picked for its results, expect less."
    )


@dataclass(frozen=True)
class _Standing:
    """The level that is ahead of most others, none of which is ahead of it."""

    leader: str
    ahead: list[Difference]
    """Its supported differences, the smallest first."""
    like: list[str]
    """Levels that it cannot be told from."""

    def same_as(self, other: _Standing | None) -> bool:
        mine, theirs = ({d.b for d in s.ahead} if s else None for s in (self, other))
        return other is not None and self.leader == other.leader and mine == theirs


def _standing(differences: Sequence[Difference]) -> _Standing | None:
    """Who leads, or None where no level is told from another."""
    both = [*differences, *(d.turned() for d in differences)]
    wins = [d for d in both if d.supported and d.value.value > 0]
    unbeaten = {d.a for d in wins} - {d.b for d in wins}
    if not unbeaten:
        return None
    gaps = {level: [d for d in both if d.a == level] for level in unbeaten}

    def merit(level: str) -> tuple[int, float]:
        values = [d.value.value for d in gaps[level]]
        return sum(d.a == level for d in wins), sum(values) / len(values)

    leader = max(sorted(unbeaten), key=merit)
    ahead = sorted((d for d in wins if d.a == leader), key=lambda d: d.value.value)
    return _Standing(leader, ahead, [d.b for d in gaps[leader] if d not in ahead])


def _axis(results: Results, index: int, others: Sequence[int]) -> str:
    """What coverage and recall say of one axis, over the levels of the others."""
    axes = results.plan.axes
    axis, over = axes[index], _listed([axes[i].title for i in others], most=len(axes))
    start = f"Over all levels of {over}" if over else "Over all runs"
    by = {metric: compare(results, metric, index) for metric in ("coverage", "recall")}
    if not by["coverage"]:
        return ""
    coverage, recall = (_standing(differences) for differences in by.values())
    none = f"no level of {axis.title} is told from another"
    if not coverage and not recall:
        known = " or ".join(metric for metric, differences in by.items() if differences)
        return f"{start}, {none} by {known}."
    said = [f"{start}, {_told(axis, coverage, 'covers', ' more of the data than', ' more than')}."]
    if not coverage:
        said = [f"{start}, {none} by coverage."]
    if by["recall"]:
        said.append(f"By recall, {_told(axis, recall, 'is', ' above', ' above') or none}.")
        if coverage and coverage.same_as(recall):
            said[1] = "The same holds by recall."
    return " ".join(said)


def _told(axis: Axis, standing: _Standing | None, verb: str, more: str, again: str) -> str:
    """E.g. "normal covers 0.2 [0.1, 0.3] more of the data than uniform"; "" if none leads."""
    if not standing:
        return ""
    told = [
        f"{d.value.brief()}{again if i else more} {_level(axis, d.b)}"
        for i, d in enumerate(standing.ahead[:_NAMED])
    ]
    if (left := len(standing.ahead) - _NAMED) > 0:
        told.append(f"yet more than {_number(left, 'other')}")
    text = f"{_level(axis, standing.leader)} {verb} {_listed(told, most=len(told))}"
    if standing.like:
        text += f", and is not told from {_listed([_level(axis, b) for b in standing.like])}"
    return text


def _variance(results: Results, effects: Sequence[Effect]) -> list[str]:
    """Which axes explain the coverage, and which depend on each other."""
    if not effects:
        return ["Coverage is the same in all runs."]
    titles = {axis.name: axis.title for axis in results.plan.axes}
    alone = {HIGHER, RESIDUAL}
    mains = [e for e in effects if len(e.factors) == 1 and e.factors not in alone]
    mains.sort(key=lambda e: -e.share.value)
    pairs = [e for e in effects if len(e.factors) == 2 and e.share.low > _DEPENDS]
    said = [_largest(mains, effects[-1], titles)] if mains else []
    said += [_depends(results, e) for e in sorted(pairs, key=lambda e: -e.share.value)[:_NAMED]]
    said += [
        f"More than two axes depend on each other ({_share(e.share)} of the variance of coverage)."
        for e in effects
        if e.factors == HIGHER and e.share.low > _DEPENDS
    ]
    return said


def _largest(mains: Sequence[Effect], luck: Effect, titles: dict[str, str]) -> str:
    first = next((e for e in mains if e.share.low > 0), None)
    if not first:
        return "No axis is shown to explain any of the variance of coverage on its own."
    others = [e for e in mains if e is not first]
    text = f"Of the variance of coverage, {titles[first.factors[0]]} explains {_share(first.share)}"
    near = [e for e in others if e.share.high >= first.share.low]
    if near:
        rivals = [f"{titles[e.factors[0]]} ({_share(e.share)})" for e in near]
        text += f"; {_listed(rivals)} may explain as much"
    elif others:
        text += ", more than any other axis"
    return f"{text}; chance between seeds explains {_share(luck.share)}."


def _depends(results: Results, effect: Effect) -> str:
    """An interaction, and who leads at each level of the second axis."""
    axes = results.plan.axes
    first, second = ([axis.name for axis in axes].index(name) for name in effect.factors)
    axis, other = axes[first], axes[second]
    start = (
        f"The effect of {axis.title} on coverage depends on {other.title}"
        f" ({_share(effect.share)} of the variance)"
    )
    told = []
    compared = compare(results, "coverage", first, within=second)
    for at, differences in groupby(compared, key=lambda d: d.at):
        if standing := _standing(list(differences)):
            behind = _listed([_level(axis, d.b) for d in standing.ahead])
            leader = _level(axis, standing.leader)
            told.append(f"with {_level(other, at)}, {leader} covers more than {behind}")
    if not told:
        return f"{start}, but at none of its levels is one {axis.title} told from another."
    return f"{start}: {'; '.join(told)}."


def _best(results: Results, rows: Sequence[Row]) -> str:
    if len(rows) < 2 or math.isnan(rows[0].rank):
        return ""
    axes, (first, *others) = results.plan.axes, rows
    text = f"Ranked by recall, coverage, Vendi score and KL together, {_cell(axes, first)} is first"
    if "coverage" in first.means:
        text += f", with coverage {first.means['coverage'].brief()}"
    like = [f"({_cell(axes, row)})" for row in others if row.best_tied]
    if not like:
        return f"{text}; each other setting is worse by one of these at least."
    if len(like) == len(others):
        return f"{text}; no other setting can be told from it."
    if len(like) > _NAMED:
        return f"{text}; {len(like)} of the {len(others)} others cannot be told from it."
    return f"{text}; {_listed(like)} cannot be told from it, the rest is worse by one of these."


def _cell(axes: Sequence[Axis], row: Row) -> str:
    return ", ".join(_level(axis, label) for axis, label in zip(axes, row.levels, strict=True))


def _level(axis: Axis, label: str) -> str:
    """A level in a sentence; a number, or yes or no, says of what."""
    tells = label[:1].isalpha() and label not in ("all", "true", "false", "null")
    return label if tells else f"{axis.title} {label}"


def _listed(things: Sequence[str], most: int = _NAMED) -> str:
    """Of a, b, c: "a, b and c"; more than `most` are counted."""
    if len(things) > most:
        things = [*things[:most], _number(len(things) - most, "other")]
    return " and ".join(filter(None, [", ".join(things[:-1]), *things[-1:]]))


def _number(n: int, thing: str) -> str:
    return f"{n} {thing}{'' if n == 1 else 's'}"


def _share(share: Estimate) -> str:
    value, low, high = (round(100 * x) for x in (share.value, share.low, share.high))
    return f"{value} % [{low}, {high}]"


def table(rows: Sequence[Row], axes: Sequence[Axis], width: int = 100, limit: int = 20) -> str:
    """The ranking for a terminal, with as many intervals and columns as fit into `width`."""
    resize_samples = [_cells(rows[:limit], axes, *layout) for layout in _LAYOUTS]
    cells = next(
        (cells for cells in resize_samples if sum(_widths(cells, 2)) <= width + 2),
        resize_samples[-1],
    )
    widths = _widths(cells)
    lines = [
        "  ".join(
            text.ljust(w) if 0 < i <= len(axes) else text.rjust(w)
            for i, (text, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    return "\n".join([*lines, *_notes(rows, limit)])


def _widths(cells: list[list[str]], gap: int = 0) -> list[int]:
    """Of the columns, each with the gap that follows it."""
    return [max(map(len, column)) + gap for column in zip(*cells, strict=True)]


def markdown(rows: Sequence[Row], axes: Sequence[Axis], limit: int = 20) -> str:
    """The same for an MLflow note, with all columns."""
    head, *body = _cells(rows[:limit], axes, *_LAYOUTS[0])
    rule = [":--" if 0 < i <= len(axes) else "--:" for i in range(len(head))]
    lines = [f"| {' | '.join(line)} |" for line in (head, rule, *body)]
    return "\n".join([*lines, *(f"\n{note}" for note in _notes(rows, limit))])


def _notes(rows: Sequence[Row], limit: int) -> list[str]:
    notes = [f"... and {len(rows) - limit} more"] if len(rows) > limit else []
    if any(row.best_tied for row in rows[1:]):
        notes.append("= not told from the first")
    return notes


def _cells(
    rows: Sequence[Row], axes: Sequence[Axis], intervals: int, columns: int
) -> list[list[str]]:
    """Head and rows; the first so many columns of metrics with intervals."""
    metrics = list(_COLUMNS)[:columns]
    lines = [
        ["rank", *(axis.title for axis in axes), "runs", *(_COLUMNS[metric] for metric in metrics)]
    ]
    for i, row in enumerate(rows):
        mark = "=" if i and row.best_tied else ""
        ended = f"{row.n}" + (f", {row.diverged} diverged" if row.diverged else "")
        values = [
            _value(metric, row.means.get(metric), at < intervals)
            for at, metric in enumerate(metrics)
        ]
        lines.append([f"{mark}{row.rank:.1f}", *row.levels, ended, *values])
    return lines


def _value(metric: str, mean: Estimate | None, interval: bool) -> str:
    if mean is None:
        return "-"
    if interval:
        return mean.brief()
    if metric == "half_life_kimg":
        return f"{mean.value:,.0f} ({mean.n})"
    if metric == "images_per_s":
        return f"{mean.value:,.0f}"
    return f"{mean.value:.{1 if metric == 'modes_held' else 2}f}"
