"""The named suite: all collapse metrics of one set of fakes against one set of reals.

A `ReferenceStatistics` is made of the reals once. `measure` is quick, for use while training goes on;
`report` adds to each number its interval, what real images score, and a perfect generator's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from ganray.errors import UserError
from ganray.evaluation.classifier import ImageBatch
from ganray.evaluation.extractors import FeatureExtractor, Features
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
"""ImageBatch that anything can be said of."""
SURE = 0.9
"""Confidence from which on a sample counts as its mode."""
HELD = 0.1
"""A mode is held from this part of its share of the real images on."""

Better = Literal["higher", "lower", "neither"]

METRICS: dict[str, tuple[Better, str]] = {
    "modes": ("higher", "modes with one sample or more"),
    "modes_held": ("higher", "modes with a tenth or more of their real share"),
    "modes_sure": ("higher", "the same, of samples the classifier is sure of"),
    "sure_share": ("higher", f"samples it is sure of (above {SURE:g})"),
    "kl": ("lower", "KL to the real modes, nats"),
    "kl_corrected": ("lower", "the same, less its bias (Miller-Madow)"),
    "js": ("lower", "Jensen-Shannon to the real modes, nats"),
    "recall": ("higher", "reals within the fakes' balls (k=3)"),
    "coverage": ("higher", "reals' balls that hold a fake (k=5)"),
    "precision": ("neither", "fakes within the reals' balls (k=3); 1 in collapse"),
    "density": ("neither", "real balls around a fake (k=5); high in collapse"),
    "vendi": ("higher", "effective number of different samples (Vendi score)"),
    "vendi_share": ("higher", "the same, as a share of the reals'"),
    "effective_rank": ("higher", "directions that the features spread over"),
    "support": ("higher", "different images (birthday test)"),
    "frechet": ("lower", "Frechet distance of the features"),
    "kid": ("lower", "kernel distance of the features"),
    "D_saturation": ("lower", "images that D was surely right about, in the run's last tenth"),
}
"""Direction and meaning, in the order in which they are shown."""


@dataclass(frozen=True)
class ReferenceStatistics:
    """Real images as an extractor sees them. Fakes are compared with it, as many as it holds."""

    seen: Features
    mode_names: tuple[str, ...]
    hash: str
    """Of the extractor."""
    manifold: Manifold
    moments: Moments
    vendi: float
    threshold: float
    """Distance up to which two samples count as the same image."""

    @classmethod
    def of(cls, extractor: FeatureExtractor, images: ImageBatch) -> ReferenceStatistics:
        """Look at reals, uint8 (n, H, W, C), n at least 80.

        Raises:
            ValueError: There are fewer.
        """
        if len(images) < MIN_IMAGES:
            raise UserError(
                f"{len(images)} real images to compare with; must be at least {MIN_IMAGES}; use a"
                " larger set"
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
        """Return the number of reals."""
        return len(self.seen.features)

    def counts(self) -> modes.Counts:
        """ReferenceData of each mode, int64 (K,)."""
        return mode_counts(self.seen, len(self.mode_names))


def mode_counts(seen: Features, classes: int, at_least: float = 0.0) -> modes.Counts:
    """ImageBatch of each mode, int64 (K,), of those with a confidence of `at_least`."""
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
            f"{len(features)} fakes beside {len(reference)} reals; must be as many, as most metrics"
            " depend on both numbers"
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
    """Weights of the modes (K,). Half a real where there is none, or one fake there were inf."""
    return np.maximum(real, 0.5)


_DIVERGENCES: dict[str, Callable[[modes.Counts, modes.Counts], float]] = {
    "kl": lambda fake, real: modes.kl(fake, _expected(real)),
    "kl_corrected": lambda fake, real: modes.kl_corrected(
        fake, _expected(real), reference_counts=real
    ),
    "js": lambda fake, real: modes.js(fake, _expected(real)),
}
"""Of the modes of fakes, int (K,), from those of reals."""


@dataclass(frozen=True)
class MetricResult:
    """One metric of a report."""

    name: str
    fake: Estimate
    """With its 95 % interval over other samples of the same generator, the reals held fixed."""
    real: float | None
    """The same metric of as many other real images; None where it is of generators only."""
    perfect: float | None
    """What a perfect generator scores with this many samples, on average; None: no theory."""

    @property
    def better(self) -> Better:
        """Which way is better."""
        return METRICS[self.name][0]

    @property
    def about(self) -> str:
        """What it says."""
        return METRICS[self.name][1]


@dataclass(frozen=True)
class Report:
    """Everything that is known of one generator's collapse."""

    lines: dict[str, MetricResult]
    """By name, in the order of ``METRICS``."""
    samples: int
    """Fakes, and reals on either side."""
    extractor: str
    """Its hash."""
    mode_names: tuple[str, ...]
    fake_counts: list[int]
    """Of each mode; empty where none are known."""
    real_counts: list[int]
    """Of the reference, in the same order."""

    def with_lines(self, more: dict[str, MetricResult]) -> Report:
        """The same report with more metrics, in the order of ``METRICS``."""
        lines = self.lines | more
        return replace(self, lines={name: lines[name] for name in METRICS if name in lines})

    def __getitem__(self, name: str) -> float:
        """Return a metric's value."""
        return self.lines[name].fake.value

    def missing(self) -> list[str]:
        """Names of the modes that are not held, those of most reals first."""
        fake, real = np.array(self.fake_counts), np.array(self.real_counts)
        if not len(fake):
            return []
        lost = np.flatnonzero((real > 0) & (fake < np.maximum(1, HELD * real)))
        return [self.mode_names[i] for i in lost[np.argsort(-real[lost], kind="stable")]]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values; infinities as None."""
        finite = {name: _finite(asdict(line)) for name, line in self.lines.items()}
        return asdict(self) | {"lines": finite, "missing": self.missing()}


def report(
    reference: ReferenceStatistics,
    fake: Features,
    control: Features,
    *,
    resamples: int = 200,
    rng_seed: int = 0,
) -> Report:
    """Measure the fakes, with intervals, beside other reals and a perfect generator.

    Args:
        reference: Of n reals.
        fake: n fakes.
        control: n reals that are not in the reference.
        resamples: Replicates behind an interval.
        rng_seed: Of the replicates.

    Raises:
        ValueError: As ``measure``.
    """
    found, real = measure(reference, fake), measure(reference, control)
    intervals = _intervals(reference, fake, found, resamples, rng_seed)
    ideal = perfect(reference, control)
    known = fake.modes is not None
    return Report(
        lines={n: MetricResult(n, intervals[n], real[n], ideal.get(n)) for n in found},
        samples=len(reference),
        extractor=reference.hash,
        mode_names=reference.mode_names,
        fake_counts=mode_counts(fake, len(reference.mode_names)).tolist() if known else [],
        real_counts=reference.counts().tolist() if known else [],
    )


def perfect(reference: ReferenceStatistics, control: Features) -> dict[str, float]:
    """Means of a perfect generator's metrics, where theory has them.

    Args:
        reference: Of n reals; the generator is measured by n samples.
        control: n reals that are not in the reference.
    """
    ideal = {
        "coverage": ideal_coverage(len(reference), len(reference)),
        "density": 1.0,
        "vendi_share": 1.0,
        "kid": 0.0,
    }
    if reference.seen.modes is not None:
        real = reference.counts()
        ideal |= _perfect_modes(real, mode_counts(control, len(real)))
    return ideal


def _perfect_modes(
    real: modes.Counts, others: modes.Counts, repeats: int = 200
) -> dict[str, float]:
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
