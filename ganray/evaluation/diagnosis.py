"""Text conclusions: the diagnosis of a report, and the collapse warning during training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ganray.evaluation.suite import MetricsReport

Kind = Literal[
    "one image", "noise", "blends", "repeats", "few modes", "lost modes", "narrow", "none"
]
"""Kinds of failure from total collapse to none; noise and blends are failures of fidelity."""

_COLLAPSED: tuple[Kind, ...] = ("one image", "repeats", "few modes")

_ONE_IMAGE = 0.01
"""Vendi score above 1, relative to the reference images', below which there is only one image."""
_UNCONFIDENT = 0.25
"""Share of confident samples, relative to the reference images', below which most have no mode."""
_NO_COVERAGE = 0.02
"""Coverage below which samples are nowhere near the data."""
_HALF, _ALIKE = 0.5, 0.9
"""Scores, relative to the reference images', below which samples are far below them, and below."""
_TINY = 1e-9

Series = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Diagnosis:
    """Conclusion of a report."""

    kind: Kind
    """The most severe failure."""
    text: str
    """A sentence each on fidelity, coverage and variety, with the numbers."""

    @property
    def collapsed(self) -> bool:
        """Whether most of the data's variety is missing."""
        return self.kind in _COLLAPSED

    def __str__(self) -> str:
        return self.text


def diagnose(report: MetricsReport) -> Diagnosis:
    """Return what the samples lack, compared with what other reference images score.

    Recall has no say: it rests on the outermost samples (Naeem et al. 2020), and of features that
    do not tell the reference images apart, such as those of small faces, it is near 0 for any GAN.
    """
    reference = {
        name: result.reference
        for name, result in report.results.items()
        if result.reference is not None
    }
    vendi = report["vendi"], reference["vendi"]
    if vendi[0] - 1 < _ONE_IMAGE * (vendi[1] - 1):
        text = f"Collapse: all samples are one image, Vendi score {vendi[0]:.2f}"
        return Diagnosis("one image", f"{text} (real images {vendi[1]:.1f}).")

    fidelity, is_confident = _fidelity(report, reference)
    lost = _lost_modes(report, reference)
    coverage = (
        f"samples lie near {report['coverage']:.0%} of them (other real images:"
        f" {reference['coverage']:.0%}){_modes(report, reference, is_lost=lost is not None)}"
    )
    variety = f"Vendi score {vendi[0]:.1f} (real images: {vendi[1]:.1f})"
    support = report.results["support"].estimate
    # Reference images may repeat themselves, too, for example if they are procedural.
    repeats = support.high < min(report.samples, _HALF * reference["support"])
    if repeats:
        variety = f"about {support.value:,.0f} different images among {report.samples:,} samples"
    ratios = {
        "Coverage": report["coverage"] / max(reference["coverage"], _TINY),
        "Variety": 0.0 if repeats else vendi[0] / vendi[1],
    }
    kinds: list[Kind] = []
    if not is_confident:
        kinds.append("noise" if report["coverage"] < _NO_COVERAGE else "blends")
    if repeats:
        kinds.append("repeats")
    if lost:
        kinds.append(lost)
    if min(ratios.values()) < _HALF:
        kinds.append("narrow")
    kind = kinds[0] if kinds else "none"
    most = {"few modes": 0.0, "lost modes": _HALF, None: math.inf}[lost]
    sentences = [
        fidelity,
        f"Coverage is {_grade(min(most, ratios['Coverage']))}: {coverage}.",
        f"Variety is {_grade(ratios['Variety'])}: {variety}.",
    ]
    if kind == "none":
        sentences.insert(0, f"No collapse detected in {report.samples:,} samples.")
    elif kind in _COLLAPSED:
        sentences.insert(0, "Collapse.")
    return Diagnosis(kind, " ".join(sentences))


def _grade(ratio: float) -> str:
    """Return how a score compares with that of other reference images."""
    words = "far below " if ratio < _HALF else "below " if ratio < _ALIKE else ""
    return f"{words}that of real images"


def _fidelity(report: MetricsReport, reference: Mapping[str, float]) -> tuple[str, bool]:
    """Return the sentence on fidelity, and whether the classifier is confident often enough."""
    expected = reference.get("sure_share")
    if not expected:  # no modes, or a classifier that is never confident
        name = "precision"
        text = f"{report[name]:.0%} of the samples lie among them (other real images:"
        return (
            f"Fidelity is {_grade(report[name] / max(reference[name], _TINY))}: {text}"
            f" {reference[name]:.0%}).",
            True,
        )
    ratio = report["sure_share"] / expected
    text = f"the classifier is confident about {report['sure_share']:.0%} of the samples"
    text += f" ({expected:.0%} of real images)"
    return f"Fidelity is {_grade(ratio)}: {text}.", ratio >= _UNCONFIDENT


def _modes(report: MetricsReport, reference: Mapping[str, float], is_lost: bool) -> str:
    """Return the number of modes and, if any are lost, their names, to end a sentence."""
    if "modes_held" not in reference:
        return ""
    text = f"; {report['modes_held']:.0f} of {reference['modes_held']:.0f} modes"
    missing = report.missing()
    if not is_lost:
        return text
    separator = " / " if any("," in name for name in missing) else ", "
    more = f" and {len(missing) - 10} more" if missing[10:] else ""
    return f"{text}, without {separator.join(missing[:10])}{more}"


def _lost_modes(
    report: MetricsReport, reference: Mapping[str, float]
) -> Literal["few modes", "lost modes"] | None:
    if "modes_held" not in reference or report["modes_held"] >= reference["modes_held"]:
        return None
    few = report["modes_held"] <= _HALF * reference["modes_held"]
    return ("few modes" if few else "lost modes") if report.missing() else None


def half_life(images_seen: ArrayLike, values: ArrayLike) -> float | None:
    """Return the images seen when a measure of variety first fell below half of its maximum so far.

    Args:
        images_seen: (n,) ascending.
        values: (n,) recall, coverage or Vendi share, not negative.

    Returns:
        None if it never did.
    """
    images, series = np.asarray(images_seen), np.asarray(values, np.float64)
    if not len(series):
        return None
    fallen = series < _HALF * np.maximum.accumulate(series)
    return float(images[fallen.argmax()]) if fallen.any() else None


WATCHED = {"recall": 0.05, "vendi_share": 0.2}
"""Measures of variety, with the value that they must reach before a fall is reported."""
_SATURATED = 0.95
"""Share of images classified correctly with confidence, above which G hardly trains."""
_MIN_VENDI_SHARE = 0.2
"""Vendi share that training reaches after a quarter of its length unless G never gains variety."""


def collapse_warning(series: Mapping[str, Series], saturation: float, progress: float) -> str:
    """Return why the latest evaluation indicates collapse; '' if it does not.

    Args:
        series: `recall` and `vendi_share` of all evaluations so far, at least one.
        saturation: Share of images, in [0, 1], that D classifies correctly with a probability above
            0.99; nan if unknown.
        progress: Share of the training that is done, in [0, 1].
    """
    reasons = []
    for name, least in WATCHED.items():
        best, latest = max(series[name]), series[name][-1]
        if best >= least and latest < _HALF * best:
            reasons.append(f"{name} fell to {latest:.3f}, below half of its maximum of {best:.3f}")
    vendi = series["vendi_share"]
    if progress >= 0.25 and max(vendi) < _MIN_VENDI_SHARE:
        reasons.append(
            f"the samples have never been varied: Vendi at most {max(vendi):.0%} of the reference"
        )
    if saturation > _SATURATED:
        reasons.append(
            f"D classifies {saturation:.0%} of all images correctly with > 99% confidence"
        )
    return "; ".join(reasons)
