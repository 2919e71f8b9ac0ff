"""Summary of a sweep in sentences that follow from its tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import numpy as np

from ganray.metrics.intervals import Estimate
from ganray.sweeps.analysis import HIGHER, RESIDUAL, Difference, Effect, RankedSetting
from ganray.sweeps.axes import Axis
from ganray.sweeps.family import COMPARED, FEW_SEEDS_CAVEAT, MIN_SEEDS
from ganray.sweeps.results import Results, Status

_NAMED = 3
"""Maximum number of differences, interactions or settings that are named."""
_MIN_INTERACTION = 0.05
"""Interactions whose share of the variance may be smaller are not reported."""


def summarize(
    results: Results,
    ranking: Sequence[RankedSetting],
    differences: Sequence[Difference],
    effects: Sequence[Effect],
    *,
    censored: bool = False,
) -> str:
    """Return a paragraph on what the sweep shows; only significant differences are named.

    Args:
        results: Results of the sweep.
        ranking: Settings, the best first.
        differences: Pairs of levels in coverage and recall.
        effects: Explained variance of coverage.
        censored: Whether runs were chosen or stopped by their results (tpe, asha, pbt).
    """
    axes = results.plan.axes
    by_status = {status: results.count(status) for status in get_args(Status)}
    counts = ", ".join(f"{count} {status}" for status, count in by_status.items() if count)
    sentences = [f"{_count(len(results.plan.trials), 'run')}: {counts}."]
    coverage = results.array("coverage")
    seeds = int(np.isfinite(coverage).any(tuple(range(len(axes)))).sum())
    if censored:
        sentences.append(
            "Runs were chosen or stopped by their results, so the effects of the axes cannot be"
            " estimated."
        )
    elif not seeds:
        sentences.append("No run has a coverage yet, so nothing can be concluded.")
    elif seeds < MIN_SEEDS:
        sentences.append(
            f"With {_count(seeds, 'seed')} no difference is significant; use {MIN_SEEDS} or more."
        )
    else:
        sentences.append(
            "Brackets are intervals over seeds: those of differences hold for all axes, levels and"
            " metrics here together, others with 95 % each. If nothing differed, this summary would"
            " name a difference or a worse setting with a probability of about 5 % at most"
            + (f"; {FEW_SEEDS_CAVEAT}" if seeds == MIN_SEEDS else "")
            + "."
        )
        sentences += reference_notes(axes)
        for axis in axes:
            sentences.append(_axis_sentence(axis, [d for d in differences if d.axis == axis.name]))
        sentences += _variance_sentences(axes, effects)
    if ranking and not math.isnan(ranking[0].rank):
        sentences.append(_best_sentence(axes, ranking, censored))
        tied = {
            (axis.name, label)
            for row in ranking
            for axis, label in zip(axes, row.levels, strict=True)
            if row.ties_best
        }
        if any(d.significant and {(d.axis, d.a), (d.axis, d.b)} <= tied for d in differences):
            sentences.append(
                "Levels can differ where single settings do not, as they average over settings."
            )
    return " ".join(filter(None, sentences))


def reference_notes(axes: Sequence[Axis]) -> list[str]:
    """Return which images runs are compared with, if an axis changes the training data."""
    own = [axis.title for axis in axes if axis.own_reference]
    notes = [
        f"Each level of {title} has reference images and a classifier of its own, so coverage"
        " cannot be compared between these levels."
        for title in own
    ]
    if any(axis.shared_reference for axis in axes):
        runs = f"All runs with the same {' and '.join(own)}" if own else "All runs"
        notes.append(f"{runs} share their reference images, whichever images they train on.")
    return notes


def level_name(axis: Axis, label: str) -> str:
    """Return a level for use in a sentence: "adam", but "size 10" and "flip true"."""
    is_name = label[:1].isalpha() and label not in ("all", "true", "false", "null")
    return label if is_name else f"{axis.title} {label}"


def interactions(effects: Sequence[Effect]) -> list[Effect]:
    """Return the pairs of axes that explain a relevant share of the variance together."""
    pairs = [e for e in effects if len(e.factors) == 2 and e.share.low > _MIN_INTERACTION]
    return sorted(pairs, key=lambda e: -e.share.value)


def _axis_sentence(axis: Axis, differences: Sequence[Difference]) -> str:
    """Return how many pairs of levels differ, with the largest differences in coverage."""
    parts = []
    for metric in COMPARED:
        pairs = [d for d in differences if d.metric == metric and not d.at]
        significant = [d if d.value.value > 0 else d.swapped() for d in pairs if d.significant]
        significant.sort(key=lambda d: -d.value.value)
        if pairs:
            parts.append(
                f"{len(significant) or 'none'} of {_count(len(pairs), 'pair')} in {metric}"
            )
        if significant and metric == "coverage":
            named = "; ".join(
                f"{level_name(axis, d.a)} exceeds {level_name(axis, d.b)} by {d.value.brief()}"
                for d in significant[:_NAMED]
            )
            parts[0] += f" ({'the largest: ' if len(significant) > _NAMED else ''}{named})"
    if not parts:
        return ""
    return f"Significant differences between levels of {axis.title}: {', '.join(parts)}."


def _variance_sentences(axes: Sequence[Axis], effects: Sequence[Effect]) -> list[str]:
    """Return the shares of the variance of coverage, and the interactions."""
    if not effects:
        return ["Coverage is the same in all runs."]
    titles = {axis.name: axis.title for axis in axes} | {RESIDUAL[0]: "the seed"}
    single = [e for e in effects if len(e.factors) == 1 and e.factors != HIGHER]
    single.sort(key=lambda e: (not e.is_determined, -e.share.value))
    known = [f"{titles[e.factors[0]]} {_percent(e.share)}" for e in single if e.is_determined]
    unknown = [titles[e.factors[0]] for e in single if not e.is_determined]
    sentences = [f"Share of the variance of coverage: {', '.join(known)}."] if known else []
    if unknown:
        seeds = _count(single[0].share.n, "seed")
        which = f"of {' and '.join(unknown)} " if known else ""
        verb = "is" if len(unknown) == 1 else "are"
        noun = "share" if len(unknown) == 1 else "shares"
        sentences.append(
            f"The {noun} {which}{'' if known else 'of the variance of coverage '}{verb} not"
            f" determined with {seeds}."
        )
    for effect in interactions(effects)[:_NAMED]:
        first, second = (titles[name] for name in effect.factors)
        share = _percent(effect.share)
        sentences.append(f"The effect of {first} depends on {second} ({share} of the variance).")
    return sentences


def _best_sentence(axes: Sequence[Axis], ranking: Sequence[RankedSetting], censored: bool) -> str:
    """Return the best setting, or those among which the ranking does not distinguish."""
    tied = [row for row in ranking if row.ties_best]
    worse = sum(not (row.ties_best or math.isnan(row.rank)) for row in ranking)
    if censored or len(tied) == 1:
        text = f"The best setting by mean rank is {_setting(axes, ranking[0])}"
        if censored:
            return f"{text}; it was selected by its results, so expect less of a new run."
        if not worse:
            return f"{text}."
        others = "the other setting is" if worse == 1 else f"all {worse} others are"
        return f"{text}; {others} significantly worse."
    named = "; ".join(_setting(axes, row) for row in tied[:_NAMED])
    named += f"; and {len(tied) - _NAMED} more" if len(tied) > _NAMED else ""
    text = f"No single setting is best: {len(tied)} do not differ significantly ({named})"
    if not worse:
        return f"{text}."
    return f"{text}, and the {'other is' if worse == 1 else f'{worse} others are'} worse."


def _setting(axes: Sequence[Axis], row: RankedSetting) -> str:
    text = ", ".join(level_name(*pair) for pair in zip(axes, row.levels, strict=True))
    return text + (
        f", with coverage {row.means['coverage'].brief()}" if "coverage" in row.means else ""
    )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _percent(share: Estimate) -> str:
    value, low, high = (round(100 * x) for x in (share.value, share.low, share.high))
    return f"{value} % [{low}, {high}]"
