"""Text conclusions: the diagnosis of a report, and the collapse warning during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ganray import log
from ganray.evaluation.suite import MetricsReport

Kind = Literal[
    "one image", "noise", "blends", "repeats", "few modes", "lost modes", "narrow", "none"
]
"""Kinds of failure from total collapse to none; noise and blends are failures of fidelity."""

_ONE_IMAGE = 0.01
"""Vendi score above 1, relative to the reference images', below which there is only one image."""
_UNCONFIDENT = 0.25
"""Share of confident samples, relative to the reference images', below which most have no mode."""
_NO_COVERAGE = 0.02
"""Coverage below which samples are nowhere near the data."""
_HALF = 0.5

Series = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Diagnosis:
    """Conclusion of a report."""

    kind: Kind
    text: str
    """The reasons with their numbers."""

    @property
    def collapsed(self) -> bool:
        """Whether most of the data's variety is missing."""
        return self.kind in ("one image", "repeats", "few modes")

    def __str__(self) -> str:
        return self.text


def diagnose(report: MetricsReport) -> Diagnosis:
    """Return the failures of the samples, the most severe first.

    Compares each metric with what other reference images score.
    """
    kinds: list[tuple[Kind, str]] = []
    reference = {
        name: result.reference
        for name, result in report.results.items()
        if result.reference is not None
    }
    vendi = reference["vendi"]
    if report["vendi"] - 1 < _ONE_IMAGE * (vendi - 1):
        scores = f"Vendi score {report['vendi']:.2f}, reference {vendi:.1f}"
        kinds.append(("one image", f"all samples are one image ({scores})"))
    expected = reference.get("sure_share")
    if expected is not None and report["sure_share"] < _UNCONFIDENT * expected:
        scores = (
            f"the classifier is confident about {report['sure_share']:.0%}"
            f" (reference {expected:.0%})"
        )
        if report["coverage"] < _NO_COVERAGE:
            kinds.append(("noise", f"the samples do not resemble the data: {scores}"))
        else:
            kinds.append(("blends", f"the samples lie between the modes: {scores}"))
    support = report.results["support"].estimate
    # Reference images may repeat themselves, too, for example if they are procedural.
    if support.high < min(report.samples, _HALF * reference["support"]):
        count = f"about {support.value:,.0f} different images among {report.samples:,} samples"
        kinds.append(("repeats", f"the samples repeat, by their features: {count}"))
    kinds += _missing_modes(report, reference)
    low = [name for name in ("recall", "coverage") if report[name] < _HALF * reference[name]]
    if low:
        scores = ", ".join(
            f"{name} {log.two_digits(report[name])} (reference {log.two_digits(reference[name])})"
            for name in low
        )
        kinds.append(("narrow", f"much of the data's variety is missing: {scores}"))
    if not kinds:
        return Diagnosis("none", f"no collapse detected in {report.samples:,} samples")
    # If all samples are one image, everything else follows.
    text = "; ".join(text for _, text in kinds[: 1 if kinds[0][0] == "one image" else None])
    return Diagnosis(kinds[0][0], text[0].upper() + text[1:])


def _missing_modes(report: MetricsReport, reference: Mapping[str, float]) -> list[tuple[Kind, str]]:
    if "modes_held" not in reference:
        return []
    held, total = int(report["modes_held"]), int(reference["modes_held"])
    missing = report.missing()
    if not missing or held >= total:
        return []
    separator = " / " if any("," in name for name in missing) else ", "
    more = f" and {len(missing) - 10} more" if missing[10:] else ""
    kind: Kind = "few modes" if held <= _HALF * total else "lost modes"
    return [(kind, f"{held} of {total} modes; missing: {separator.join(missing[:10])}{more}")]


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
