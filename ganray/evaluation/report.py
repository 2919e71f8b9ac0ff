"""The report on a trained generator: measured against the reals, drawn on a page, said in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ganray.config.schema import Config
from ganray.data.format import Shape
from ganray.distributed import local_device
from ganray.errors import UserError
from ganray.evaluation.diagnosis import Diagnosis, diagnose
from ganray.evaluation.extractors import Features
from ganray.evaluation.reference import ReferenceSet, check_comparable, resize_samples
from ganray.evaluation.report_figure import Page, draw
from ganray.evaluation.suite import MetricResult, ReferenceStatistics, Report, report
from ganray.gan.latents import fixed_latents
from ganray.metrics.intervals import Estimate, bootstrap
from ganray.progress import Progress

Generate = Callable[[torch.Tensor], torch.Tensor]
"""float32 (n, latent.size + classes) -> uint8 (n, H, W, C)."""

_AT_ONCE = 250
_SHOWN = 500
"""Samples of which some are drawn on the page."""

JSON, PAGE = "report.json", "report.png"


@dataclass(frozen=True)
class EvaluationReport:
    """A report and what a page of it shows."""

    report: Report
    verdict: Diagnosis
    page: Page

    def summary(self) -> dict[str, float]:
        """Each metric as `report/NAME`, and the ends of its interval; infinite ones left out."""
        values = {}
        for name, line in self.report.lines.items():
            ends = {"": line.fake.value, "_low": line.fake.low, "_high": line.fake.high}
            values |= {f"report/{name}{end}": float(x) for end, x in ends.items() if np.isfinite(x)}
        return values

    def tags(self) -> dict[str, str]:
        """What the run is found by in a list of runs."""
        return {
            "ganray.diagnosis": self.verdict.words,
            "ganray.collapse": self.verdict.kind,
            "ganray.extractor": self.report.extractor,
        }

    def write(self, folder: Path, about: Mapping[str, Any]) -> list[Path]:
        """Write the report as JSON, with what it is about, and the page; returns both files."""
        folder.mkdir(parents=True, exist_ok=True)
        verdict = {"kind": self.verdict.kind, "words": self.verdict.words}
        content = dict(about) | {"verdict": verdict} | self.report.to_dict()
        files = [folder / JSON, folder / PAGE]
        files[0].write_text(json.dumps(content, indent=2, allow_nan=False))
        draw(self.page, self.report, self.verdict, files[1])
        return files


def evaluate_generator(
    config: Config,
    generate: Generate,
    classes: int,
    reference_set: ReferenceSet,
    *,
    samples: int,
    resamples: int = 200,
    title: str,
    saturation: np.ndarray | None = None,
) -> EvaluationReport | None:
    """Compare samples of a generator with real images.

    Args:
        config: that it was trained with.
        generate: the generator.
        classes: that it can be asked for; 0 where it takes no label.
        reference_set: the images to compare with.
        samples: how many of each; fewer where there are too few images.
        resamples: behind an interval.
        title: of the page.
        saturation: (n,) D's saturation over the run, in [0, 1]; None if not known.

    Returns:
        None where there are too few images to say anything.

    Raises:
        ValueError: samples cannot be brought to the size of the reals.
    """
    count = reference_set.comparable(samples, parts=2)
    if not count:
        return None
    generate = _fitting(generate, config.latent.size + classes, reference_set.shape)
    extractor = reference_set.extractor(local_device())
    real, others = (reference_set.reals(count, part) for part in (0, 1))
    z = fixed_latents(
        config.latent, config.train.rng_seed, "report", count, classes, torch.device("cpu")
    )
    looked, shown = [], []
    with Progress(3 * count, "comparing samples with reals", "images") as progress:
        reference = ReferenceStatistics.of(extractor, real)
        progress.add(count)
        control = extractor.extract(others)
        progress.add(count)
        for part in z.split(_AT_ONCE):
            made = generate(part)
            looked.append(extractor.extract(made))
            shown.append(made[: max(0, _SHOWN - sum(map(len, shown)))].cpu())
            progress.add(len(part))
    seen, shown = _joined(looked), torch.cat(shown)
    found = report(reference, seen, control, resamples=resamples)
    if saturation is not None and len(saturation):
        found = found.with_lines({"D_saturation": _saturation(saturation)})
    verdict = diagnose(found)
    nearest = _nearest(reference, seen, len(shown))
    modes = None if seen.modes is None else seen.modes[: len(shown)].cpu().numpy()
    page = Page(title, shown.numpy(), modes, real[nearest].numpy())
    return EvaluationReport(found, verdict, page)


def _fitting(generate: Generate, inputs: int, reals: Shape) -> Generate:
    """The generator with its samples in the size of the reals, (H, W, C)."""
    height, width, channels = generate(torch.zeros(1, inputs)).shape[1:]
    check_comparable((height, width, channels), reals)
    if (height, width) == reals[:2]:
        return generate
    print(f"samples of {height}x{width} are resized to {reals[0]}x{reals[1]}, as reals are")
    return lambda z: resize_samples(generate(z), reals)


def _joined(parts: list[Features]) -> Features:
    def whole(name: str) -> torch.Tensor | None:
        given = [getattr(part, name) for part in parts]
        return None if given[0] is None else torch.cat(given)

    features = whole("features")
    assert features is not None
    return Features(features, whole("modes"), whole("confidences"))


def _nearest(reference: ReferenceStatistics, seen: Features, count: int) -> torch.Tensor:
    """Annotations of the reals nearest to the first samples, int64 (count,)."""
    distances = torch.cdist(seen.features[:count].double(), reference.seen.features.double())
    return distances.argmin(1).cpu()


def _saturation(shares: np.ndarray) -> MetricResult:
    """Mean discriminator saturation in the last tenth of the run."""
    last = shares[-max(1, len(shares) // 10) :]
    return MetricResult(
        "D_saturation", bootstrap(_mean, last, rng_seed=0, resamples=200), None, None
    )


def _mean(rows: torch.Tensor | np.ndarray) -> float:
    return float(rows.mean())


def table(found: Report) -> str:
    """The report as lines for a terminal of 100 columns."""
    rows = [("", "samples [95 %]", "reals", "perfect", "")]
    for line in found.lines.values():
        arrow = {"higher": "+", "lower": "-", "neither": " "}[line.better]
        real, perfect = (_short(value) for value in (line.real, line.perfect))
        rows.append((f"{line.name} {arrow}", line.fake.brief(), real, perfect, line.about))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        f"{row[0]:{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  "
        f"{row[3]:>{widths[3]}}  {row[4]}".rstrip()
        for row in rows
    )


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def differences(a: Report, b: Report) -> dict[str, Estimate]:
    """How much higher each metric of `a` is than of `b`, with 95 % intervals.

    The two were sampled independently and measured against the same reals, so the distances of
    the ends add up as squares do (MOVER, Zou and Donner 2008). It says whether these two
    generators differ, not whether their settings do: for that, train each with several seeds.

    Raises:
        ValueError: they were looked at through different extractors.
    """
    if a.extractor != b.extractor:
        raise UserError(
            f"reports by the extractors {a.extractor} and {b.extractor} cannot be subtracted; both"
            " must be by one; measure them together, with --against"
        )
    return {
        name: difference(a.lines[name].fake, b.lines[name].fake)
        for name in a.lines
        if name in b.lines and np.isfinite(a[name]) and np.isfinite(b[name])
    }


def difference(a: Estimate, b: Estimate) -> Estimate:
    """A - b of two independent estimates, with the interval that follows from theirs."""
    value = a.value - b.value
    below = np.hypot(a.value - a.low, b.high - b.value)
    above = np.hypot(a.high - a.value, b.value - b.low)
    return Estimate(value, float(value - below), float(value + above), min(a.n, b.n))
