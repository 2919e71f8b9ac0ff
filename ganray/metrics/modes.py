"""Captured modes and how evenly they are hit, from labels and counts per class. Numpy only.

A divergence means little without the number of samples: an ideal sampler scores above 0 as well.
All divergences are in nats, of the empirical distribution *to* the reference ("reverse KL" in the
GAN literature), so they stay finite if modes are empty.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
"""int64 (K,), not negative: the number of samples in each class."""


def count(labels: ArrayLike, classes: int) -> Counts:
    """Return the samples per class, int64 (classes,), of int labels (n,) in [0, classes)."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "iu"):
        raise ValueError(f"labels: {labels.dtype} {labels.shape}; must be integers (n,)")
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"labels: from {labels.min()} to {labels.max()}; must lie in [0, {classes}); pass the "
            "number of classes that the classifier has"
        )
    return np.bincount(labels.astype(np.int64), minlength=classes)


def count_confident(
    labels: ArrayLike, confidences: ArrayLike, classes: int, *, at_least: float = 0.9
) -> Counts:
    """Return ``count`` of the samples with a confidence (n,) in [0, 1] of `at_least` so much.

    Without this gate noise passes for modes: clipped Gaussian noise "captures" 409 of the 1,000
    classes of stacked MNIST, averages of two digits 990. Compare with the share of reference images
    that passes the gate.
    """
    labels, confidences = np.asarray(labels), np.asarray(confidences)
    if labels.shape != confidences.shape:
        raise ValueError(
            f"confidences: {confidences.shape} for labels {labels.shape}; must be one per label"
        )
    return count(labels[confidences >= at_least], classes)


def count_captured(counts: ArrayLike, *, share: ArrayLike = 0.0, samples: int | None = None) -> int:
    """Return the number of modes with at least one sample and this share of all samples.

    VEEGAN and PacGAN count a mode from one sample on. With a share, such as 0.01 for the ten modes
    of MNIST, the result does not grow with the number of samples.

    Args:
        counts: int (K,).
        share: Minimum share of `samples` in [0, 1], for all modes or (K,) for each.
        samples: Number of samples; None for the sum of `counts`. Pass it for gated counts, which
            sum to less.
    """
    counts = _check_counts(counts)
    total = counts.sum() if samples is None else samples
    # In floating point, a share of 0.07 of 100 is 7.000000000000001.
    needed = np.asarray(share) * total * (1 - 1e-12)
    return int((counts >= np.maximum(1, needed)).sum())


def kl(counts: ArrayLike, reference: ArrayLike | None = None) -> float:
    """Return the Kullback-Leibler divergence in nats: sum over classes of p ln(p / q), 0 ln 0 = 0.

    It lies in [0, ln K] if q is uniform; ln K means that all samples are in one class. It is biased
    by about (K - 1) / 2N, and by as much again if the reference consists of N samples as well: see
    ``kl_corrected``.

    Args:
        counts: int (K,), normalized to p. The result is nan if all are 0.
        reference: Weights of the classes (K,) at any scale, normalized to q; None for uniform. The
            result is inf if samples fall into a class of weight 0.
    """
    return _kl(*_distributions(counts, reference))


def kl_corrected(
    counts: ArrayLike,
    reference: ArrayLike | None = None,
    *,
    reference_counts: ArrayLike | None = None,
) -> float:
    """Return ``kl`` less its first-order bias (m - 1) / 2N, with m classes hit (Miller 1955).

    For an ideal sampler it scatters around 0. It is not clipped at 0, which would bias means over
    runs. Only classes that were hit count, as those that a collapsed generator never draws add no
    bias; so it corrects too little where N is not well above K.

    Args:
        counts: As for ``kl``.
        reference: As for ``kl``.
        reference_counts: Counts (K,) from which the reference was estimated; their bias is
            subtracted too. None if the reference is exact, like a uniform one.
    """
    counts = _check_counts(counts)
    if not counts.any():
        return float("nan")
    bias = _bias(counts)
    if reference_counts is not None:
        bias += _bias(_check_counts(reference_counts))
    return kl(counts, reference) - bias


def js(counts: ArrayLike, reference: ArrayLike | None = None) -> float:
    """Return the Jensen-Shannon divergence in nats, in [0, ln 2]; scipy's distance is its root.

    It is the mean divergence of p and q from their average. Arguments and nan are as for ``kl``.
    """
    p, q = _distributions(counts, reference)
    middle = (p + q) / 2
    return (_kl(p, middle) + _kl(q, middle)) / 2


def _kl(p: Floats, q: Floats) -> float:
    hit = p > 0
    if np.isnan(p).any():
        return float("nan")
    with np.errstate(divide="ignore"):
        return float((p[hit] * np.log(p[hit] / q[hit])).sum())


def _bias(counts: Counts) -> float:
    """Return the bias of a divergence if one distribution is estimated from these counts."""
    return (np.count_nonzero(counts) - 1) / (2 * counts.sum())


def _check_counts(counts: ArrayLike) -> Counts:
    counts = np.asarray(counts)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise ValueError(
            f"counts: {counts.dtype} {counts.shape}; must be integers (K,), not negative"
        )
    return counts.astype(np.int64)


def _distributions(counts: ArrayLike, reference: ArrayLike | None) -> tuple[Floats, Floats]:
    """Return (p, q); p is nan if there are no samples."""
    counts = _check_counts(counts)
    with np.errstate(invalid="ignore"):
        p = counts / counts.sum()
    if reference is None:
        return p, np.full(len(p), 1 / len(p))
    weights = np.asarray(reference, np.float64)
    total = weights.sum()
    if weights.shape != p.shape or not (weights >= 0).all() or not 0 < total < np.inf:
        raise ValueError(
            f"reference: {weights.shape} with sum {total} for counts {p.shape}; must be one weight "
            "per class, not negative, with a positive sum"
        )
    return p, weights / total
