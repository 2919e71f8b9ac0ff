"""Text conclusions: the diagnosis of a report, and the collapse warning during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from ganray.evaluation.breakdown import ShareResult, most_different
from ganray.evaluation.suite import MetricResult, MetricsReport

Kind = Literal[
    "one image",
    "unlike real",
    "few modes",
    "repeats",
    "lost modes",
    "memorized",
    "narrow",
    "uneven",
    "less faithful",
]
"""Kinds of failure, the most severe first. unlike real and less faithful: of fidelity. narrow: less
variety, over all or within modes. uneven: modes or attributes are too rare or too frequent."""

_ONE_IMAGE, _ONE_IMAGE_SPREAD = 0.01, 0.1
"""Vendi score above 1, and spread of pixels, relative to the reference images', below which there
is only one image. The classifier hardly tells images of noise apart, whose Vendi score is low."""
_UNCONFIDENT = 0.25
"""Share of confident samples, relative to the reference images', below which most have no mode."""
_HALF, _SLIGHTLY = 0.5, 0.9
"""Scores, relative to other real images', below which samples are far below them, and up to which
a significant difference is slight."""
_RELEVANT = 0.05
"""Share of samples with a duplicate from which significantly many are said to repeat."""
_MAX_NAMES = 10
"""Number of modes that a sentence names."""
_TINY = 1e-9

Series = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Diagnosis:
    """Conclusion of a report: an answer to each question, with the numbers.

    A failure is what differs significantly from the score of as many other real images; how much
    it differs decides on the words. Repeats must be relevant as well, and the excess of copies
    exceed what held-out images show by being unlike training images.
    """

    kinds: tuple[Kind, ...]
    """The failures, the most severe first; () if there is none."""
    sentences: tuple[str, ...]
    """Answers on fidelity, coverage of the modes, variety, repeats and memorization."""
    samples: int
    """Number of samples."""
    collapsed: bool
    """Whether most of the data's variety is missing: samples are one image, or of few modes, or
    they repeat and lie near less than half of the real images that others lie near."""

    @property
    def text(self) -> str:
        """All sentences, with a headline if the samples have collapsed or do not fail at all."""
        if self.collapsed:
            return " ".join(("Collapse.", *self.sentences))
        if not self.kinds:
            return " ".join((f"No failure detected in {self.samples:,} samples.", *self.sentences))
        return " ".join(self.sentences)

    def __str__(self) -> str:
        return self.text


def diagnose(report: MetricsReport) -> Diagnosis:
    """Answer whether the samples are faithful, cover the modes, vary, repeat, or are memorized.

    Recall has no say: it rests on the outermost samples (Naeem et al. 2020).
    """
    vendi = report.results["vendi"]
    real_vendi = vendi.reference or 1.0
    is_flat = report["spread"] < _ONE_IMAGE_SPREAD
    if is_flat and vendi.estimate.value - 1 < _ONE_IMAGE * (real_vendi - 1):
        text = f"All samples are one image: Vendi score {vendi.estimate.value:.2f}"
        return Diagnosis(
            ("one image",),
            (f"{text} (other real images: {real_vendi:.1f}).",),
            report.samples,
            collapsed=True,
        )
    questions = (_fidelity, _modes, _coverage, _variety, _repeats, _memorization)
    answers = [answer for question in questions if (answer := question(report))]
    found = {kind for kind, _ in answers if kind}
    is_far_below = _grade(report.results["coverage"]).startswith("far")
    return Diagnosis(
        tuple(kind for kind in get_args(Kind) if kind in found),
        tuple(text for _, text in answers),
        report.samples,
        collapsed="few modes" in found or ("repeats" in found and is_far_below),
    )


Answer = tuple[Kind | None, str]
"""The failure, if there is one, and a sentence."""


def _grade(result: MetricResult) -> str:
    """Return how a score compares with that of other real images."""
    assert result.reference is not None
    if _is_below(result):
        ratio = result.estimate.value / max(result.reference, _TINY)
        words = "far below" if ratio < _HALF else "below" if ratio < _SLIGHTLY else "slightly below"
    else:
        words = "above" if _is_above(result) else "not distinguishable from"
    return f"{words} that of real images"


def _is_below(result: MetricResult) -> bool:
    """Return whether a score is significantly lower than that of other real images."""
    return result.difference is not None and result.difference.high < 0


def _is_above(result: MetricResult) -> bool:
    """Return whether a score is significantly higher than that of other real images."""
    return result.difference is not None and result.difference.low > 0


def _fidelity(report: MetricsReport) -> Answer:
    precision, outliers = report.results["precision"], report.results["outliers"]
    value, real = _percents(precision)
    few, real_few = _percents(outliers)
    if _is_above(outliers) and not _is_below(precision):
        return "less faithful", (
            f"Most samples lie among real images ({value}; other real images: {real}), but {few}"
            f" are like none of them ({real_few})."
        )
    grade = _grade(precision)
    text = f"Fidelity is {grade}: {value} of the samples lie among them (other real images: {real})"
    if not _has_confident_modes(report):
        sure, real = _percents(report.results["sure_share"])
        text += f", and the classifier is confident about {sure} ({real})"
    if _is_above(outliers):
        text += f"; {few} are like none of them ({real_few})"
    if not _is_below(precision):
        return None, f"{text}."
    return ("unlike real" if grade.startswith("far") else "less faithful"), f"{text}."


def _has_confident_modes(report: MetricsReport) -> bool:
    """Return whether the modes of samples mean something, as far as it can be known."""
    sure = report.results.get("sure_share")
    if sure is None or not sure.reference:
        return True
    return sure.estimate.value / sure.reference >= _UNCONFIDENT


def _modes(report: MetricsReport) -> Answer | None:
    held = report.results.get("modes_held")
    if held is None or not held.reference or not _has_confident_modes(report):
        return None
    missing = report.missing
    rare = [s for s in most_different(report.shares, rare=True) if s.name not in missing]
    frequent = most_different(report.shares, rare=False)
    text = f"{held.estimate.value:.0f} of {len(report.mode_names)} modes are there"
    text += f" (other real images: {held.reference:.0f})"
    kind: Kind | None = "uneven" if rare or frequent else None
    if missing:
        few = held.estimate.value <= _HALF * held.reference
        kind, text = ("few modes" if few else "lost modes"), f"{text}, without {_names(missing)}"
    if rare:
        text += f"; too rare: {_shares(rare)}"
    elif frequent and not missing:  # otherwise they are so because of the missing ones
        text += f"; too frequent: {_shares(frequent)}"
    return kind, f"{text}."


def _coverage(report: MetricsReport) -> Answer:
    coverage = report.results["coverage"]
    value, real = _percents(coverage)
    return ("narrow" if _is_below(coverage) else None), (
        f"Coverage is {_grade(coverage)}: samples lie near {value} of them (other real images:"
        f" {real})."
    )


def _variety(report: MetricsReport) -> Answer:
    share, vendi = report.results["vendi_share"], report.results["vendi"]
    text = f"Variety is {_grade(share)}: Vendi score {vendi.estimate.value:.3g}"
    text += f" (other real images: {vendi.reference:.3g})"
    narrow = [mode for mode in report.modes if mode.is_narrow]
    if not _has_confident_modes(report):
        narrow = []
    if narrow:
        count = f"{len(narrow)} of {len(report.modes)}"
        text += f"; within {count} modes it is below, least in {narrow[0]}"
    return ("narrow" if narrow or _is_below(share) else None), f"{text}."


def _repeats(report: MetricsReport) -> Answer:
    support, share = report.results["support"], report.results["duplicates"]
    assert support.control is not None
    value, real = _percents(share)
    text = f"{value} have a near duplicate (other real images: {real})"
    # Reference images may repeat themselves, too, for example if they are procedural.
    if support.estimate.high >= support.control.low:
        more = "more" if share.estimate.value <= (share.reference or 0) else "significantly more"
        return None, f"Samples do not repeat {more} than real images: {text}."
    if share.estimate.value < _RELEVANT:
        return None, f"Few samples repeat: {text}."
    return "repeats", (
        f"Samples repeat as if there were about {support.estimate.value:,.0f} equally frequent"
        f" images: {text}."
    )


def _memorization(report: MetricsReport) -> Answer | None:
    result = report.results.get("memorization")
    if result is None:
        return None
    control = result.control
    assert control is not None
    if result.estimate.low > max(0.0, abs(control.low), abs(control.high)):
        share = _percent(result.estimate.value)
        return "memorized", f"About {share} of the samples are copies of training images."
    if result.estimate.high > _HALF:
        return None, "Whether they are copies of training images cannot be judged: too few images."
    # The estimate has no bias, so that its interval may be below 0.
    most = max(0.0, result.estimate.high)
    return None, f"No copies of training images are detected; at most {_percent(most)} are."


def _percents(result: MetricResult) -> tuple[str, str]:
    """Return a share and that of real images with enough digits to differ, if they do."""
    value, real = result.estimate.value, result.reference or 0.0
    both = _percent(value), _percent(real)
    return both if both[0] != both[1] or value == real else (f"{value:.1%}", f"{real:.1%}")


def _percent(share: float) -> str:
    """Return a share with two digits if it is small, so that 0.4% is not shown as 0%."""
    return f"{share:.1%}" if 0 < abs(share) < 0.0995 else f"{share:.0%}"


def _names(names: Sequence[str]) -> str:
    separator = " / " if any("," in name for name in names) else ", "
    more = f" and {len(names) - _MAX_NAMES} more" if names[_MAX_NAMES:] else ""
    return separator.join(names[:_MAX_NAMES]) + more


def _shares(shares: Sequence[ShareResult]) -> str:
    return _names([f"{s.name} {_percent(s.share)} ({_percent(s.reference)})" for s in shares[:3]])


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
_MIN_VENDI_SHARE = 0.1
"""Vendi share that training reaches after half of its length unless G never gains variety: short
runs on MNIST have 0.16 to 0.5 there, and with latents of size 1 or 2 less than 0.1 at their end."""


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
    if progress >= 0.5 and max(vendi) < _MIN_VENDI_SHARE:
        reasons.append(
            f"the samples have never been varied: Vendi at most {max(vendi):.0%} of the reference"
        )
    if saturation > _SATURATED:
        reasons.append(
            f"D classifies {saturation:.0%} of all images correctly with > 99% confidence"
        )
    return "; ".join(reasons)
