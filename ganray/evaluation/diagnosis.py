"""What the numbers say, in words: of one generator, and of one that is being trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ganray.evaluation.suite import Report

Kind = Literal[
    "one image", "noise", "blends", "repeats", "few modes", "lost modes", "narrow", "none"
]
"""From total collapse to none; noise and blends are failures of another kind."""

_ONE = 0.01
"""Vendi score above 1, as a share of the reals': below this there is but one image."""
_UNSURE = 0.25
"""Of the reals' share of sure samples: below this most samples belong to no mode."""
_NOTHING = 0.02
"""Coverage below which samples lie nowhere near the data."""
_HALF = 0.5

Series = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Diagnosis:
    """What a report comes to."""

    kind: Kind
    words: str
    """A sentence or more, with the numbers that they rest on."""

    @property
    def collapsed(self) -> bool:
        """Whether most of the data's variety is gone."""
        return self.kind in ("one image", "repeats", "few modes")

    def __str__(self) -> str:
        return self.words


def diagnose(report: Report) -> Diagnosis:
    """Name what is wrong with the samples, the gravest first. Blind to what the extractor is."""
    kinds: list[tuple[Kind, str]] = []
    fake = report
    real = {name: line.real for name, line in report.lines.items() if line.real is not None}
    real_vendi = real["vendi"]
    if fake["vendi"] - 1 < _ONE * (real_vendi - 1):
        said = (
            f"all samples are one image (Vendi score {fake['vendi']:.2f}, reals {real_vendi:.1f})"
        )
        kinds.append(("one image", said))
    if "sure_share" in real and fake["sure_share"] < _UNSURE * real["sure_share"]:
        sure = (
            f"the classifier is sure of {fake['sure_share']:.0%} (reals {real['sure_share']:.0%})"
        )
        if fake["coverage"] < _NOTHING:
            kinds.append(("noise", f"the samples do not look like the data: {sure}"))
        else:
            kinds.append(("blends", f"the samples lie between the modes: {sure}"))
    support = report.lines["support"].fake
    # ReferenceData that repeat themselves, as drawn or compressed ones may, leave no more to be found.
    if support.high < min(report.samples, _HALF * real["support"]):
        about = f"about {support.value:,.0f} different images among {report.samples:,} samples"
        kinds.append(("repeats", f"the samples repeat, as far as features tell: {about}"))
    kinds += _of_modes(report, real)
    lost = [name for name in ("recall", "coverage") if fake[name] < _HALF * real[name]]
    if lost:
        said = ", ".join(f"{name} {fake[name]:.2f} (reals {real[name]:.2f})" for name in lost)
        kinds.append(("narrow", f"much of the data's variety is missing: {said}"))
    if not kinds:
        return Diagnosis("none", f"no collapse to be seen in {report.samples:,} samples")
    # Where all is one image, what follows from that need not be said.
    words = "; ".join(said for _, said in kinds[: 1 if kinds[0][0] == "one image" else None])
    return Diagnosis(kinds[0][0], words[0].upper() + words[1:])


def _of_modes(report: Report, real: Mapping[str, float]) -> list[tuple[Kind, str]]:
    if "modes_held" not in real:
        return []
    held, all_of = int(report["modes_held"]), int(real["modes_held"])
    missing = report.missing()
    if not missing or held >= all_of:
        return []
    mark = " / " if any("," in name for name in missing) else ", "
    shown = mark.join(missing[:10]) + (f" and {len(missing) - 10} more" if missing[10:] else "")
    kind: Kind = "few modes" if held <= _HALF * all_of else "lost modes"
    return [(kind, f"{held} of {all_of} modes; missing: {shown}")]


def half_life(images_seen: ArrayLike, values: ArrayLike) -> float | None:
    """When a measure of variety first fell below half of what it had reached, in images.

    Args:
        images_seen: (n,) ascending.
        values: (n,) recall, coverage or Vendi share, not negative.

    Returns:
        Images seen at the first such point; None if there is none.
    """
    images, series = np.asarray(images_seen), np.asarray(values, np.float64)
    if not len(series):
        return None
    fallen = series < _HALF * np.maximum.accumulate(series)
    return float(images[fallen.argmax()]) if fallen.any() else None


WATCHED = {"recall": 0.05, "vendi_share": 0.2}
"""Measures of variety, and what they must have reached before their fall means anything."""
_SATURATED = 0.95
"""Share of images that D is surely right about, from which on G learns next to nothing."""
_ALIVE = 0.2
"""Vendi share that is reached after a quarter of the training, unless variety never came."""


def collapse_warning(series: Mapping[str, Series], saturation: float, progress: float) -> str:
    """Why the last evaluation gives alarm, in words; '' if it does not.

    Args:
        series: `recall` and `vendi_share` of all evaluations so far, at least one.
        saturation: Share of images, in [0, 1], that D is right about with probability above 0.99;
            nan if not known.
        progress: Share of the training that is done, in [0, 1].
    """
    reasons = []
    for name, least in WATCHED.items():
        best, now = max(series[name]), series[name][-1]
        if best >= least and now < _HALF * best:
            reasons.append(f"{name} fell to {now:.3f}, below half of the {best:.3f} it had reached")
    vendi = series["vendi_share"]
    if progress >= 0.25 and max(vendi) < _ALIVE:
        reasons.append(
            f"the samples never were varied: Vendi at most {max(vendi):.0%} of the reals'"
        )
    if saturation > _SATURATED:
        reasons.append(f"D is surely right about {saturation:.0%} of all images")
    return "; ".join(reasons)
