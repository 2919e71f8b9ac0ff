"""All collapse metrics of a set of samples against a set of reference images.

`ReferenceStatistics` are computed once. `measure` is quick enough for use during training; `report`
adds confidence intervals, the scores of other reference images and those of an ideal generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from ganray.errors import UserError
from ganray.evaluation.classifier import ImageBatch
from ganray.evaluation.extractors import FeatureExtractor, Features, PixelExtractor
from ganray.metrics import intervals, modes
from ganray.metrics.diversity import (
    birthday_support,
    duplicate_threshold,
    effective_rank,
    normalize_rows,
    vendi_from_moments,
    vendi_score,
)
from ganray.metrics.frechet import Moments, frechet_distance, kid
from ganray.metrics.intervals import (
    Estimate,
    bootstrap_counts,
    interval_from_replicates,
    share_interval,
)
from ganray.metrics.precision_recall import Manifold, ideal_coverage, manifold_scores

MIN_IMAGES = 80
"""Minimum number of images for any metric."""
SURE = 0.9
"""Confidence above which a sample is confident about its mode."""
HELD = 0.1
"""A mode is held if its share of the samples is at least this part of its reference share."""

Better = Literal["higher", "lower", "neither"]

METRICS: dict[str, tuple[Better, str]] = {
    "modes": ("higher", "modes with at least one sample"),
    "modes_held": ("higher", "modes with at least a tenth of their reference share"),
    "modes_sure": ("higher", "modes held by confident samples"),
    "sure_share": ("higher", f"share of confident samples (probability above {SURE:g})"),
    "kl": ("lower", "KL divergence from the reference modes, nats"),
    "kl_corrected": ("lower", "KL with its bias subtracted (Miller-Madow), nats"),
    "js": ("lower", "Jensen-Shannon divergence from the reference modes, nats"),
    "recall": ("higher", "reference images within the samples' manifold (k=3)"),
    "coverage": ("higher", "reference neighbourhoods that contain a sample (k=5)"),
    "precision": ("neither", "samples within the reference manifold (k=3); 1 in collapse"),
    "density": ("neither", "reference neighbourhoods per sample (k=5); high in collapse"),
    "vendi": ("higher", "effective number of different samples (Vendi score)"),
    "vendi_share": ("higher", "Vendi score relative to the reference images"),
    "effective_rank": ("higher", "effective rank of the features"),
    "support": ("higher", "number of different images (birthday test)"),
    "frechet": ("lower", "Frechet distance of the features"),
    "kid": ("lower", "kernel distance of the features (KID)"),
    "D_saturation": ("lower", "images that D classifies with > 99% confidence, last tenth of run"),
}
"""Direction and description by name, in display order."""


@dataclass(frozen=True)
class ReferenceStatistics:
    """Features and statistics of the reference images, which as many samples are compared with."""

    seen: Features
    mode_names: tuple[str, ...]
    hash: str
    """Hash of the extractor."""
    manifold: Manifold
    moments: Moments
    vendi: float
    threshold: float
    """Distance up to which two samples count as the same image."""

    @classmethod
    def of(cls, extractor: FeatureExtractor, images: ImageBatch) -> ReferenceStatistics:
        """Compute the statistics of reference images, uint8 (n, H, W, C), n at least 80.

        Raises:
            UserError: There are fewer.
        """
        if len(images) < MIN_IMAGES:
            raise UserError(
                f"{len(images)} reference images are too few; use at least {MIN_IMAGES}"
            )
        seen = extractor.extract(images)
        features = seen.features
        return cls(
            seen=seen,
            mode_names=extractor.mode_names,
            hash=extractor.hash,
            manifold=Manifold.fit(features, 5),
            moments=Moments.of(features),
            vendi=vendi_score(features),
            threshold=duplicate_threshold(features),
        )

    def __len__(self) -> int:
        """Return the number of reference images."""
        return len(self.seen.features)

    def counts(self) -> modes.Counts:
        """Return the number of reference images per mode, int64 (K,)."""
        return mode_counts(self.seen, len(self.mode_names))


def mode_counts(seen: Features, classes: int, at_least: float = 0.0) -> modes.Counts:
    """Return the number of images per mode with a confidence of `at_least`, int64 (K,)."""
    assert seen.modes is not None
    assert seen.confidences is not None
    labels, confidences = seen.modes.cpu().numpy(), seen.confidences.cpu().numpy()
    return modes.count_confident(labels, confidences, classes, at_least=at_least)


def measure(
    reference: ReferenceStatistics, fake: Features, *, quick: bool = False
) -> dict[str, float]:
    """All metrics of the fakes by their names in ``METRICS``, those that need modes where known.

    Args:
        reference: Of n reals.
        fake: n fakes, seen by the same extractor.
        quick: Leave out `support` and `kid`, which take as long as all others together.

    Returns:
        Plain numbers; `support` may be inf.

    Raises:
        ValueError: There are not n fakes, or their features are not finite.
    """
    features = fake.features
    if len(features) != len(reference):
        raise UserError(
            f"{len(features)} samples but {len(reference)} reference images; the numbers must be"
            " equal, as most metrics depend on both"
        )
    balls = manifold_scores(reference.manifold, Manifold.fit(features, 3))
    moments, vendi = Moments.of(features), vendi_score(features)
    values = {
        "recall": balls.recall,
        "coverage": balls.coverage,
        "precision": balls.precision,
        "density": balls.density,
        "vendi": vendi,
        "vendi_share": vendi / reference.vendi,
        "effective_rank": effective_rank(moments),
        "frechet": frechet_distance(reference.moments, moments),
    }
    if fake.modes is not None:
        values |= _mode_metrics(reference, fake)
    if not quick:
        values["kid"] = kid(reference.seen.features, features)
        values["support"] = birthday_support(features, reference.threshold).value
    return {name: values[name] for name in METRICS if name in values}


def _mode_metrics(reference: ReferenceStatistics, fake: Features) -> dict[str, float]:
    real, n = reference.counts(), len(fake.features)
    counts = mode_counts(fake, len(real))
    sure = mode_counts(fake, len(real), at_least=SURE)
    shares = HELD * real / real.sum()
    return {
        "modes": modes.count_captured(counts),
        "modes_held": modes.count_captured(counts, share=shares),
        "modes_sure": modes.count_captured(sure, share=shares, samples=n),
        "sure_share": float(sure.sum() / n),
    } | {name: divergence(counts, real) for name, divergence in _DIVERGENCES.items()}


def _expected(real: modes.Counts) -> np.ndarray:
    """Return weights (K,): 0.5 for modes without reference images, or one sample gave infinity."""
    return np.maximum(real, 0.5)


_DIVERGENCES: dict[str, Callable[[modes.Counts, modes.Counts], float]] = {
    "kl": lambda fake, real: modes.kl(fake, _expected(real)),
    "kl_corrected": lambda fake, real: modes.kl_corrected(
        fake, _expected(real), reference_counts=real
    ),
    "js": lambda fake, real: modes.js(fake, _expected(real)),
}
"""Divergences of the samples' mode counts, int (K,), from the reference counts."""


@dataclass(frozen=True)
class MetricResult:
    """One metric of a report."""

    name: str
    estimate: Estimate
    """Value with a 95 % interval over samples of the generator, for fixed reference images."""
    reference: float | None
    """Value for as many other reference images; None if the metric is of generators only."""
    ideal: float | None
    """Expected value of an ideal generator with this many samples; None: not known."""

    @property
    def better(self) -> Better:
        """Direction that is better."""
        return METRICS[self.name][0]

    @property
    def description(self) -> str:
        """Short description."""
        return METRICS[self.name][1]


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

    def with_results(self, more: dict[str, MetricResult]) -> MetricsReport:
        """Return the report with further metrics, in the order of ``METRICS``."""
        results = self.results | more
        return replace(self, results={name: results[name] for name in METRICS if name in results})

    def __getitem__(self, name: str) -> float:
        """Return the value of a metric."""
        return self.results[name].estimate.value

    def missing(self) -> list[str]:
        """Return the names of modes that are not held, the most frequent first."""
        fake, real = np.array(self.sample_counts), np.array(self.reference_counts)
        if not len(fake):
            return []
        lost = np.flatnonzero((real > 0) & (fake < np.maximum(1, HELD * real)))
        return [self.mode_names[i] for i in lost[np.argsort(-real[lost], kind="stable")]]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, with None for infinities."""
        finite = {name: _finite(asdict(result)) for name, result in self.results.items()}
        return asdict(self) | {"results": finite, "missing": self.missing()}


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
    extractor = extractor or PixelExtractor(torch.device("cpu"))
    statistics = ReferenceStatistics.of(extractor, reference[:count])
    control = extractor.extract(reference[count : 2 * count])
    return report(statistics, extractor.extract(samples[:count]), control, resamples=resamples)


def report(
    reference: ReferenceStatistics,
    fake: Features,
    control: Features,
    *,
    resamples: int = 200,
    rng_seed: int = 0,
) -> MetricsReport:
    """Measure samples, with intervals, beside other reference images and an ideal generator.

    Args:
        reference: Statistics of n reference images.
        fake: Features of n samples.
        control: Features of n other reference images.
        resamples: Number of replicates per interval.
        rng_seed: Seed of the replicates.

    Raises:
        ValueError: As in ``measure``.
    """
    found, real = measure(reference, fake), measure(reference, control)
    intervals = _intervals(reference, fake, found, resamples, rng_seed)
    ideal = ideal_scores(reference, control)
    known = fake.modes is not None
    return MetricsReport(
        results={n: MetricResult(n, intervals[n], real[n], ideal.get(n)) for n in found},
        samples=len(reference),
        extractor=reference.hash,
        mode_names=reference.mode_names,
        sample_counts=mode_counts(fake, len(reference.mode_names)).tolist() if known else [],
        reference_counts=reference.counts().tolist() if known else [],
    )


def ideal_scores(reference: ReferenceStatistics, control: Features) -> dict[str, float]:
    """Return the expected metrics of an ideal generator with n samples, where they are known.

    Args:
        reference: Statistics of n reference images.
        control: Features of n other reference images.
    """
    ideal = {
        "coverage": ideal_coverage(len(reference), len(reference)),
        "density": 1.0,
        "vendi_share": 1.0,
        "kid": 0.0,
    }
    if reference.seen.modes is not None:
        real = reference.counts()
        ideal |= _ideal_modes(real, mode_counts(control, len(real)))
    return ideal


def _ideal_modes(real: modes.Counts, others: modes.Counts, repeats: int = 200) -> dict[str, float]:
    """Both sides are drawn again: the reals are a sample as well, and add as much as the fakes.

    n reals hit as many modes as n samples of a perfect generator do, on average; to draw from
    their counts would put those that none of them has out of its reach.
    """
    n, rng = int(real.sum()), np.random.default_rng(0)
    pairs = rng.multinomial(n, (real + others) / (2 * n), size=(repeats, 2))
    ideal = {"modes": (modes.count_captured(real) + modes.count_captured(others)) / 2}
    for name, divergence in _DIVERGENCES.items():
        ideal[name] = float(np.mean([divergence(*pair) for pair in pairs]))
    return ideal


def _intervals(
    reference: ReferenceStatistics,
    fake: Features,
    found: dict[str, float],
    resamples: int,
    rng_seed: int,
) -> dict[str, Estimate]:
    features, n = fake.features, len(fake.features)
    how: dict[str, Any] = {"rng_seed": rng_seed}
    vendis = intervals.half_sample_moments(
        vendi_from_moments, normalize_rows(features), resamples, **how
    )
    replicates = intervals.half_sample_manifold(reference.manifold, features, resamples, **how) | {
        "vendi": vendis,
        "vendi_share": vendis / reference.vendi,
        "effective_rank": intervals.half_sample_moments(effective_rank, features, resamples, **how),
        "frechet": intervals.half_sample_moments(
            lambda part: frechet_distance(reference.moments, part), features, resamples, **how
        ),
        "kid": intervals.half_sample_kid(reference.seen.features, features, resamples, **how),
    }
    estimates = {
        name: interval_from_replicates(found[name], values, n)
        for name, values in replicates.items()
    }
    estimates["support"] = birthday_support(features, reference.threshold)
    if fake.modes is not None:
        estimates |= _mode_intervals(reference, fake, resamples, rng_seed)
    return {name: _clipped(name, estimates[name]) for name in found}


def _mode_intervals(
    reference: ReferenceStatistics, fake: Features, resamples: int, rng_seed: int
) -> dict[str, Estimate]:
    real, n = reference.counts(), len(fake.features)
    counts = mode_counts(fake, len(real))
    sure = mode_counts(fake, len(real), at_least=SURE)
    shares = HELD * real / real.sum()

    def of(statistic: Any, drawn: Any = counts) -> Estimate:
        return _counted(statistic, drawn, resamples, rng_seed)

    # One class more, of those that are not sure: they are drawn again, too.
    gated = np.append(sure, n - sure.sum())
    return {
        "modes": of(modes.count_captured),
        "modes_held": of(lambda drawn: modes.count_captured(drawn, share=shares)),
        "modes_sure": of(
            lambda drawn: modes.count_captured(drawn[:-1], share=shares, samples=n), drawn=gated
        ),
        "sure_share": share_interval(int(sure.sum()), n),
    } | {
        name: of(lambda drawn, divergence=divergence: divergence(drawn, real))
        for name, divergence in _DIVERGENCES.items()
    }


def _counted(statistic: Any, counts: modes.Counts, resamples: int, rng_seed: int) -> Estimate:
    """`bootstrap_counts` of a statistic of one row of counts."""
    return bootstrap_counts(
        lambda rows: np.apply_along_axis(statistic, -1, rows),
        counts,
        rng_seed=rng_seed,
        resamples=resamples,
    )


def _clipped(name: str, estimate: Estimate) -> Estimate:
    """Without the part of a centred interval that no value of the metric could have."""
    least = -math.inf if name in ("kid", "kl_corrected") else 0.0
    most = 1.0 if name in ("recall", "coverage", "precision") else math.inf
    low, high = max(least, estimate.low), min(most, estimate.high)
    return Estimate(estimate.value, min(low, estimate.value), max(high, estimate.value), estimate.n)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
