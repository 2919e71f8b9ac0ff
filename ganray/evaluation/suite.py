"""All collapse metrics of samples against reference images.

``METRICS`` is the only list of them: to add a metric, write its function in ``ganray.metrics`` and
its entry here. `measure` is quick enough for use during training; `report` adds confidence
intervals, the scores of other reference images and those of an ideal generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch

from ganray.errors import UserError
from ganray.evaluation.classifier import ImageBatch
from ganray.evaluation.comparison import CONFIDENT, Comparison, CountStatistic, ImageStatistics
from ganray.evaluation.extractors import FeatureExtractor, PixelExtractor
from ganray.metrics import modes
from ganray.metrics.diversity import birthday_support, effective_rank
from ganray.metrics.frechet import frechet_distance
from ganray.metrics.intervals import Estimate, share_interval
from ganray.metrics.modes import Counts
from ganray.metrics.precision_recall import ideal_coverage

MIN_IMAGES = 80
"""Minimum number of images for any metric."""
HELD = 0.1
"""A mode is held if its share of the samples is at least this part of its reference share."""

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Metric:
    """A metric of samples in comparison with reference images."""

    name: str
    """Name in reports, and in MLflow after `collapse/` and `report/`."""
    better: Better
    description: str
    estimate: Callable[[Comparison], Estimate]
    ideal: Callable[[Comparison], float] | None = None
    """Expected value of an ideal generator, computed from other real images in place of samples;
    None if it is not known."""
    range: tuple[float, float] = (0.0, math.inf)
    """Bounds of the metric, to which intervals are clipped."""
    needs_modes: bool = False
    is_slow: bool = False
    """Whether it is left out during training."""

    def __call__(self, comparison: Comparison) -> Estimate:
        """Return the value with its interval, clipped to the range of the metric."""
        result = self.estimate(comparison)
        low, high = max(self.range[0], result.low), min(self.range[1], result.high)
        return Estimate(result.value, min(low, result.value), max(high, result.value), result.n)


def _held(counts: Counts, reference: Counts, samples: int | None = None) -> int:
    shares = HELD * reference / reference.sum()
    return modes.count_captured(counts, share=shares, samples=samples)


def _held_confidently(counts: Counts, reference: Counts) -> int:
    return _held(counts[:-1], reference, int(counts.sum()))


def _confident_share(c: Comparison) -> Estimate:
    return share_interval(int(c.samples.confident_counts[:-1].sum()), len(c.samples))


def _ideal_modes(c: Comparison) -> float:
    """Return the mean number of modes of real images; simulated counts would miss rare modes."""
    real = c.samples.counts, c.reference.counts
    return (modes.count_captured(real[0]) + modes.count_captured(real[1])) / 2


def _weights(reference: Counts) -> np.ndarray:
    """Return weights (K,), at least 0.5, so that no sample makes a divergence infinite."""
    return np.maximum(reference, 0.5)


def _divergence(name: str, description: str, statistic: CountStatistic, **options: Any) -> Metric:
    return Metric(
        name,
        "lower",
        description,
        lambda c: c.from_counts(statistic),
        lambda c: c.simulate(statistic),
        needs_modes=True,
        **options,
    )


_SHARE, _UNBOUNDED = (0.0, 1.0), (-math.inf, math.inf)

# fmt: off
METRICS: tuple[Metric, ...] = (
    Metric("modes", "higher", "modes with at least one sample",
           lambda c: c.from_counts(lambda counts, _: modes.count_captured(counts)),
           _ideal_modes, needs_modes=True),
    Metric("modes_held", "higher", "modes with at least a tenth of their reference share",
           lambda c: c.from_counts(_held), needs_modes=True),
    Metric("modes_sure", "higher", "modes held by confident samples",
           lambda c: c.from_counts(_held_confidently, c.samples.confident_counts),
           needs_modes=True),
    Metric("sure_share", "higher", f"share of confident samples (probability above {CONFIDENT:g})",
           _confident_share, range=_SHARE, needs_modes=True),
    _divergence("kl", "KL divergence from the reference modes, nats",
                lambda counts, reference: modes.kl(counts, _weights(reference))),
    _divergence("kl_corrected", "KL with its bias subtracted (Miller-Madow), nats",
                lambda counts, reference: modes.kl_corrected(
                    counts, _weights(reference), reference_counts=reference),
                range=_UNBOUNDED),
    _divergence("js", "Jensen-Shannon divergence from the reference modes, nats",
                lambda counts, reference: modes.js(counts, _weights(reference))),
    Metric("recall", "higher", "reference images within the samples' manifold (k=3)",
           lambda c: c.from_manifolds("recall"), range=_SHARE),
    Metric("coverage", "higher", "reference neighbourhoods that contain a sample (k=5)",
           lambda c: c.from_manifolds("coverage"),
           lambda c: ideal_coverage(len(c.reference), len(c.samples)), range=_SHARE),
    Metric("precision", "neither", "samples within the reference manifold (k=3); 1 in collapse",
           lambda c: c.from_manifolds("precision"), range=_SHARE),
    Metric("density", "neither", "reference neighbourhoods per sample (k=5); high in collapse",
           lambda c: c.from_manifolds("density"), lambda _: 1.0),
    Metric("vendi", "higher", "effective number of different samples (Vendi score)",
           lambda c: c.vendi()),
    Metric("vendi_share", "higher", "Vendi score relative to the reference images",
           lambda c: c.vendi(unit=c.reference.vendi), lambda _: 1.0),
    Metric("effective_rank", "higher", "effective rank of the features",
           lambda c: c.from_moments(effective_rank)),
    Metric("support", "higher", "number of different images (birthday test)",
           lambda c: birthday_support(c.samples.directions, c.reference.duplicate_threshold),
           is_slow=True),
    Metric("frechet", "lower", "Frechet distance of the features",
           lambda c: c.from_moments(lambda m: frechet_distance(c.reference.moments, m))),
    Metric("kid", "lower", "kernel distance of the features (KID)",
           lambda c: c.kid(), lambda _: 0.0, range=_UNBOUNDED, is_slow=True),
)
# fmt: on
"""All metrics in the order of reports."""
METRICS_BY_NAME = {metric.name: metric for metric in METRICS}


def available_metrics(samples: ImageStatistics, *, quick: bool = False) -> list[Metric]:
    """Return the metrics that can be computed of these samples; `quick` leaves out slow ones."""
    metrics = [metric for metric in METRICS if samples.has_modes or not metric.needs_modes]
    return [metric for metric in metrics if not (quick and metric.is_slow)]


def measure(
    reference: ImageStatistics, samples: ImageStatistics, *, quick: bool = False
) -> dict[str, float]:
    """Return the metrics of n samples by name, compared with n reference images.

    Args:
        reference: Statistics of the reference images.
        samples: Statistics of the samples.
        quick: Leave out `support` and `kid`, which take as long as all others together.

    Returns:
        Plain numbers; `support` may be inf.
    """
    comparison = Comparison(reference, samples)
    metrics = available_metrics(samples, quick=quick)
    return {metric.name: metric(comparison).value for metric in metrics}


@dataclass(frozen=True)
class MetricResult:
    """One metric of a report."""

    name: str
    better: Better
    description: str
    estimate: Estimate
    """Value with a 95 % interval over samples of the generator, for fixed reference images."""
    reference: float | None
    """Value for as many other reference images; None if the metric is of generators only."""
    ideal: float | None
    """Expected value of an ideal generator with this many samples; None if it is not known."""


@dataclass(frozen=True)
class MetricsReport:
    """All metrics of one generator."""

    results: dict[str, MetricResult]
    """Results by name, in the order of ``METRICS``."""
    samples: int
    """Number of samples, of reference images, and of other reference images."""
    extractor: str
    """Hash of the extractor."""
    mode_names: tuple[str, ...]
    sample_counts: list[int]
    """Samples per mode; empty without modes."""
    reference_counts: list[int]
    """Reference images per mode."""

    def __getitem__(self, name: str) -> float:
        """Return the value of a metric."""
        return self.results[name].estimate.value

    def missing(self) -> list[str]:
        """Return the names of modes that are not held, the most frequent first."""
        samples, reference = np.array(self.sample_counts), np.array(self.reference_counts)
        if not len(samples):
            return []
        lost = np.flatnonzero((reference > 0) & (samples < np.maximum(1, HELD * reference)))
        return [self.mode_names[i] for i in lost[np.argsort(-reference[lost], kind="stable")]]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, with None for infinities."""
        return _finite(asdict(self)) | {"missing": self.missing()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def evaluate(
    samples: ImageBatch,
    reference: ImageBatch,
    extractor: FeatureExtractor | None = None,
    *,
    resamples: int = 200,
) -> MetricsReport:
    """Compare generated images with reference images.

    Half of the reference images are compared with the samples; the other half is the control that
    shows what real images score.

    Args:
        samples: uint8 (m, H, W, C) in [0, 255], m at least 80.
        reference: uint8 (n, H, W, C) of the same shape, in random order, n at least 160.
        extractor: Computes features and modes; None: coarse pixels, without modes.
        resamples: Number of replicates per confidence interval.

    Raises:
        UserError: There are too few images.
    """
    count = min(len(samples), len(reference) // 2)
    if count < MIN_IMAGES:
        raise UserError(
            f"{len(samples)} samples and {len(reference)} reference images are too few; use at"
            f" least {MIN_IMAGES} and {2 * MIN_IMAGES}"
        )
    extractor = extractor or PixelExtractor(torch.device("cpu"))
    parts = reference[:count], samples[:count], reference[count : 2 * count]
    statistics = [ImageStatistics.of(extractor, extractor.extract(part)) for part in parts]
    return report(*statistics, resamples=resamples)


def report(
    reference: ImageStatistics,
    samples: ImageStatistics,
    control: ImageStatistics,
    *,
    resamples: int = 200,
    rng_seed: int = 0,
) -> MetricsReport:
    """Measure samples, with intervals, beside other reference images and an ideal generator.

    Args:
        reference: Statistics of n reference images.
        samples: Statistics of n samples.
        control: Statistics of n other reference images.
        resamples: Number of replicates per interval.
        rng_seed: Seed of the replicates.
    """
    comparison = Comparison(reference, samples, resamples, rng_seed)
    others = Comparison(reference, control)
    results = {
        metric.name: MetricResult(
            metric.name,
            metric.better,
            metric.description,
            estimate=metric(comparison),
            reference=metric(others).value,
            ideal=metric.ideal(others) if metric.ideal else None,
        )
        for metric in available_metrics(samples)
    }
    return MetricsReport(
        results=results,
        samples=len(samples),
        extractor=reference.hash,
        mode_names=reference.mode_names,
        sample_counts=samples.counts.tolist() if samples.has_modes else [],
        reference_counts=reference.counts.tolist() if samples.has_modes else [],
    )
