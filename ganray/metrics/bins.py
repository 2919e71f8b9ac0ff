"""Bins of the real images, and in how many of them a generator puts too few or too many.

NDB, the number of statistically different bins, and the Jensen-Shannon divergence of the bins
(Richardson and Weiss 2018). Counts add up over batches and ranks.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from ganray.metrics.matrices import blocks, refuse_features, squared_distances
from ganray.metrics.modes import Counts, js


@dataclass(frozen=True)
class Bins:
    """Cells of the feature space around the k-means of the reals. Fit once, use often."""

    centres: torch.Tensor
    """float64 (K, d), on the device of the features; a bin is what lies nearest to its centre."""
    counts: Counts
    """int64 (K,): the reals in each bin, at least 1; those that the bins were fit on."""

    @classmethod
    def fit(cls, features: torch.Tensor, bins: int = 100, rng_seed: int = 0) -> Bins:
        """Cluster the reals, on the CPU, from one k-means++ start.

        The same call ends in the same bins on one machine and number of threads. Differences
        are only found where features differ much: scale them if some are to weigh more.

        Args:
            features: float32 or float64 (n, d), finite; n some 100 a bin or more, for the test
                takes the counts as normal. Its authors had 500 a bin.
            bins: K, at least 2. There are fewer where fewer rows differ, as of drawn pictures; a
                single one sees nothing.
            rng_seed: Of the first centres.

        Raises:
            ValueError: The features or the bins are not as above.
        """
        if bins < 2:
            raise ValueError(f"bins={bins}; must be at least 2; 100 are usual")
        refuse_features("features", features, rows=bins)
        means = KMeans(bins, max_iter=100, random_state=rng_seed)
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            means.fit(features.cpu().numpy())  # warns where it has more centres than rows differ
        centres = torch.from_numpy(means.cluster_centers_).to(features.device, torch.float64)
        counts = cls(centres, np.zeros(bins, np.int64)).count(features)
        filled = counts > 0
        if not filled.all():
            print(
                f"bins: {filled.sum()} instead of {bins}, as too few of {len(features):,} reals"
                " differ",
                flush=True,
            )
        return cls(centres[torch.from_numpy(filled).to(centres.device)], counts[filled])

    def count(self, features: torch.Tensor) -> Counts:
        """Images in each bin, int64 (K,). Add up batches and ranks.

        Args:
            features: float32 or float64 (m, d), finite, m may be 0; on the device of the bins.

        Raises:
            ValueError: The features are not as above.
        """
        size, width = self.centres.shape
        refuse_features("features", features, rows=0, like=width)
        middle = self.centres.mean(0)
        centres = self.centres - middle
        counts = torch.zeros(size, dtype=torch.int64, device=features.device)
        for rows in blocks(len(features), max(size, width)):
            squares = squared_distances(features[rows].double() - middle, centres)
            counts += squares.argmin(1).bincount(minlength=size)
        return counts.cpu().numpy()


@dataclass(frozen=True)
class BinScores:
    """How the fakes fill the bins of the reals. Compare only at equal K, n, m and threshold.

    Sees collapse: missing modes leave bins empty, and others too full. Blind to collapse within
    a bin: K different images, in the right shares, score a perfect 0.
    """

    different: int
    """NDB, bins whose shares of reals and fakes differ, in [0, K]; lower is better. Grows with m,
    as smaller differences are found: see ``different_by_chance`` for what no generator beats."""
    js: float
    """Jensen-Shannon divergence of the shares, nats, in [0, ln 2]; lower is better. A perfect
    generator scores about ``js_by_chance``, not 0."""
    bins: int
    """K; fewer than were asked for where too few reals differ."""
    reals: int
    """n, the real images."""
    fakes: int
    """m, the fake images."""
    z_threshold: float
    """Standard errors beyond which shares differ."""

    @property
    def share(self) -> float:
        """NDB / K, in [0, 1]; lower is better."""
        return self.different / self.bins

    @property
    def different_by_chance(self) -> float:
        """The NDB to expect of a perfect generator: K times the test's two-sided level."""
        return self.bins * math.erfc(self.z_threshold / math.sqrt(2))

    @property
    def js_by_chance(self) -> float:
        """The JS to expect of a perfect generator, to first order (its chi-square over 8), nats."""
        return (self.bins - 1) / 8 * (1 / self.reals + 1 / self.fakes)


def z_scores(real_counts: ArrayLike, fake_counts: ArrayLike) -> NDArray[np.float64]:
    """How far each bin's share of the fakes lies above the reals', in pooled standard errors.

    The statistic of the two-proportion z-test. A missing mode is far below 0, what the generator
    repeats far above; a bin that neither fills is 0.

    Args:
        real_counts: Integers (K,), at least 0, not all 0: ``Bins.counts``.
        fake_counts: Integers (..., K), at least 0, no row all 0: ``Bins.count`` of the fakes, or
            many resamples of it.

    Returns:
        float64 (..., K).

    Raises:
        ValueError: The counts are not as above.
    """
    real, fake = np.asarray(real_counts), np.asarray(fake_counts)
    n, m = real.sum(-1), fake.sum(-1, keepdims=True)
    if real.ndim != 1 or real.shape != fake.shape[-1:] or not n > 0 or not (m > 0).all():
        raise ValueError(
            f"counts: real {real.shape}, fake {fake.shape}; must be (K,) and (..., K), none all 0; "
            "count both in the same bins"
        )
    pooled = (real + fake) / (n + m)
    error = np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    return (fake / m - real / n) / np.where(error > 0, error, 1)


def bin_scores(
    real_counts: ArrayLike, fake_counts: ArrayLike, *, z_threshold: float = 3.0
) -> BinScores:
    """NDB and JS of the fakes: how many bins have a |z| above the threshold, and by how much.

    The authors' code defaults to a level of 0.05, z = 1.96, which calls 5 of 100 bins different
    by chance; 3 calls 0.27.

    Args:
        real_counts: Integers (K,), at least 0, not all 0: ``Bins.counts``.
        fake_counts: Integers (K,), at least 0, not all 0: ``Bins.count`` of the fakes.
        z_threshold: Standard errors, not negative.

    Raises:
        ValueError: The counts or the threshold are not as above.
    """
    if not z_threshold >= 0:
        raise ValueError(f"z_threshold={z_threshold}; must not be negative; 3 is the default")
    z = z_scores(real_counts, fake_counts)
    return BinScores(
        different=int((np.abs(z) > z_threshold).sum()),
        js=js(fake_counts, real_counts),
        bins=len(z),
        reals=int(np.sum(real_counts)),
        fakes=int(np.sum(fake_counts)),
        z_threshold=z_threshold,
    )
