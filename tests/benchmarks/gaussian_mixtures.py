"""Mixtures of normals in the plane, the usual toy data for mode collapse. Numpy only.

The literature uses two: eight modes on a ring and 25 on a grid. A generator is trained on samples,
and its points are scored by their distance to the nearest center.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ganray.metrics import modes

# Separates these draws from others with the same rng_seed.
_STREAM = 0x6D697874757265
NEAR = 3.0
"""Maximum distance from a center, in sigma, of a high-quality point (VEEGAN, PacGAN)."""
HIGH_QUALITY = 1 - math.exp(-(NEAR**2) / 2)
"""Share of high-quality points of the mixture itself: 98.9 %, if the modes are far apart."""


@dataclass(frozen=True)
class MixtureScores:
    """Scores of points on a mixture. Only equal n compare."""

    modes: int
    """Modes with at least one high-quality point."""
    high_quality: float
    """Share of points within 3 sigma of their nearest center, in [0, 1]. ``HIGH_QUALITY`` is ideal;
    it is 1 if all points are centers."""
    reverse_kl: float
    """KL of the modes' shares to uniform in nats; each point counts for its nearest center. 0 is
    ideal, ln K means one mode; ``ideal_kl`` is the score of the mixture itself for n points."""
    counts: tuple[int, ...]
    """(K,) number of points nearest to each center, at any distance."""
    n: int
    """Number of points."""


@dataclass(frozen=True)
class Mixture:
    """Equally likely normals with one sigma around centers in the plane."""

    name: str
    """Name in the published tables."""
    centers: tuple[tuple[float, float], ...]
    """(K, 2), all distinct."""
    sigma: float
    """Standard deviation along each axis."""

    def sample(self, n: int, rng_seed: int, step: int = 0) -> NDArray[np.float32]:
        """Draw n points, float32 (n, 2); other steps draw other points."""
        rng = np.random.default_rng([rng_seed, _STREAM, step])
        which = rng.integers(len(self.centers), size=n)
        points = np.array(self.centers)[which] + self.sigma * rng.standard_normal((n, 2))
        return points.astype(np.float32)

    def score(self, points: ArrayLike) -> MixtureScores:
        """Score finite points (n, 2), n at least 1; the literature uses n = 2,500.

        PacGAN's released code takes the shares of the modes from high-quality points only; if
        those are few, the reverse KL here is more reliable.
        """
        points = np.asarray(points, np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or not len(points):
            raise ValueError(f"points: {points.shape}; must be (n, 2), n at least 1")
        if not np.isfinite(points).all():
            bad = int((~np.isfinite(points)).any(1).sum())
            raise ValueError(
                f"points: {bad} of {len(points)} are not finite; report diverged runs separately"
            )
        nearest, near = self.nearest(points)
        counts = modes.count(nearest, len(self.centers))
        return MixtureScores(
            modes=modes.count_captured(modes.count(nearest[near], len(self.centers))),
            high_quality=float(near.mean()),
            reverse_kl=modes.kl(counts),
            counts=tuple(counts.tolist()),
            n=len(points),
        )

    def nearest(self, points: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the nearest center of each point, int64 (n,), and whether it is within 3 sigma."""
        offsets = np.asarray(points, np.float64)[:, None] - np.array(self.centers)
        squares = (offsets**2).sum(2)
        return squares.argmin(1), squares.min(1) <= (NEAR * self.sigma) ** 2


def ring(count: int = 8, radius: float = 1.0, sigma: float = 0.01) -> Mixture:
    """Return modes at equal angles on a circle, from (radius, 0) on; defaults to PacGAN's ring.

    The angle 2 pi is left out, as it equals the first: a published demo that includes it has seven
    modes, one of them with double weight.
    """
    angles = 2 * math.pi * np.arange(count) / count
    centers = radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    return Mixture(f"ring-{count}", tuple((float(x), float(y)) for x, y in centers), sigma)


def grid(side: int = 5, spacing: float = 2.0, sigma: float = 0.05) -> Mixture:
    """Return modes on a square grid around the origin; the defaults are PacGAN's 25 on [-4, 4]."""
    axis = [spacing * (i - (side - 1) / 2) for i in range(side)]
    return Mixture(f"grid-{side**2}", tuple((x, y) for x in axis for y in axis), sigma)


def ideal_kl(n: int, shares: ArrayLike, repeats: int = 2000) -> tuple[float, float, float]:
    """Return the mean and the 95 % limits of the KL to uniform of n ideal samples, in nats.

    Args:
        n: Samples of each simulated set.
        shares: Weights of the classes (K,) that the sampler draws from.
        repeats: Simulated sets.
    """
    weights = np.asarray(shares, np.float64)
    counts = np.random.default_rng(0).multinomial(n, weights / weights.sum(), size=repeats)
    values = [modes.kl(row) for row in counts]
    low, high = np.quantile(values, (0.025, 0.975))
    return float(np.mean(values)), float(low), float(high)


MIXTURES: dict[str, Mixture] = {mixture.name: mixture for mixture in (ring(), grid())}
"""Mixtures of the published tables, by name."""
