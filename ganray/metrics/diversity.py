"""How different the samples are from each other: numbers that need no labels.

All but `duplicate_threshold` look at the generated samples alone, so each means little without
the same number of as many real images beside it. `intervals.half_sample_moments` gives the intervals
of Vendi score and effective rank; the birthday test brings its own.
"""

from __future__ import annotations

import math

import torch
from scipy.special import gammaincinv

from ganray.metrics.frechet import Moments
from ganray.metrics.intervals import Estimate
from ganray.metrics.matrices import TIE, blocks, check_features, eigh, squared_distances

_ROUNDING = 1e-12
"""Squares below this share of the squared length are float32's rounding, not differences."""


def normalize_rows(features: torch.Tensor) -> torch.Tensor:
    """Each row of floating (n, d) scaled to length 1, float64; rows of zeros stay zero.

    Raises:
        ValueError: The features are not finite floating (n, d), n at least 1.
    """
    check_features("features", features, rows=1)
    rows = features.double()
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-150)


def vendi_score(features: torch.Tensor) -> float:
    """Effective number of different samples: 1 if all are alike, n if all are orthogonal.

    exp of the entropy of the eigenvalues of K / n, K the cosine similarities (Friedman and Dieng
    2023, definition 3.1). X X^T / n and X^T X / n share their eigenvalues, so the smaller of them
    is decomposed. Higher is more diverse; in [1, min(n, d)].

    Traps: it grows with n, so only equal n compare. It depends on the features: after a ReLU no
    cosine is negative and the score is low. Noise scores high: this is variety, not quality.
    Samples whose features are all zero have no angle; they count as alike each other and unlike
    the rest, as one direction more.

    Args:
        features: float32 or float64 (n, d), n at least 1.

    Raises:
        ValueError: As `normalize_rows`.
    """
    rows = normalize_rows(features)
    n, d = rows.shape
    return _vendi((rows.T @ rows if d < n else rows @ rows.T) / n)


def vendi_from_moments(moments: Moments) -> float:
    """`vendi_score` from `Moments.of(normalize_rows(features))`, merged over batches and ranks.

    Raises:
        ValueError: There are no rows, or they were not of length 1.
    """
    if moments.count < 1:
        raise ValueError("moments of 0 rows; must be of at least 1; add images")
    mean_square = moments.scatter / moments.count + torch.outer(moments.mean, moments.mean)
    if (length := mean_square.trace().item()) > 1 + 1e-6:
        raise ValueError(
            f"moments: mean squared length {length:.4g} of the rows; must be at most 1; "
            "take Moments.of(normalize_rows(features))"
        )
    return _vendi(mean_square)


def effective_rank(moments: Moments) -> float:
    """How many directions the features of G(z) spread over: the "latent size used".

    Participation ratio of the covariance's eigenvalues l, (sum l)^2 / sum l^2, which is
    (tr C)^2 / |C|^2 (not the exp of an entropy that Roy and Vetterli 2007 call by the same
    name, and which is never smaller). In [1, min(n - 1, d)]: d for an isotropic cloud, 1 on a
    line; 0 if all samples are alike. Higher is more diverse.

    Traps: n samples of an isotropic cloud measure about d n / (d + n), so take n far above d. Few
    large directions hide many small ones; one feature on a larger scale pulls it to 1. Two tight
    clumps lie on a line: it sees spread, not modes.

    Args:
        moments: Of the features as they are, not of unit rows; of at least 2.

    Raises:
        ValueError: There are fewer.
    """
    if moments.count < 2:
        raise ValueError(f"moments of {moments.count} rows; must be of at least 2; add images")
    trace = moments.scatter.trace()
    if trace <= _ROUNDING * (trace + moments.count * moments.mean.square().sum()):
        return 0.0
    return (trace**2 / moments.scatter.square().sum()).item()


def duplicate_threshold(real_features: torch.Tensor, share: float = 0.01) -> float:
    """Distance up to which two samples count as the same: real images hardly ever come so near.

    The `share` quantile of the distances of each real sample to its nearest other. Real
    samples are taken to be all different, so about one in 1 / share of them pairs up by error:
    the birthday test of those n says n / share or somewhat less, the largest support that can be
    told. Show that row too.

    Traps: it shrinks as the number of real samples grows, so all that is compared needs one
    threshold. It is 0 where more than `share` of the real images have an exact copy; then only
    exact copies count.

    Args:
        real_features: float32 or float64 (n, d), n at least 2.
        share: In [0, 1]; 0 gives the distance of the nearest pair of all.

    Returns:
        A distance in the units of the features, not negative.

    Raises:
        ValueError: The arguments break the rules above.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}; must be in [0, 1]; 0.01 lets one real image in 100 pair")
    squares, _ = _nearest(real_features, 0.0)
    return squares.sqrt().quantile(share).item()


def birthday_support(features: torch.Tensor, threshold: float, *, level: float = 0.95) -> Estimate:
    """Support size from duplicates among s samples (Arora, Risteski and Zhang 2018).

    Two draws from M equally likely items are equal with probability 1 / M: among 37 draws from
    1000, a duplicate is as likely as not. The paper looks for the s at which half of the batches
    hold one; counting pairs uses them all: support = s (s - 1) / 2 / pairs, up to s^2 / 2. If items
    differ in probability it estimates 1 / sum p^2, the effective number, which is at most
    the number of items: the rare ones go unseen. In [1, inf]; lower is more collapsed.

    The interval is Garwood's for a Poisson count, widened where unequal probabilities show, in
    duplicates that share a sample. In simulations 93 % to 100 % of the
    intervals held, 85 % with 20 draws of very unequal items.

    Trap: duplicates are what the features cannot tell apart.

    Args:
        features: float32 or float64 (s, d), s at least 2, of samples drawn independently.
        threshold: Of `duplicate_threshold`, from the same network's features; not negative.
        level: Probability that the interval means to hold, in (0, 1).

    Raises:
        ValueError: The arguments break the rules above.
    """
    if not threshold >= 0:
        raise ValueError(f"threshold={threshold}; must not be negative; take duplicate_threshold")
    if not 0 < level < 1:
        raise ValueError(f"level={level}; must be between 0 and 1, both excluded; try 0.95")
    _, copies = _nearest(features, threshold)
    return _support(copies.double(), level)


def _vendi(weights: torch.Tensor) -> float:
    """Exp of the entropy of a matrix's eigenvalues; rows of zeros are what lacks to a sum of 1."""
    eigenvalues = eigh(weights)[0].clamp_min(0)
    lacking = (1 - weights.trace()).clamp_min(0)
    spectrum = torch.cat([eigenvalues, lacking[None]])
    return (-torch.xlogy(spectrum, spectrum).sum()).exp().item()


def _nearest(features: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared distance of each row to its nearest other, and the others within the threshold.

    float64 (n,) and int64 (n,).
    """
    check_features("features", features, rows=2)
    points = features.double()
    points = points - points.mean(0)
    # Made before: small tensors that stay would lie where a block was, so that the next block does
    # not fit there, and a process of 50,000 rows would grow to 16 GB.
    least = points.new_empty(len(points))
    copies = least.new_empty(len(points), dtype=torch.int64)
    for rows in blocks(len(points), len(points)):
        squares = squared_distances(points[rows], points)
        squares.diagonal(rows.start).fill_(math.inf)
        least[rows] = squares.amin(1)
        copies[rows] = (squares <= threshold**2 * (1 + TIE)).sum(1)
    return least, copies


def _support(copies: torch.Tensor, level: float) -> Estimate:
    """Support from how many copies each of s samples has among the others, (s,)."""
    s, tail = len(copies), (1 - level) / 2
    every, pairs = s * (s - 1) / 2, copies.sum().item() / 2
    if not pairs:
        return Estimate(math.inf, every / float(gammaincinv(1, 1 - tail)), math.inf, s)
    share = pairs / every
    # Pairs with a sample in common are independent if all items are equally likely; as many twos
    # of duplicates as there are beyond that add to the variance of the count.
    twos = (copies * (copies - 1)).sum().item() / 2
    excess = twos - s * (s - 1) * (s - 2) / 2 * share**2
    variance = max(pairs, pairs * (1 - share) + 2 * excess)
    counted = pairs**2 / variance  # a Poisson count as sure as this one
    low = counted / float(gammaincinv(counted + 1, 1 - tail)) / share
    least = float(gammaincinv(counted, tail))
    high = counted / least / share if least else math.inf
    return Estimate(1 / share, max(1.0, low), high, s)
