"""Final report of a trained generator: metrics, diagnosis and a figure."""

from __future__ import annotations

import json
import logging
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ganray import log
from ganray.config.schema import Config
from ganray.data.format import Shape
from ganray.data.transforms import to_uint8
from ganray.distributed import local_device
from ganray.evaluation.comparison import ImageStatistics
from ganray.evaluation.diagnosis import Diagnosis, diagnose
from ganray.evaluation.evaluator import Generate
from ganray.evaluation.extractors import Features
from ganray.evaluation.reference import ReferenceSet, check_comparable, resize_samples
from ganray.evaluation.report_figure import Page, draw
from ganray.evaluation.suite import MetricResult, MetricsReport, report
from ganray.files import write_atomic
from ganray.gan.latents import fixed_latents
from ganray.metrics.intervals import Estimate, bootstrap
from ganray.progress import Progress

logger = logging.getLogger(__name__)

_CPU = torch.device("cpu")
_BATCH_SIZE = 250
_NUM_SHOWN = 500
"""Number of samples of which some are shown in the figure."""

JSON, PAGE = "report.json", "report.png"

BRIEF = {
    "coverage": "reals that have a sample nearby",
    "recall": "reals within the samples' manifold",
    "vendi_share": "variety, relative to reals (Vendi)",
    "modes_held": "modes with a tenth of their share",
    "kl": "KL of the modes' shares, nats",
    "support": "different images (birthday test)",
    "precision": "samples within the reals' manifold",
    "density": "samples near each real",
    "sure_share": "confident samples (p > 0.9)",
    "frechet": "Frechet distance of the features",
    "kid": "kernel distance of the features",
    "D_saturation": "images that D is > 99 % sure of",
}
"""Metrics of the short table, in its order, in a few words."""
_MIN_ROOM = 24
"""Columns of the terminal that the words must have."""


@dataclass(frozen=True)
class EvaluationReport:
    """Metrics, diagnosis and the images of the figure."""

    metrics: MetricsReport
    diagnosis: Diagnosis
    page: Page

    def summary(self) -> dict[str, float]:
        """Return finite metrics as `report/NAME`, with the ends of their intervals."""
        values = {}
        for name, result in self.metrics.results.items():
            ends = {
                "": result.estimate.value,
                "_low": result.estimate.low,
                "_high": result.estimate.high,
            }
            values |= {f"report/{name}{end}": float(x) for end, x in ends.items() if np.isfinite(x)}
        return values

    def tags(self) -> dict[str, str]:
        """Return the tags that a list of runs shows."""
        return {
            "ganray.diagnosis": self.diagnosis.text,
            "ganray.collapse": self.diagnosis.kind,
            "ganray.extractor": self.metrics.extractor,
        }

    def write(self, folder: Path, about: Mapping[str, Any]) -> list[Path]:
        """Write the report as JSON, with its source `about`, and the figure; return both files."""
        content = dict(about) | {"diagnosis": asdict(self.diagnosis)} | self.metrics.to_dict()
        files = [folder / JSON, folder / PAGE]
        write_atomic(files[0], json.dumps(content, indent=2, allow_nan=False))
        draw(self.page, self.metrics, self.diagnosis, files[1])
        return files


def evaluate_generator(
    config: Config,
    G: Callable[[torch.Tensor], torch.Tensor],
    classes: int,
    reference_set: ReferenceSet,
    *,
    samples: int,
    resamples: int = 200,
    title: str,
    saturation: np.ndarray | None = None,
    device: torch.device = _CPU,
) -> EvaluationReport | None:
    """Compare samples of a generator with reference images.

    Args:
        config: Config of the run.
        G: Generator, float32 (n, latent.size + classes) -> float (n, C, H, W) in
            [config.pixel_min(), 1].
        classes: Number of classes; 0: unconditional.
        reference_set: Images to compare with.
        samples: Number of samples; fewer if there are too few reference images.
        resamples: Number of replicates per interval.
        title: Title of the figure.
        saturation: (n,) D's saturation over the run, in [0, 1]; None if not known.
        device: Device of G.

    Returns:
        None if there are too few reference images.

    Raises:
        UserError: Samples cannot be resized to the reference images.
    """
    count = reference_set.usable_count(samples, parts=2)
    if not count:
        return None
    z = fixed_latents(config.latent, config.train.rng_seed, "report", count, classes, _CPU)

    def generate(rows: slice) -> torch.Tensor:
        with torch.no_grad():
            return to_uint8(G(z[rows].to(device)), config.pixel_min())

    return evaluate_samples(
        generate, count, reference_set, resamples=resamples, title=title, saturation=saturation
    )


def evaluate_samples(
    read_samples: Generate,
    count: int,
    reference_set: ReferenceSet,
    *,
    resamples: int = 200,
    title: str,
    saturation: np.ndarray | None = None,
) -> EvaluationReport:
    """Compare any samples with reference images.

    Args:
        read_samples: Returns the samples at a slice of them, uint8 (n, H, W, C).
        count: Number of samples, see `ReferenceSet.usable_count`.
        reference_set: Images to compare with, at least twice as many.
        resamples: Number of replicates per interval.
        title: Title of the figure.
        saturation: See `evaluate_generator`.

    Raises:
        UserError: Samples cannot be resized to the reference images.
    """
    generate = _resizing(read_samples, reference_set.shape)
    extractor = reference_set.extractor(local_device())
    reference_images, other_images = (reference_set.read(count, part) for part in (0, 1))
    batches, shown = [], []
    with Progress(3 * count, "comparing samples with reference images", "images") as progress:
        reference = ImageStatistics.of(extractor, extractor.extract(reference_images))
        progress.add(count)
        control = ImageStatistics.of(extractor, extractor.extract(other_images))
        progress.add(count)
        for start in range(0, count, _BATCH_SIZE):
            images = generate(slice(start, min(start + _BATCH_SIZE, count)))
            batches.append(extractor.extract(images))
            shown.append(images[: max(0, _NUM_SHOWN - sum(map(len, shown)))].cpu())
            progress.add(len(images))
    features, shown = _concatenate(batches), torch.cat(shown)
    statistics = ImageStatistics.of(extractor, features)
    metrics = report(reference, statistics, control, resamples=resamples)
    if saturation is not None and len(saturation):
        metrics = replace(metrics, results=metrics.results | _saturation_result(saturation))
    diagnosis = diagnose(metrics)
    distances = torch.cdist(features.features[: len(shown)].double(), reference.features.double())
    nearest = distances.argmin(1).cpu()
    modes = None if features.modes is None else features.modes[: len(shown)].cpu().numpy()
    page = Page(title, shown.numpy(), modes, reference_images[nearest].numpy())
    return EvaluationReport(metrics, diagnosis, page)


def _resizing(generate: Generate, shape: Shape) -> Generate:
    """Return the function with its samples resized to the reference shape, (H, W, C)."""
    height, width, channels = generate(slice(0, 1)).shape[1:]
    check_comparable((height, width, channels), shape)
    if (height, width) == shape[:2]:
        return generate
    logger.info(f"samples of {height}x{width} are resized to {shape[0]}x{shape[1]}")
    return lambda rows: resize_samples(generate(rows), shape)


def _concatenate(batches: list[Features]) -> Features:
    def concatenate(name: str) -> torch.Tensor | None:
        tensors = [getattr(batch, name) for batch in batches]
        return None if tensors[0] is None else torch.cat(tensors)

    features = concatenate("features")
    assert features is not None
    return Features(features, concatenate("modes"), concatenate("confidences"))


def _saturation_result(shares: np.ndarray) -> dict[str, MetricResult]:
    """Return the mean discriminator saturation in the last tenth of the run."""
    last = shares[-max(1, len(shares) // 10) :]
    estimate = bootstrap(lambda values: float(values.mean()), last, rng_seed=0, resamples=200)
    name, description = "D_saturation", "images that D classifies with > 99% confidence"
    description += ", last tenth of run"
    return {name: MetricResult(name, "lower", description, estimate, reference=None, ideal=None)}


def table(report: MetricsReport, full: bool = False) -> str:
    """Format the report as a table that fits the terminal.

    The short form has at most twelve rows. If there is no room, the last columns are left out.
    """
    results = report.results
    if full:
        texts = {name: result.description for name, result in results.items()}
    else:
        texts = {name: text for name, text in BRIEF.items() if name in results}
    rows = [("", "samples [95 %]", "other reals", "better", "")]
    rows += [
        (
            name,
            results[name].estimate.brief(),
            _short(results[name].reference),
            results[name].better.replace("neither", ""),
            text,
        )
        for name, text in texts.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = log.columns() - sum(widths[:4]) - 8
    lines = []
    for name, numbers, reference, better, text in rows:
        columns = [name.ljust(widths[0]), numbers.rjust(widths[1]), reference.rjust(widths[2])]
        columns.append(better.ljust(widths[3]))
        if room >= _MIN_ROOM:
            columns.append(textwrap.shorten(text, room, placeholder=" ..."))
        lines.append("  ".join(columns).rstrip())
    more = len(results) - len(texts)
    if more:
        lines.append(f"and {more} more: in {JSON}, or by jobs/evaluate.py with --report full")
    return "\n".join(lines)


def conclusion(report: EvaluationReport) -> str:
    """Return the diagnosis, in lines that fit the terminal."""
    return log.wrap(report.diagnosis.text, "diagnosis   ", 12)


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def differences(a: MetricsReport, b: MetricsReport) -> dict[str, Estimate]:
    """Return the differences of all metrics, `a` minus `b`, with 95 % intervals.

    The samples are independent and compared with the same reference images, so the distances to
    the interval ends add in squares (MOVER, Zou and Donner 2008). The intervals are about these
    two generators, not their settings: to compare settings, train each with several seeds.

    """
    if a.extractor != b.extractor:
        raise ValueError(
            f"reports of the extractors {a.extractor} and {b.extractor} cannot be subtracted"
        )
    return {
        name: difference(a.results[name].estimate, b.results[name].estimate)
        for name in a.results
        if name in b.results and np.isfinite(a[name]) and np.isfinite(b[name])
    }


def difference(a: Estimate, b: Estimate) -> Estimate:
    """Return a - b of two independent estimates with its interval."""
    value = a.value - b.value
    below = np.hypot(a.value - a.low, b.high - b.value)
    above = np.hypot(a.high - a.value, b.value - b.low)
    return Estimate(value, float(value - below), float(value + above), min(a.n, b.n))
