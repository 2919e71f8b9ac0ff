"""Fidelity and coverage by balls around the images: which fakes look real, which reals are met.

Improved precision and recall (Kynkaanniemi et al. 2019, equations 1 and 2) and density and
coverage (Naeem et al. 2020, section 3). Each image's ball reaches to its k-th neighbour of the
same set; a set's balls together are its manifold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ganray.metrics.matrices import TIE, blocks, check_features, squared_distances


@dataclass(frozen=True)
class Manifold:
    """A set of images and the distances to their neighbours. Fit the reals once, use them often."""

    features: torch.Tensor
    """float32 or float64 (n, d), as given, on its device."""
    nearest: torch.Tensor
    """float64 (n, k): *squared* distances to the k nearest others, ascending; 0 for duplicates."""

    @classmethod
    def fit(cls, features: torch.Tensor, k: int = 5, block_rows: int | None = None) -> Manifold:
        """Find each row's k nearest others among all rows.

        Takes some 100 MB besides the features and their copy in float64, whatever n.

        Args:
            features: float32 or float64 (n, d), finite, n more than k.
            k: Neighbours to know; the largest k that scores will ask for.
            block_rows: Annotations at a time; as many as bounded memory allows if None.

        Raises:
            ValueError: The features or k are not as above.
        """
        if k < 1:
            raise ValueError(f"k={k}; must be at least 1; 3 and 5 are usual")
        check_features("features", features, rows=k + 1)
        points = features.double()
        points = points - points.mean(0)
        # Made before: small tensors that stay would lie where a block was, so that the next does
        # not fit there, and a process of 50,000 rows would grow to 18 GB.
        nearest = points.new_empty(len(points), k)
        for rows in blocks(len(points), len(points), block_rows):
            squares = squared_distances(points[rows], points)
            # The nearest of all is the row itself, or a duplicate that is 0 away as well.
            nearest[rows] = squares.topk(k + 1, largest=False).values[:, 1:]
        return cls(features, nearest)


@dataclass(frozen=True)
class ManifoldScores:
    """How the fakes' manifold lies to the reals'. Compare only at equal n, m, k and features.

    Collapse shows in ``recall`` and ``coverage`` alone. ``precision`` and ``density`` are blind
    to it: generators of a single digit scored 1 and up to 2.7.
    """

    precision: float
    """Share of fakes within a real's ball, in [0, 1]; higher is more faithful."""
    recall: float
    """Share of reals within a fake's ball, in [0, 1]; higher is more varied. Fakes strewn far
    apart have large balls and score high as well: read it beside ``precision``."""
    density: float
    """Mean number of real balls around a fake, over k; in [0, n / k], 1 for fakes drawn like the
    reals. Above 1 the fakes crowd where reals are dense, as in collapse: never rank by it."""
    coverage: float
    """Share of real balls that hold a fake, in [0, 1]; higher is more varied. Fakes drawn like the
    reals reach ``ideal_coverage``, not 1; real duplicates have balls of no size, never covered."""
    reals: int
    """n, the real images."""
    fakes: int
    """m, the fake images."""
    precision_recall_k: int
    """Neighbour that ends the balls of ``precision`` and ``recall``, whose rim belongs to them."""
    density_coverage_k: int
    """Neighbour that ends the balls of ``density`` and ``coverage``, whose rim does not."""


def manifold_scores(
    real: Manifold,
    fake: Manifold,
    *,
    precision_recall_k: int = 3,
    density_coverage_k: int = 5,
    block_rows: int | None = None,
) -> ManifoldScores:
    """Precision, recall, density and coverage in one pass over the distances of reals to fakes.

    The ball of precision and recall is closed (``<=``, as its authors have it and torch-fidelity),
    that of density and coverage open (``<``, as prdc has it): it matters for exact duplicates.

    Args:
        real: Of n images, fit with k at least both of the k below.
        fake: Of m images on the same device, fit with k at least `precision_recall_k`.
        precision_recall_k: 3 in Kynkaanniemi et al.
        density_coverage_k: 5 in Naeem et al.
        block_rows: ReferenceData at a time; as many as bounded memory allows if None.

    Raises:
        ValueError: A k is more than was fit, or the two were fit on other features.
    """
    _refuse_k("real", real, max(precision_recall_k, density_coverage_k))
    _refuse_k("fake", fake, precision_recall_k)
    check_features("fake", fake.features, rows=1, like=real.features.shape[1])
    reals, fakes = real.features.double(), fake.features.double()
    centre = reals.mean(0)
    reals, fakes = reals - centre, fakes - centre
    real_closed = real.nearest[:, precision_recall_k - 1, None] * (1 + TIE)
    fake_closed = fake.nearest[:, precision_recall_k - 1] * (1 + TIE)
    real_open = real.nearest[:, density_coverage_k - 1, None] * (1 - TIE)
    precise, recalled, held, covered = _tally(
        reals, fakes, real_closed, fake_closed, real_open, block_rows
    )
    n, m = len(reals), len(fakes)
    return ManifoldScores(
        precision=precise / m,
        recall=recalled / n,
        density=held / (density_coverage_k * m),
        coverage=covered / n,
        reals=n,
        fakes=m,
        precision_recall_k=precision_recall_k,
        density_coverage_k=density_coverage_k,
    )


def ideal_coverage(reals: int, fakes: int, k: int = 5) -> float:
    """Mean coverage of fakes drawn like the reals, whatever the distribution (no duplicates).

    A real is not covered if its k nearest among all others are real (Naeem et al. 2020): about
    1 - 2^-k for as many fakes as reals, 0.969 for k = 5.

    Args:
        reals: n, more than k.
        fakes: m, not negative.
        k: Neighbour that ends a ball.

    Returns:
        In [0, 1].
    """
    others = reals - 1 + fakes
    return 1 - math.prod((reals - 1 - i) / (others - i) for i in range(k))


def _tally(
    reals: torch.Tensor,
    fakes: torch.Tensor,
    real_closed: torch.Tensor,
    fake_closed: torch.Tensor,
    real_open: torch.Tensor,
    block_rows: int | None,
) -> list[int]:
    """Fakes in a closed real ball, reals in a closed fake ball, pairs and reals in open ones."""
    precise = torch.zeros(len(fakes), dtype=torch.bool, device=fakes.device)
    sums = torch.zeros(3, dtype=torch.int64, device=fakes.device)
    for rows in blocks(len(reals), len(fakes), block_rows):
        squares = squared_distances(reals[rows], fakes)
        precise |= (squares <= real_closed[rows]).any(0)
        recalled = (squares <= fake_closed).any(1)
        held = (squares < real_open[rows]).sum(1)
        sums += torch.stack([recalled.sum(), held.sum(), held.count_nonzero()])
    return [int(precise.sum()), *sums.tolist()]


def _refuse_k(name: str, manifold: Manifold, k: int) -> None:
    known = manifold.nearest.shape[1]
    if not 1 <= k <= known:
        raise ValueError(
            f"k={k}; must be from 1 to {known}, which {name} was fit with; fit it with a larger k"
        )
