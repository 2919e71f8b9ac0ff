"""Diversity of samples without labels: Vendi score, effective rank, birthday test.

Except for `duplicate_threshold` they depend on the samples alone, so each means little without the
same number for as many reference images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.special import gammaincinv

from ganray.metrics.frechet import Moments
from ganray.metrics.intervals import TAIL, Estimate
from ganray.metrics.matrices import TIE, blocks, check_features, eigh, squared_distances
from ganray.metrics.precision_recall import Manifold

_ROUNDING = 1e-12
"""Variance below this fraction of the mean squared length is float32 rounding."""


def normalize_rows(features: torch.Tensor) -> torch.Tensor:
    """Scale each row of a feature matrix (n, d) to length 1, float64; zero rows stay zero."""
    check_features("features", features, rows=1)
    rows = features.double()
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-150)


def vendi_score(features: torch.Tensor) -> float:
    """Return the effective number of distinct samples of a feature matrix (n, d), n at least 1.

    exp of the entropy of the eigenvalues of K / n, where K holds cosine similarities (Friedman and
    Dieng 2023, definition 3.1). X X^T / n and X^T X / n have the same eigenvalues, so the smaller
    one is decomposed. In [1, min(n, d)]: 1 if all rows are equal, n if all are orthogonal; higher
    is more diverse.

    Traps: it grows with n, so only equal n compare. It depends on the features: after a ReLU no
    cosine is negative and the score is low. Noise scores high: it measures diversity, not quality.
    Zero rows have no angle; they count as equal to each other and orthogonal to the rest.
    """
    rows = normalize_rows(features)
    n, d = rows.shape
    return _vendi((rows.T @ rows if d < n else rows @ rows.T) / n)


def effective_rank(moments: Moments) -> float:
    """Return the number of directions over which the features of at least 2 samples spread.

    Participation ratio of the covariance's eigenvalues l: (sum l)^2 / sum l^2 = (tr C)^2 / |C|^2.
    Roy and Vetterli (2007) give the same name to the exp of an entropy, which is never smaller.
    In [1, min(n - 1, d)]: d for an isotropic cloud, 1 on a line; 0 if all samples are equal.
    Higher is more diverse.

    Traps: n samples of an isotropic cloud score about d n / (d + n), so n must be far above d. A
    few large directions hide many small ones; one feature with a larger scale pulls it to 1. Two
    tight clusters lie on a line: it measures spread, not modes.

    Args:
        moments: Moments of unscaled features, not of normalized rows.
    """
    if moments.count < 2:
        raise ValueError(f"moments of {moments.count} rows; must be of at least 2; add images")
    trace = moments.scatter.trace()
    if trace <= _ROUNDING * (trace + moments.count * moments.mean.square().sum()):
        return 0.0
    return (trace**2 / moments.scatter.square().sum()).item()


def duplicate_threshold(reference: torch.Tensor, share: float = 0.01) -> float:
    """Return the distance up to which two samples count as duplicates, in units of the features.

    It is the `share` quantile of the distance of each reference image to its nearest neighbor.
    Reference images are assumed to be distinct, so about one in 1 / share of them pairs up by
    mistake, and n of them have a measured support of n / share or somewhat less. That is the
    largest support that can be found, so report it as well.

    Traps: it shrinks as the number of reference images grows, so results compare only at the same
    threshold. It is 0 if more than `share` of the reference images have an exact copy; then only
    exact copies are duplicates.

    Args:
        reference: Feature matrix (n, d) of reference images, n at least 2.
        share: In [0, 1]; 0 gives the smallest distance of all pairs.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}; must be in [0, 1]; 0.01 lets one image in 100 pair up")
    return Manifold.fit(reference, k=1).nearest[:, 0].sqrt().quantile(share).item()


def count_duplicates(features: Sequence[torch.Tensor], thresholds: Sequence[float]) -> torch.Tensor:
    """Return the number of near duplicates of each sample among the others, int64 (s,).

    Two samples are duplicates if they are near each other by *all* kinds of features. By those of a
    classifier alone, noisy images without a class are alike; by pixels alone, blurred ones are.

    Args:
        features: Feature matrices (s, d) of the same s samples, s at least 2.
        thresholds: Distance for each of them, from `duplicate_threshold`; not negative.
    """
    if not all(threshold >= 0 for threshold in thresholds):
        raise ValueError(f"thresholds={thresholds}; must not be negative; use duplicate_threshold")
    points = []
    for rows in features:
        check_features("features", rows, rows=2)
        points.append(rows.double() - rows.double().mean(0))
    # Allocated before the loop: small tensors that outlive a block would fragment its memory, and
    # a process with 50,000 rows would grow to 16 GB.
    counts = points[0].new_empty(len(points[0]), dtype=torch.int64)
    for rows in blocks(len(counts), len(counts)):
        near = [
            squared_distances(x[rows], x) <= threshold**2 * (1 + TIE)
            for x, threshold in zip(points, thresholds, strict=True)
        ]
        counts[rows] = torch.stack(near).all(0).sum(1) - 1  # not the row itself
    return counts


def birthday_support(duplicates: torch.Tensor) -> Estimate:
    """Estimate the number of distinct images a generator makes (Arora, Risteski and Zhang 2018).

    Two draws from M equally likely items are equal with probability 1 / M: among 37 draws from
    1,000, a duplicate is as likely as not. The paper searches the s for which half of the batches
    hold a duplicate; counting pairs uses them all: support = s (s - 1) / 2 / pairs, up to s^2 / 2.
    For items of unequal probability it estimates 1 / sum p^2, the effective number, which is at
    most the number of items: rare ones are missed. In [1, inf]; lower is more collapsed. Without
    any duplicate it is inf with a finite lower end.

    The 95 % interval is Garwood's for a Poisson count, widened if duplicates share samples, which
    shows unequal probabilities. In simulations its coverage was 93 % to 100 %, and 85 % for 20
    draws of very unequal items.

    Trap: duplicates are images that the features cannot distinguish.

    Args:
        duplicates: The result of `count_duplicates` for s independent samples, int64 (s,).
    """
    duplicates = duplicates.double()
    s = len(duplicates)
    all_pairs, pairs = s * (s - 1) / 2, duplicates.sum().item() / 2
    if not pairs:
        return Estimate(math.inf, all_pairs / float(gammaincinv(1, 1 - TAIL)), math.inf, s)
    share = pairs / all_pairs
    # Pairs that share a sample are independent if all items are equally likely. More pairs of
    # duplicates with a common sample than that add to the variance of the count.
    shared = (duplicates * (duplicates - 1)).sum().item() / 2
    excess = shared - s * (s - 1) * (s - 2) / 2 * share**2
    variance = max(pairs, pairs * (1 - share) + 2 * excess)
    count = pairs**2 / variance  # a Poisson count with the same relative error
    low = count / float(gammaincinv(count + 1, 1 - TAIL)) / share
    least = float(gammaincinv(count, TAIL))
    high = count / least / share if least else math.inf
    return Estimate(1 / share, max(1.0, low), high, s)


def _vendi(weights: torch.Tensor) -> float:
    """Return exp of the entropy of a matrix's eigenvalues; zero rows fill its trace up to 1."""
    eigenvalues = eigh(weights)[0].clamp_min(0)
    missing = (1 - weights.trace()).clamp_min(0)
    spectrum = torch.cat([eigenvalues, missing[None]])
    return (-torch.xlogy(spectrum, spectrum).sum()).exp().item()
