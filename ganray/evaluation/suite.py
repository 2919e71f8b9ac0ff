"""All collapse metrics of samples against reference images.

``METRICS`` is the only list of them: to add a metric, write its function in ``ganray.metrics`` and
its entry here. `measure` is quick enough for use during training; `report` adds confidence
intervals, the scores of other reference images and those of an ideal generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from ganray.errors import UserError
from ganray.evaluation.breakdown import (
    HELD,
    ModeResult,
    ShareResult,
    comparable_modes,
    compare_shares,
    lost_modes,
    mode_variety,
)
from ganray.evaluation.classifier import ImageBatch
from ganray.evaluation.comparison import CONFIDENT, Comparison, CountStatistic, ImageStatistics
from ganray.evaluation.extractors import FeatureExtractor, PixelExtractor
from ganray.evaluation.pretrained import NETWORKS
from ganray.metrics import modes
from ganray.metrics.diversity import birthday_support, effective_rank
from ganray.metrics.frechet import cmmd, kid
from ganray.metrics.intervals import Estimate, share_interval, subsample_interval
from ganray.metrics.modes import Counts
from ganray.metrics.precision_recall import ideal_coverage
from ganray.progress import Progress

MIN_IMAGES = 80
"""Minimum number of images for any metric."""
SUBSAMPLE = 500
"""Maximum number of images in a subsample, so that intervals take the same time for any n."""
RESAMPLES = 50
"""Subsamples for intervals, which make their widths right to 10 %."""
QUESTION_LEVEL = 0.99
"""Probability with which the interval of a difference from other real images is meant to hold, and
those of all modes together. The diagnosis rests on about six of them: false alarms are measured in
`tests/benchmarks/evaluation.py`."""

_TINY = 1e-9

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Metric:
    """A metric of samples in comparison with reference images."""

    name: str
    """Name in reports, and in MLflow after `collapse/` and `report/`."""
    better: Better
    description: str
    value: Callable[[Comparison], float]
    ideal: Callable[[Comparison], float] | None = None
    """Expected value of an ideal generator, computed from other real images in place of samples;
    None: there is no formula, and other real images show it."""
    range: tuple[float, float] = (0.0, math.inf)
    """Bounds of the metric, to which intervals are clipped."""
    needs_modes: bool = False
    networks: tuple[str, ...] | None = None
    """Published networks whose features it is defined for, "other" for all other extractors; None:
    any features."""
    is_slow: bool = False
    """Whether it is left out during training."""
    interval: Callable[[Comparison], Estimate] | None = None
    """The metric with an interval of its own; None: by subsamples. Metrics of pairs need it, as a
    tenth of the images has a hundredth of the pairs."""


def clip(estimate: Estimate, range: tuple[float, float]) -> Estimate:
    """Return the estimate with its interval clipped to the range of the metric."""
    low, high = max(range[0], estimate.low), min(range[1], estimate.high)
    return replace(estimate, low=min(low, estimate.value), high=max(high, estimate.value))


def _held(counts: Counts, reference: Counts, samples: int | None = None) -> int:
    shares = HELD * reference / reference.sum()
    return modes.count_captured(counts, share=shares, samples=samples)


def _frechet(c: Comparison) -> float:
    return c.frechet


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
        lambda c: statistic(c.samples.counts, c.reference.counts),
        lambda c: c.simulate(statistic),
        needs_modes=True,
        **options,
    )


def _duplicate_share(c: Comparison) -> Estimate:
    return share_interval(int((c.duplicates > 0).sum()), len(c.samples))


_SHARE, _UNBOUNDED = (0.0, 1.0), (-math.inf, math.inf)

# fmt: off
METRICS: tuple[Metric, ...] = (
    Metric("modes", "higher", "modes with at least one sample",
           lambda c: modes.count_captured(c.samples.counts),
           _ideal_modes, needs_modes=True),
    Metric("modes_held", "higher", "modes with at least a tenth of their reference share",
           lambda c: _held(c.samples.counts, c.reference.counts), needs_modes=True),
    Metric("modes_sure", "higher", "modes held by confident samples",
           lambda c: _held(c.samples.confident_counts[:-1], c.reference.counts, len(c.samples)),
           needs_modes=True),
    Metric("sure_share", "higher", f"share of confident samples (probability above {CONFIDENT:g})",
           lambda c: c.samples.confident_counts[:-1].sum() / len(c.samples),
           range=_SHARE, needs_modes=True),
    _divergence("kl", "KL divergence from the reference modes, nats",
                lambda counts, reference: modes.kl(counts, _weights(reference))),
    _divergence("kl_corrected", "KL with its bias subtracted (Miller-Madow), nats",
                lambda counts, reference: modes.kl_corrected(
                    counts, _weights(reference), reference_counts=reference),
                range=_UNBOUNDED),
    _divergence("js", "Jensen-Shannon divergence from the reference modes, nats",
                lambda counts, reference: modes.js(counts, _weights(reference))),
    Metric("recall", "higher", "reference images within the samples' manifold (k=3)",
           lambda c: c.scores.recall, range=_SHARE),
    Metric("coverage", "higher", "reference neighborhoods that contain a sample (k=5)",
           lambda c: c.scores.coverage,
           lambda c: ideal_coverage(len(c.reference), len(c.samples)), range=_SHARE),
    Metric("precision", "neither", "samples within the reference manifold (k=3); 1 in collapse",
           lambda c: c.scores.precision, range=_SHARE),
    Metric("density", "neither", "reference neighborhoods per sample (k=5); high in collapse",
           lambda c: c.scores.density, lambda _: 1.0),
    Metric("outliers", "lower", "samples that are like no reference image; 0.01 if all are good",
           lambda c: c.scores.outliers, range=_SHARE),
    Metric("vendi", "higher", "effective number of different samples (Vendi score)",
           lambda c: c.samples.vendi),
    Metric("vendi_share", "higher", "Vendi score relative to the reference images",
           lambda c: c.samples.vendi / c.reference.vendi, lambda _: 1.0),
    Metric("effective_rank", "higher", "effective rank of the features",
           lambda c: effective_rank(c.samples.moments)),
    Metric("spread", "neither", "standard deviation of coarse pixels relative to the reference",
           lambda c: c.samples.spreads[1] / max(c.reference.spreads[1], _TINY), lambda _: 1.0),
    Metric("duplicates", "lower", "samples with a near duplicate among the samples",
           lambda c: _duplicate_share(c).value, is_slow=True, interval=_duplicate_share),
    Metric("support", "higher", "effective number of different images (birthday test)",
           lambda c: birthday_support(c.duplicates).value,
           is_slow=True, interval=lambda c: birthday_support(c.duplicates)),
    Metric("frechet", "lower", "Frechet distance of the features",
           _frechet, networks=("other",)),
    Metric("fid", "lower", "Frechet inception distance (FID)", _frechet, networks=("inception",)),
    Metric("fd_dinov2", "lower", "Frechet distance of DINOv2 features (FD-DINOv2)",
           _frechet, networks=("dinov2",)),
    Metric("kid", "lower", "kernel distance of the features (KID)",
           lambda c: kid(c.reference.features, c.samples.features),
           lambda _: 0.0, range=_UNBOUNDED, networks=("inception", "other"), is_slow=True),
    Metric("cmmd", "lower", "kernel distance of CLIP embeddings (CMMD)",
           lambda c: cmmd(c.reference.features, c.samples.features),
           networks=("clip",), is_slow=True),
)
# fmt: on
"""All metrics in the order of reports."""
METRICS_BY_NAME = {metric.name: metric for metric in METRICS}


def subsample_size(n: int) -> int:
    """Return the number of images in a subsample of n."""
    return min(n // 2, SUBSAMPLE)


def available_metrics(samples: ImageStatistics, *, quick: bool = False) -> list[Metric]:
    """Return the metrics that can be computed of these samples; `quick` leaves out slow ones."""
    name = samples.hash.split("-")[0]
    network = name if name in NETWORKS else "other"
    return [
        metric
        for metric in METRICS
        if (samples.has_modes or not metric.needs_modes)
        and (metric.networks is None or network in metric.networks)
        and not (quick and metric.is_slow)
    ]


def measure(
    reference: ImageStatistics, samples: ImageStatistics, *, quick: bool = False
) -> dict[str, float]:
    """Return the metrics of n samples by name, compared with n reference images.

    Args:
        reference: Statistics of the reference images.
        samples: Statistics of the samples.
        quick: Leave out slow metrics, which take as long as all others together.

    Returns:
        Plain numbers; `support` may be inf.
    """
    comparison = Comparison(reference, samples)
    metrics = available_metrics(samples, quick=quick)
    return {metric.name: float(metric.value(comparison)) for metric in metrics}


@dataclass(frozen=True)
class MetricResult:
    """One metric of a report."""

    name: str
    better: Better
    description: str
    estimate: Estimate
    """Value with a 95 % interval, over samples of the generator and reference images, or without
    `replicates` over samples only."""
    reference: float | None
    """Value for as many other reference images; None if the metric is of generators only."""
    ideal: float | None
    """Expected value of an ideal generator with this many samples; None if it is not known."""
    difference: Estimate | None = None
    """Value less that of other reference images, with a ``QUESTION_LEVEL`` interval; None if the
    metric has an interval of its own."""
    control: Estimate | None = None
    """`reference` with its interval, if the metric has one of its own."""
    replicates: np.ndarray | None = field(default=None, repr=False, compare=False)
    """Values of the subsamples, (R,), by which results of two generators are compared."""


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
    missing: tuple[str, ...] = ()
    """Names of modes that the samples do not hold, see `lost_modes`, the most frequent first."""
    modes: tuple[ModeResult, ...] = ()
    """Variety within each mode with enough images, the one that lacks most first."""
    shares: tuple[ShareResult, ...] = ()
    """Shares of attributes, or of modes if there are no attributes."""

    def __getitem__(self, name: str) -> float:
        """Return the value of a metric."""
        return self.results[name].estimate.value

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, with None for infinities."""
        return _finite(asdict(self))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items() if key != "replicates"}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def evaluate(
    samples: ImageBatch,
    reference: ImageBatch,
    extractor: FeatureExtractor | None = None,
    *,
    resamples: int = RESAMPLES,
) -> MetricsReport:
    """Compare generated images with reference images.

    Half of the reference images are compared with the samples; the other half is the control that
    shows what real images score.

    Args:
        samples: uint8 (m, H, W, C) in [0, 255], m at least 80.
        reference: uint8 (n, H, W, C) of the same shape, in random order, n at least 160.
        extractor: Computes features and modes; None: coarse pixels, without modes.
        resamples: Number of subsamples for the confidence intervals, at least 2.

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
    resamples: int = RESAMPLES,
    rng_seed: int = 0,
) -> MetricsReport:
    """Measure samples, with intervals, beside other reference images and an ideal generator.

    Args:
        reference: Statistics of n reference images.
        samples: Statistics of n samples.
        control: Statistics of n other reference images.
        resamples: Number of subsamples for the intervals, at least 2.
        rng_seed: Seed of the subsamples.
    """
    sides = Comparison(reference, samples), Comparison(reference, control)
    rng, n = np.random.default_rng(rng_seed), len(reference)
    m = subsample_size(n)
    metrics = [metric for metric in available_metrics(samples) if not metric.interval]
    compared = comparable_modes((samples, reference, control), m / n)

    def scores(*sides: Comparison) -> np.ndarray:
        """Return all metrics of each side, then those of each mode, (2, M + 2 K)."""
        values = [[metric.value(side) for metric in metrics] for side in sides]
        images = [side.samples for side in sides]
        by_mode = mode_variety(sides[0].reference, images, compared)
        return np.hstack([values, by_mode.reshape(len(sides), -1)])

    values = scores(*sides)
    replicates = np.empty((resamples, *values.shape))
    with Progress(resamples, "computing intervals", "subsamples") as progress:
        for r in range(resamples):
            # Reference images are a sample, too. All sides share them, which cancels out in
            # differences, also in those of two generators.
            rows = [torch.from_numpy(rng.permutation(n)[:m]) for _ in range(2)]
            part = reference.take(rows[0])
            parts = [Comparison(part, images.take(rows[1])) for images in (samples, control)]
            replicates[r] = scores(*parts)
            progress.add(1)

    def estimate(column: int, range: tuple[float, float] = (0.0, math.inf)) -> Estimate:
        return clip(subsample_interval(values[0, column], replicates[:, 0, column], m, n), range)

    def difference(column: int, tests: int = 1) -> Estimate:
        level = 1 - (1 - QUESTION_LEVEL) / tests
        value, spread = values[0] - values[1], replicates[:, 0] - replicates[:, 1]
        return subsample_interval(value[column], spread[:, column], m, n, level)

    results = {}
    for metric in available_metrics(samples):
        about = metric.name, metric.better, metric.description
        ideal = metric.ideal(sides[1]) if metric.ideal else None
        if metric.interval:
            own, real = map(metric.interval, sides)
            results[metric.name] = MetricResult(*about, own, real.value, ideal, control=real)
            continue
        column = metrics.index(metric)
        results[metric.name] = MetricResult(
            *about,
            estimate(column, metric.range),
            float(values[1, column]),
            ideal,
            difference(column),
            replicates=replicates[:, 0, column],
        )
    tests = 2 * len(compared)
    columns = [len(metrics) + 2 * i for i in range(len(compared))]
    by_mode = [
        ModeResult(
            reference.mode_names[mode],
            *(estimate(at, _SHARE), difference(at, tests)),
            *(estimate(at + 1), difference(at + 1, tests)),
        )
        for mode, at in zip(compared, columns, strict=True)
    ]
    return MetricsReport(
        results=results,
        samples=n,
        extractor=reference.hash,
        mode_names=reference.mode_names,
        sample_counts=samples.counts.tolist() if samples.has_modes else [],
        reference_counts=reference.counts.tolist() if samples.has_modes else [],
        missing=tuple(
            reference.mode_names[mode]
            for mode in lost_modes(reference, samples, control, QUESTION_LEVEL)
        ),
        modes=tuple(sorted(by_mode, key=lambda mode: mode.lack)),
        shares=compare_shares(reference, samples, control, QUESTION_LEVEL),
    )
