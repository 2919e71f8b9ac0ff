"""Which modes were hit, and how evenly: functions of labels and of counts per class. Numpy only.

A divergence means little without the number of samples behind it: a perfect sampler has one above
0 too. All divergences are in nats, of the empirical distribution
*to* the reference ("reverse KL" in the GAN literature), so that empty modes keep them finite.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
"""int64 (K,), not negative: how many samples fell into each class."""


def count(labels: ArrayLike, classes: int) -> Counts:
    """Samples of each class, int64 (classes,), of int labels (n,) in [0, classes).

    Raises:
        ValueError: A label lies outside, or labels are no integers (n,).
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "iu"):
        raise ValueError(f"labels: {labels.dtype} {labels.shape}; must be integers (n,)")
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"labels: from {labels.min()} to {labels.max()}; must lie in [0, {classes}); give the "
            "number of classes that the classifier has"
        )
    return np.bincount(labels.astype(np.int64), minlength=classes)


def count_confident(
    labels: ArrayLike, confidences: ArrayLike, classes: int, *, at_least: float = 0.9
) -> Counts:
    """As ``count``, of the samples whose confidence (n,) in [0, 1] is `at_least` so much.

    Without this gate noise passes for modes: clipped Gaussian noise "captures" 409 of the 1,000
    classes of stacked MNIST, averages of two digits 990. Give what it lets through of real images
    beside it.
    """
    labels, confidences = np.asarray(labels), np.asarray(confidences)
    if labels.shape != confidences.shape:
        raise ValueError(
            f"confidences: {confidences.shape} for labels {labels.shape}; must be one for each"
        )
    return count(labels[confidences >= at_least], classes)


def count_captured(
    counts: ArrayLike, *, at_least: int = 1, share: ArrayLike = 0.0, samples: int | None = None
) -> int:
    """Modes with `at_least` so many samples and this `share` of all.

    VEEGAN and PacGAN count a mode from one sample on. A share, such as 0.01 of MNIST's ten, does
    not grow with the number of samples.

    Args:
        counts: int (K,).
        at_least: Samples, from 1.
        share: Of `samples`, in [0, 1]; one for all modes, or (K,) of each its own.
        samples: How many were drawn; the sum of `counts` if None. Counts that were gated add up
            to less: then give it.
    """
    counts = _counts(counts)
    drawn = counts.sum() if samples is None else samples
    # A share of 0.07 of 100 is 7.000000000000001 to a computer.
    needed = np.asarray(share) * drawn * (1 - 1e-12)
    return int((counts >= np.maximum(at_least, needed)).sum())


def kl(counts: ArrayLike, reference: ArrayLike | None = None) -> float:
    """Kullback-Leibler divergence in nats: sum over classes of p ln(p / q), where 0 ln 0 = 0.

    It lies between 0 and ln K where q is uniform; ln K is all in one class. It is too large by
    about (K - 1) / 2N, and by as much again where the reference is of N samples, too: see
    ``kl_corrected``.

    Args:
        counts: int (K,); p is their share. If all are 0 nothing is known, and nan is returned.
        reference: Weights of the classes (K,), at any scale, for q; uniform if None. inf is
            returned where samples fell into a class of weight 0.
    """
    p, q = _pair(counts, reference)
    return _kl(p, q)


def kl_corrected(
    counts: ArrayLike,
    reference: ArrayLike | None = None,
    *,
    reference_counts: ArrayLike | None = None,
) -> float:
    """``kl`` less its first-order bias, (m - 1) / 2N, m being the classes hit (Miller 1955).

    Close to 0 of a perfect sampler, and below as often as above: it is not clipped, or means over
    runs would be too large. Of the classes hit, because what a collapsed generator never
    draws has no chance to add anything; so it corrects too little where N is not well above K.

    Args:
        counts: As for ``kl``.
        reference: As for ``kl``.
        reference_counts: Counts (K,) that the reference was estimated from: their (m - 1) / 2N comes off,
            too. None: the reference is exact, as a uniform one is.
    """
    counts = _counts(counts)
    p, q = _pair(counts, reference)
    if not counts.any():
        return float("nan")
    bias = _bias(counts) + (0 if reference_counts is None else _bias(_counts(reference_counts)))
    return _kl(p, q) - bias


def js(counts: ArrayLike, reference: ArrayLike | None = None) -> float:
    """Jensen-Shannon divergence in nats, in [0, ln 2]: not its root, which is scipy's distance.

    The mean of the divergences of p and q from their own mean. Arguments and nan as for ``kl``.
    """
    p, q = _pair(counts, reference)
    middle = (p + q) / 2
    return (_kl(p, middle) + _kl(q, middle)) / 2


def _kl(p: Floats, q: Floats) -> float:
    hit = p > 0
    if np.isnan(p).any():
        return float("nan")
    with np.errstate(divide="ignore"):
        return float((p[hit] * np.log(p[hit] / q[hit])).sum())


def _bias(counts: Counts) -> float:
    """Of a divergence, by one of its two sides being a sample."""
    return (np.count_nonzero(counts) - 1) / (2 * counts.sum())


def _counts(counts: ArrayLike) -> Counts:
    counts = np.asarray(counts)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise ValueError(
            f"counts: {counts.dtype} {counts.shape}; must be integers (K,) of at least 0"
        )
    return counts.astype(np.int64)


def _normalised(name: str, weights: ArrayLike) -> Floats:
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 1 or not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
        raise ValueError(
            f"{name}: {weights.shape} adding up to {weights.sum()}; must be weights (K,) of at "
            "least 0, some of them above"
        )
    return weights / weights.sum()


def _pair(counts: ArrayLike, reference: ArrayLike | None) -> tuple[Floats, Floats]:
    """(p, q); p is all nan where there are no samples."""
    counts = _counts(counts)
    with np.errstate(invalid="ignore"):
        p = counts / counts.sum()
    q = np.full(len(p), 1 / len(p)) if reference is None else _normalised("reference", reference)
    if p.shape != q.shape:
        raise ValueError(f"reference: {q.shape} for counts {p.shape}; must be of the same classes")
    return p, q
