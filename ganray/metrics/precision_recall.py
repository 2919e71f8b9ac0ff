"""Fidelity and coverage from balls around images: precision, recall, density and coverage.

Improved precision and recall (Kynkaanniemi et al. 2019, equations 1 and 2), density and coverage
(Naeem et al. 2020, section 3). The ball of an image reaches to its k-th nearest neighbor in the
same set; the union of a set's balls is its manifold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ganray.metrics.matrices import TIE, blocks, check_features, squared_distances

PRECISION_RECALL_K = 3
"""Neighbor that bounds the balls of precision and recall, as in Kynkaanniemi et al."""
DENSITY_COVERAGE_K = 5
"""Neighbor that bounds the balls of density and coverage, as in Naeem et al."""


@dataclass(frozen=True)
class Manifold:
    """Features of a set of images and the distances to their nearest neighbors."""

    features: torch.Tensor
    """float32 or float64 (n, d), as given, on its device."""
    nearest: torch.Tensor
    """float64 (n, k): *squared* distances to the k nearest others, ascending; 0 for duplicates."""

    @classmethod
    def fit(cls, features: torch.Tensor, k: int = DENSITY_COVERAGE_K) -> Manifold:
        """Find the k nearest neighbors of each row; n must exceed k.

        Needs about 100 MB besides the features and their float64 copy, whatever n is.
        """
        if k < 1:
            raise ValueError(f"k={k}; must be at least 1; 3 and 5 are usual")
        check_features("features", features, rows=k + 1)
        points = features.double()
        points = points - points.mean(0)
        # Allocated before the loop: small tensors that outlive a block would fragment its memory,
        # and a process with 50,000 rows would grow to 18 GB.
        nearest = points.new_empty(len(points), k)
        for rows in blocks(len(points), len(points)):
            squares = squared_distances(points[rows], points)
            squares.diagonal(rows.start).fill_(-1)  # the row itself precedes any duplicate
            nearest[rows] = squares.topk(k + 1, largest=False).values[:, 1:]
        return cls(features, nearest)


@dataclass(frozen=True)
class ManifoldScores:
    """Scores of samples against reference images; only equal n, m, k and features compare.

    Collapse lowers ``recall`` and ``coverage`` only. ``precision`` and ``density`` do not react:
    generators of a single digit scored 1 and up to 2.7.
    """

    precision: float
    """Share of samples within a reference ball, in [0, 1]; higher is more faithful."""
    recall: float
    """Share of reference images within a sample's ball, in [0, 1]; higher is more diverse. Samples
    scattered far apart have large balls and score high too: read it together with ``precision``."""
    density: float
    """Mean number of reference balls around a sample, divided by k; in [0, n / k]. It is 1 for
    samples from the reference distribution, and above 1 where samples crowd into its dense
    regions, as in collapse: never rank by it."""
    coverage: float
    """Share of reference balls that hold a sample, in [0, 1]; higher is more diverse. Samples from
    the reference distribution reach ``ideal_coverage``, not 1. Balls of exact duplicates have
    radius 0 and are never covered."""
    outliers: float
    """Share of samples farther from the nearest reference image than 99 % of these are from each
    other, in [0, 1]: samples that are like no real image. Samples from the reference distribution
    score about 0.01, so that a few per cent of garbage are seen, which ``precision`` hides."""


def manifold_scores(
    reference: Manifold,
    samples: Manifold,
    *,
    precision_recall_k: int = PRECISION_RECALL_K,
    density_coverage_k: int = DENSITY_COVERAGE_K,
) -> ManifoldScores:
    """Return precision, recall, density and coverage from one pass over all distances.

    The balls of precision and recall are closed (``<=``, as in the authors' code and
    torch-fidelity), those of density and coverage open (``<``, as in prdc). The difference matters
    for exact duplicates only.

    Args:
        reference: Manifold of n images, fit with a k of at least both of the k below.
        samples: Manifold of m images on the same device, fit with at least `precision_recall_k`.
        precision_recall_k: Neighbor that bounds the closed balls.
        density_coverage_k: Neighbor that bounds the open balls.
    """
    assert max(precision_recall_k, density_coverage_k) <= reference.nearest.shape[1]
    assert precision_recall_k <= samples.nearest.shape[1]
    check_features("samples", samples.features, rows=1, like=reference.features.shape[1])
    x, y = reference.features.double(), samples.features.double()
    center = x.mean(0)
    x, y = x - center, y - center
    x_closed = reference.nearest[:, precision_recall_k - 1, None] * (1 + TIE)
    y_closed = samples.nearest[:, precision_recall_k - 1] * (1 + TIE)
    x_open = reference.nearest[:, density_coverage_k - 1, None] * (1 - TIE)
    precise = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    covered = torch.zeros(len(x), dtype=torch.bool, device=y.device)
    closest = torch.full((len(y),), torch.inf, dtype=y.dtype, device=y.device)
    sums = torch.zeros(2, dtype=torch.int64, device=y.device)
    for rows in blocks(len(x), len(y)):
        squares = squared_distances(x[rows], y)
        closest = torch.minimum(closest, squares.amin(0))
        precise |= (squares <= x_closed[rows]).any(0)
        recalled = (squares <= y_closed).any(1)
        inside = (squares < x_open[rows]).sum(1)
        covered[rows] = inside > 0
        sums += torch.stack([recalled.sum(), inside.sum()])
    recalled, inside = sums.tolist()
    return ManifoldScores(
        precision=int(precise.sum()) / len(y),
        recall=recalled / len(x),
        density=inside / (density_coverage_k * len(y)),
        coverage=int(covered.sum()) / len(x),
        outliers=(closest > _typical_distance(reference)).double().mean().item(),
    )


def _typical_distance(reference: Manifold) -> float:
    """Return the squared distance within which 99 % of the images have a neighbor."""
    return reference.nearest[:, 0].quantile(0.99).item()


def ideal_coverage(references: int, samples: int, k: int = DENSITY_COVERAGE_K) -> float:
    """Return the mean coverage of samples from the reference distribution (without duplicates).

    A reference image is uncovered if its k nearest among all others are references (Naeem et al.
    2020): about 1 - 2^-k for equal counts, which is 0.969 for k = 5.

    Args:
        references: Number of reference images, more than k.
        samples: Number of samples, not negative.
        k: Neighbor that bounds a ball.
    """
    others = references - 1 + samples
    return 1 - math.prod((references - 1 - i) / (others - i) for i in range(k))
