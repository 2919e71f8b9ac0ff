"""Final report of a trained generator: metrics, diagnosis and a figure."""

from __future__ import annotations

import json
import logging
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ganray import log
from ganray.config.schema import Config
from ganray.data.format import Shape
from ganray.data.transforms import to_uint8
from ganray.distributed import local_device
from ganray.evaluation.breakdown import ModeResult
from ganray.evaluation.comparison import ImageStatistics
from ganray.evaluation.diagnosis import Diagnosis, diagnose
from ganray.evaluation.evaluator import Generate
from ganray.evaluation.extractors import Features
from ganray.evaluation.held_out import MemorizationTest
from ganray.evaluation.reference import (
    ReadImages,
    ReferenceSet,
    check_comparable,
    resize_samples,
)
from ganray.evaluation.report_figure import SHOWN_PAIRS, Page, draw
from ganray.evaluation.suite import (
    RESAMPLES,
    MetricResult,
    MetricsReport,
    report,
    subsample_size,
)
from ganray.files import write_atomic
from ganray.gan.latents import fixed_latents
from ganray.metrics.intervals import Estimate, replicate_interval, subsample_interval
from ganray.metrics.memorization import (
    TrainingNeighbors,
    TrainingSpacing,
    copying_statistic,
    nearest_rows,
)
from ganray.progress import Progress

logger = logging.getLogger(__name__)

_CPU = torch.device("cpu")
_BATCH_SIZE = 250
_NUM_SHOWN = 500
"""Number of samples of which some are shown in the figure."""

JSON, PAGE = "report.json", "report.png"

BRIEF = {
    "precision": "samples among real images",
    "coverage": "real images near a sample",
    "recall": "real images among samples",
    "modes_held": "modes with enough samples",
    "kl": "KL of modes' shares, nats",
    "vendi_share": "Vendi score / real images'",
    "support": "effective number of images",
    "memorization": "samples copied from training",
}
"""Metrics of the short table, in its order, in a few words."""
_SATURATION = "D_saturation"
"""Metric of the discriminator, with an interval over the evaluations of the run."""
_Z = 1.96
"""Half of the 95 % interval of a z-score."""
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
            values |= result.estimate.named(f"report/{name}")
        return {name: float(value) for name, value in values.items() if np.isfinite(value)}

    def tags(self) -> dict[str, str]:
        """Return the tags that a list of runs shows."""
        return {
            "ganray.collapse": ", ".join(self.diagnosis.kinds) or "none",
            "ganray.extractor": self.metrics.extractor,
        }

    def write(self, folder: Path, about: Mapping[str, Any]) -> list[Path]:
        """Write the report as JSON, with its source `about`, and the figure; return both files."""
        diagnosis = {"kinds": self.diagnosis.kinds, "text": self.diagnosis.text}
        content = dict(about) | {"diagnosis": diagnosis} | self.metrics.to_dict()
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
    resamples: int = RESAMPLES,
    title: str,
    saturation: np.ndarray | None = None,
    read_training: ReadImages | None = None,
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
        resamples: Number of subsamples for intervals.
        title: Title of the figure.
        saturation: (n,) D's saturation over the run, in [0, 1]; None if not known.
        read_training: Reads training images for the figure; None: it shows reference images.
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
        generate,
        count,
        reference_set,
        resamples=resamples,
        title=title,
        saturation=saturation,
        read_training=read_training,
    )


def evaluate_samples(
    read_samples: Generate,
    count: int,
    reference_set: ReferenceSet,
    *,
    resamples: int = RESAMPLES,
    title: str,
    saturation: np.ndarray | None = None,
    read_training: ReadImages | None = None,
) -> EvaluationReport:
    """Compare any samples with reference images.

    Args:
        read_samples: Returns the samples at a slice of them, uint8 (n, H, W, C).
        count: Number of samples, see `ReferenceSet.usable_count`.
        reference_set: Images to compare with, at least twice as many.
        resamples: Number of subsamples for intervals.
        title: Title of the figure.
        saturation: See `evaluate_generator`.
        read_training: See `evaluate_generator`.

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
    features, shown = Features.concatenate(batches), torch.cat(shown)
    statistics = ImageStatistics.of(extractor, features)
    metrics = report(reference, statistics, control, resamples=resamples)
    if saturation is not None and len(saturation):
        metrics = replace(metrics, results=metrics.results | _saturation_result(saturation))
    neighbors = spacing = None
    if reference_set.held_out:
        test = MemorizationTest(reference_set.held_out)
        neighbors = test(features.pixels)
        spacing, real_spacing = (
            TrainingSpacing.of(x.nearest, test.training) for x in (neighbors, test.control)
        )
        added = memorization_results(neighbors, spacing, test.control, real_spacing)
        metrics = replace(metrics, results=metrics.results | added)
    diagnosis = diagnose(metrics)
    modes = None if features.modes is None else features.modes[: len(shown)].cpu().numpy()
    if neighbors and spacing and read_training:
        pairs = _closest_training_images(shown, neighbors, spacing, read_training)
    else:
        nearest = nearest_rows(features.features[:SHOWN_PAIRS], reference.features)[1].cpu()
        pairs = torch.stack([shown[: len(nearest)], reference_images[nearest]], 1)
    page = Page(title, shown.numpy(), modes, pairs.numpy())
    return EvaluationReport(metrics, diagnosis, page)


def _closest_training_images(
    shown: torch.Tensor,
    neighbors: TrainingNeighbors,
    spacing: TrainingSpacing,
    read_training: ReadImages,
) -> torch.Tensor:
    """Return samples, nearest training images and theirs, uint8 (n, 3, H, W, C)."""
    height, width, channels = shown.shape[1:]
    shape, closest = (height, width, channels), spacing.closest(neighbors)
    rows = closest[closest < len(shown)][:SHOWN_PAIRS]
    training = [
        resize_samples(read_training(ids[rows].cpu().numpy()), shape)
        for ids in (neighbors.nearest, spacing.neighbors)
    ]
    return torch.stack([shown[rows.cpu()], *training], 1)


def memorization_results(
    samples: TrainingNeighbors,
    spacing: TrainingSpacing,
    held_out: TrainingNeighbors,
    held_out_spacing: TrainingSpacing,
) -> dict[str, MetricResult]:
    """Return the measures of memorization beside those of held-out images."""
    copying = copying_statistic(samples, held_out)
    radius = held_out.radius()
    control = held_out.memorized(radius)
    results = (
        MetricResult(
            "memorization",
            "lower",
            "samples that are copies of training images",
            samples.memorized(radius),
            control.value,
            0.0,
            control=control,
        ),
        MetricResult(
            "authenticity",
            "neither",
            "samples farther from training images than these from each other",
            spacing.authenticity(samples),
            held_out_spacing.authenticity(held_out).value,
            None,
        ),
        MetricResult(
            "copying",
            "neither",
            "z-score C_T of the distances to training images; low for copies and lost variety",
            Estimate(copying, copying - _Z, copying + _Z, len(samples.nearest)),
            0.0,
            0.0,
        ),
    )
    return {result.name: result for result in results}


def _resizing(generate: Generate, shape: Shape) -> Generate:
    """Return the function with its samples resized to the reference shape, (H, W, C)."""
    height, width, channels = generate(slice(0, 1)).shape[1:]
    check_comparable((height, width, channels), shape)
    if (height, width) == shape[:2]:
        return generate
    logger.info(f"samples of {height}x{width} are resized to {shape[0]}x{shape[1]}")
    return lambda rows: resize_samples(generate(rows), shape)


def _saturation_result(shares: np.ndarray) -> dict[str, MetricResult]:
    """Return the mean discriminator saturation in the last tenth of the run."""
    last = shares[-max(1, len(shares) // 10) :]
    estimate = replicate_interval(last.tolist())
    description = "images that D classifies with > 99% confidence, last tenth of run"
    # D cannot classify the images of an ideal generator, and real images alone have no score.
    result = MetricResult(_SATURATION, "lower", description, estimate, reference=None, ideal=0.0)
    return {_SATURATION: result}


def table(report: MetricsReport, full: bool = False) -> str:
    """Format the report as a table that fits the terminal.

    The short form has at most eight rows, each with its meaning if there is room. The full form has
    all, and what they mean below.
    """
    results = report.results
    brief = {name: text for name, text in BRIEF.items() if name in results}
    texts = dict.fromkeys(results, "") if full else brief
    rows = [("", "samples [95 %]", "real images", "ideal", "better", "")]
    for name, text in texts.items():
        result = results[name]
        # Without a formula, other real images are what an ideal generator would make.
        ideal = result.reference if result.ideal is None else result.ideal
        numbers = result.estimate.brief(), _short(result.reference), _short(ideal)
        rows.append((name, *numbers, result.better.replace("neither", ""), text))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = log.columns() - sum(widths[:5]) - 10
    lines = []
    for name, estimate, reference, ideal, better, text in rows:
        numbers = (estimate, reference, ideal)
        columns = [name.ljust(widths[0])]
        columns += [x.rjust(width) for x, width in zip(numbers, widths[1:], strict=False)]
        columns.append(better.ljust(widths[4]))
        if room >= _MIN_ROOM:
            columns.append(textwrap.shorten(text, room, placeholder=" ..."))
        lines.append("  ".join(columns).rstrip())
    if full:
        lines.append("")
        lines += [log.wrap(result.description, f"{n}: ", 4) for n, result in results.items()]
    if full and report.modes:
        text = (
            "within modes, the one that lacks most first; differences from other real images, with"
        )
        lines += ["", log.wrap(f"{text} intervals that hold for all modes together:")]
        lines += [log.wrap(f"{_within(mode)}", f"{mode.name}: ", 4) for mode in report.modes]
        lines.append("")
    more = len(results) - len(texts)
    if more:
        lines.append(f"and {more} more: in {JSON}, or by jobs/evaluate.py with --report full")
    note = f"{report.samples:,} of each; [95 %] over new samples and new real images"
    own = [name for name in texts if results[name].replicates is None and name != _SATURATION]
    note += f"; of {', '.join(own)} over new samples only" if own else ""
    lines.append(log.wrap(note))
    return "\n".join(lines)


def _within(mode: ModeResult) -> str:
    """Return the scores of a mode, each with its difference from other real images."""
    coverage, vendi = mode.coverage.value, mode.vendi_share.value
    return (
        f"coverage {coverage:.3g}, {mode.coverage_difference.brief()};"
        f" Vendi share {vendi:.3g}, {mode.vendi_difference.brief()}"
    )


def conclusion(report: EvaluationReport) -> str:
    """Return the diagnosis, in lines that fit the terminal."""
    return log.wrap(report.diagnosis.text, "diagnosis   ", 12)


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def differences(a: MetricsReport, b: MetricsReport) -> dict[str, Estimate]:
    """Return the differences of metrics, `a` minus `b`, with 95 % intervals.

    The intervals are about these two generators, not their settings: to compare settings, train
    each with several seeds. Both are compared with the same subsamples of the same reference
    images, whose choice cancels out. Metrics without subsamples are left out.
    """
    if (a.extractor, a.samples) != (b.extractor, b.samples):
        raise ValueError(
            f"reports of the extractors {a.extractor} and {b.extractor} on {a.samples} and"
            f" {b.samples} samples cannot be subtracted"
        )
    n, m = a.samples, subsample_size(a.samples)
    return {
        name: subsample_interval(a[name] - b[name], spread - other, m, n)
        for name in a.results
        if (spread := a.results[name].replicates) is not None
        and (other := b.results[name].replicates) is not None
    }
