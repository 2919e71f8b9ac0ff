"""Mixtures of normals in the plane, on which mode collapse can be seen and counted. Numpy only.

The two that the literature uses: eight modes on a ring, 25 on a grid. A generator learns from
samples of them, and its points are scored by the centres they lie near to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ganray.metrics import modes

# Keeps these draws apart from others that are derived from the same rng_seed.
_STREAM = 0x6D697874757265
NEAR = 3.0
"""A point is of high quality within so many sigma of its nearest centre (VEEGAN, PacGAN)."""
HIGH_QUALITY = 1 - math.exp(-(NEAR**2) / 2)
"""Share of such points of the mixture itself: 98.9 % (in the plane; modes far apart)."""


@dataclass(frozen=True)
class MixtureScores:
    """How points fill the modes of a mixture. Compare only at equal n."""

    modes: int
    """Modes with at least one point of high quality."""
    high_quality: float
    """Share of points within 3 sigma of their nearest centre, in [0, 1]; ``HIGH_QUALITY`` is
    perfect, and all points on the centres give 1."""
    reverse_kl: float
    """Of the shares of the modes to uniform, in nats, every point counted for its nearest centre.
    0 is perfect, ln K all near one; ``ideal_kl`` tells what chance adds at this n."""
    counts: tuple[int, ...]
    """(K,) points nearest to each centre, whatever their distance."""
    n: int
    """How many points."""


@dataclass(frozen=True)
class Mixture:
    """Normals of one sigma around centres in the plane, all equally likely."""

    name: str
    """As the papers call it."""
    centres: tuple[tuple[float, float], ...]
    """(K, 2), all different."""
    sigma: float
    """Standard deviation along each axis."""

    def sample(self, n: int, rng_seed: int, step: int = 0) -> NDArray[np.float32]:
        """Draw points: float32 (n, 2), a function of all arguments and nothing else.

        Args:
            n: How many, at least 0.
            rng_seed: Not negative.
            step: Not negative; another one gives other points.
        """
        rng = np.random.default_rng([rng_seed, _STREAM, step])
        which = rng.integers(len(self.centres), size=n)
        points = np.array(self.centres)[which] + self.sigma * rng.standard_normal((n, 2))
        return points.astype(np.float32)

    def score(self, points: ArrayLike) -> MixtureScores:
        """Say which modes the points lie in.

        The literature takes n = 2,500. PacGAN's released code takes the shares of the modes from
        the points of high quality alone; where those are few, the reverse KL here says more.

        Args:
            points: float (n, 2), n at least 1, all finite.

        Raises:
            ValueError: The points are not as above; a generator that diverged gives such.
        """
        points = np.asarray(points, np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or not len(points):
            raise ValueError(f"points: {points.shape}; must be (n, 2), n at least 1")
        if not np.isfinite(points).all():
            bad = int((~np.isfinite(points)).any(1).sum())
            raise ValueError(
                f"points: {bad} of {len(points)} are not finite; count runs that diverged apart"
            )
        nearest, near = self.nearest(points)
        counts = modes.count(nearest, len(self.centres))
        return MixtureScores(
            modes=modes.count_captured(modes.count(nearest[near], len(self.centres))),
            high_quality=float(near.mean()),
            reverse_kl=modes.kl(counts),
            counts=tuple(counts.tolist()),
            n=len(points),
        )

    def nearest(self, points: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The centre nearest to each point, int64 (n,), and whether it is within 3 sigma."""
        offsets = np.asarray(points, np.float64)[:, None] - np.array(self.centres)
        squares = (offsets**2).sum(2)
        return squares.argmin(1), squares.min(1) <= (NEAR * self.sigma) ** 2


def ring(count: int = 8, radius: float = 1.0, sigma: float = 0.01) -> Mixture:
    """Modes at equal angles on a circle, from (radius, 0) on; the defaults are PacGAN's ring.

    The angle 2 pi is not one of them: it is that of the first, and a demo that had it had seven
    modes, one of double weight.
    """
    angles = 2 * math.pi * np.arange(count) / count
    centres = radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    return Mixture(f"ring-{count}", tuple((float(x), float(y)) for x, y in centres), sigma)


def grid(side: int = 5, spacing: float = 2.0, sigma: float = 0.05) -> Mixture:
    """Modes on a square around the origin; the defaults are PacGAN's 25, from -4 to 4."""
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
"""Those of the published tables, by name."""
