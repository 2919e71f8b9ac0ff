"""Distances between the reals' and the fakes' distributions of features: Frechet and KID.

Both mix fidelity and variety into one number, so neither says by itself that modes are missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ganray.metrics.matrices import blocks, check_features, eigh


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of feature rows: all that the Frechet distance needs of them.

    Moments of parts merge to those of the whole, but for rounding in float64, in whatever parts
    and order: so batches and ranks may be counted apart. Start from ``Moments.none(d)``.
    """

    count: int
    """Annotations."""
    mean: torch.Tensor
    """float64 (d,)."""
    scatter: torch.Tensor
    """float64 (d, d): the sum over rows of the outer product of their deviation from the mean."""

    @classmethod
    def none(cls, width: int, device: torch.device | None = None) -> Moments:
        """Of no rows at all: what merging starts from."""
        empty = torch.zeros(width, dtype=torch.float64, device=device)
        return cls(0, empty, torch.zeros(width, width, dtype=torch.float64, device=device))

    @classmethod
    def of(cls, features: torch.Tensor) -> Moments:
        """Of the rows of float32 or float64 (n, d), finite, n may be 0; on their device.

        Raises:
            ValueError: The features are not as above.
        """
        check_features("features", features, rows=0)
        if len(features) == 0:
            return cls.none(features.shape[1], features.device)
        rows = features.double()
        mean = rows.mean(0)
        rows = rows - mean
        return cls(len(rows), mean, rows.T @ rows)

    def merge(self, other: Moments) -> Moments:
        """Of the rows of both, on one device (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        if count == 0:
            return self
        apart, share = other.mean - self.mean, other.count / count
        between = self.count * share * torch.outer(apart, apart)
        return Moments(count, self.mean + share * apart, self.scatter + other.scatter + between)

    def covariance(self) -> torch.Tensor:
        """float64 (d, d), the unbiased estimate.

        Raises:
            ValueError: There are fewer than 2 rows.
        """
        if self.count < 2:
            raise ValueError(f"count={self.count}; a covariance takes 2 rows or more; add images")
        return self.scatter / (self.count - 1)


def frechet_distance(real: Moments, fake: Moments) -> float:
    """Squared Frechet distance of two normal distributions; on Inception features it is the FID.

    In [0, inf), in squared units of the features; lower is better. Heusel et al. 2017, equation 6.
    Traps: it is biased upwards, the more so of fewer images (two halves of one set are not 0
    apart): compare at equal counts only, beside real against real. It sees two moments and no
    more. Lost variety shows, but no more than lost fidelity.

    Raises:
        ValueError: The two have other widths, or fewer than 2 rows.
    """
    if real.mean.shape != fake.mean.shape:
        raise ValueError(
            f"fake: {len(fake.mean)} columns beside {len(real.mean)}; must be as many; take both "
            "from one network"
        )
    covariances = real.covariance(), fake.covariance()
    # The trace of the root of A B is the sum of the singular values of root A root B.
    cross = torch.linalg.svdvals(_root(covariances[0]) @ _root(covariances[1])).sum()
    spread = covariances[0].trace() + covariances[1].trace() - 2 * cross
    distance = (real.mean - fake.mean).square().sum() + spread
    return max(distance.item(), 0.0)  # rounding may leave -1e-14 of two equal distributions


def kid(real: torch.Tensor, fake: torch.Tensor, block_rows: int | None = None) -> float:
    """Kernel distance: the unbiased MMD^2 of all pairs, with the kernel (x . y / d + 1)^3.

    Its mean is 0 for fakes drawn like the reals, at any count, so it may be negative; lower is
    better. In (-inf, inf), no unit. Binkowski et al. 2018; Gretton et al. 2012, equation 3.
    Published
    values are means over random subsets, which scatter around this one. Trap: collapse shows, but
    no more than lost fidelity.

    Args:
        real: float32 or float64 (n, d), finite, n at least 2.
        fake: float32 or float64 (m, d), finite, m at least 2; on the same device.
        block_rows: Annotations of the kernel at a time; as many as bounded memory allows if None.

    Raises:
        ValueError: The features are not as above.
    """
    check_features("real", real, rows=2)
    check_features("fake", fake, rows=2, like=real.shape[1])
    return _mmd(real.double(), fake.double(), block_rows).item()


def _root(covariance: torch.Tensor) -> torch.Tensor:
    """The symmetric square root, float64 (d, d)."""
    values, vectors = eigh(covariance)
    # An eigenvalue of 0 comes out as some 1e-16 of the largest, whose root would be 1e-8 of its.
    floor = len(values) * torch.finfo(values.dtype).eps * values[-1]
    return vectors * values.where(values > floor, 0).sqrt() @ vectors.T


def _mmd(x: torch.Tensor, y: torch.Tensor, block_rows: int | None = None) -> torch.Tensor:
    within = [
        (_kernel_sum(rows, rows, block_rows) - (rows.square().mean(1) + 1).pow(3).sum())
        / (len(rows) * (len(rows) - 1))
        for rows in (x, y)
    ]
    return within[0] + within[1] - 2 * _kernel_sum(x, y, block_rows) / (len(x) * len(y))


def _kernel_sum(x: torch.Tensor, y: torch.Tensor, block_rows: int | None) -> torch.Tensor:
    total = x.new_zeros(())
    for rows in blocks(len(x), len(y), block_rows):
        total += (x[rows] @ y.T).div_(x.shape[1]).add_(1).pow_(3).sum()
    return total
