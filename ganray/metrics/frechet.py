"""Distances between the feature distributions of two sets of images: Frechet distance, KID, CMMD.

All mix fidelity and diversity into one number, so none shows by itself that modes are missing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from ganray.metrics.matrices import blocks, check_features, eigh


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of feature rows, which is all that the Frechet distance needs."""

    count: int
    """Number of rows."""
    mean: torch.Tensor
    """float64 (d,)."""
    scatter: torch.Tensor
    """float64 (d, d): sum over rows of the outer product of their deviation from the mean."""

    @classmethod
    def none(cls, width: int, device: torch.device | None = None) -> Moments:
        """Return the moments of no rows."""
        zeros = torch.zeros(width, dtype=torch.float64, device=device)
        return cls(0, zeros, torch.zeros(width, width, dtype=torch.float64, device=device))

    @classmethod
    def of(cls, features: torch.Tensor) -> Moments:
        """Return the moments of a feature matrix (n, d), n at least 0, on its device."""
        check_features("features", features, rows=0)
        if len(features) == 0:
            return cls.none(features.shape[1], features.device)
        rows = features.double()
        mean = rows.mean(0)
        rows = rows - mean
        return cls(len(rows), mean, rows.T @ rows)

    def covariance(self) -> torch.Tensor:
        """Return the unbiased covariance, float64 (d, d), of at least 2 rows."""
        if self.count < 2:
            raise ValueError(f"count={self.count}; a covariance needs at least 2 rows; add images")
        return self.scatter / (self.count - 1)

    @cached_property
    def deviation(self) -> torch.Tensor:
        """The symmetric square root of the covariance, float64 (d, d)."""
        values, vectors = eigh(self.covariance())
        # A zero eigenvalue is computed as about 1e-16 of the largest; its root would be 1e-8 of it.
        floor = len(values) * torch.finfo(values.dtype).eps * values[-1]
        return vectors * values.where(values > floor, 0).sqrt() @ vectors.T


def frechet_distance(reference: Moments, samples: Moments) -> float:
    """Return the squared Frechet distance of two normal distributions (Heusel et al. 2017, eq. 6).

    On Inception features it is the FID. In [0, inf), in squared units of the features; lower is
    better.

    Traps: it is biased upwards, more so for fewer images (two halves of one set are not 0 apart),
    so only equal counts compare, next to reference against reference. It depends on two moments
    only. Lost diversity raises it, but no more than lost fidelity.
    """
    if reference.mean.shape != samples.mean.shape:
        raise ValueError(
            f"samples: {len(samples.mean)} columns, but the reference has {len(reference.mean)}; "
            "use the same network for both"
        )
    # The trace of the root of A B is the sum of the singular values of root(A) root(B).
    cross = torch.linalg.svdvals(reference.deviation @ samples.deviation).sum()
    spread = reference.covariance().trace() + samples.covariance().trace() - 2 * cross
    distance = (reference.mean - samples.mean).square().sum() + spread
    return max(distance.item(), 0.0)  # rounding may leave -1e-14 for equal distributions


def frechet_distance_of_rows(reference: torch.Tensor, samples: torch.Tensor) -> float:
    """Return `frechet_distance` of feature matrices (n, d) and (m, d), faster if n, m < d.

    The roots of two covariances have the same product as the centered rows: the trace of the root
    of A B is the sum of the singular values of X Y^T, (n, m), over sqrt((n - 1) (m - 1)).
    """
    check_features("reference", reference, rows=2)
    check_features("samples", samples, rows=2, like=reference.shape[1])
    x, y = reference.double(), samples.double()
    shift = (x.mean(0) - y.mean(0)).square().sum()
    x, y = ((rows - rows.mean(0)) / math.sqrt(len(rows) - 1) for rows in (x, y))
    cross = torch.linalg.svdvals(x @ y.T).sum()
    distance = shift + x.square().sum() + y.square().sum() - 2 * cross
    return max(distance.item(), 0.0)


def kid(reference: torch.Tensor, samples: torch.Tensor) -> float:
    """Return the kernel distance: the unbiased MMD^2 of all pairs, kernel (x . y / d + 1)^3.

    Binkowski et al. 2018; Gretton et al. 2012, equation 3. In (-inf, inf), without a unit; lower is
    better. Its mean is 0 for samples from the reference distribution at any count, so it may be
    negative. Published values are means over random subsets, which scatter around this one.

    Trap: collapse raises it, but no more than lost fidelity.

    Args:
        reference: Feature matrix (n, d), n at least 2.
        samples: Feature matrix (m, d), m at least 2, on the same device.
    """
    check_features("reference", reference, rows=2)
    check_features("samples", samples, rows=2, like=reference.shape[1])
    x, y = reference.double(), samples.double()
    within = [
        (kernel_sum(rows, rows) - (rows.square().mean(1) + 1).pow(3).sum())
        / (len(rows) * (len(rows) - 1))
        for rows in (x, y)
    ]
    return (within[0] + within[1] - 2 * kernel_sum(x, y) / (len(x) * len(y))).item()


CMMD_SIGMA, CMMD_SCALE = 10, 1000
"""Bandwidth of CMMD's kernel, and the factor that makes its values readable."""


def cmmd(reference: torch.Tensor, samples: torch.Tensor) -> float:
    """Return the CLIP-MMD: 1000 times the biased MMD^2, Gaussian kernel exp(-|x - y|^2 / 200).

    Jayasumana et al. 2024; Gretton et al. 2012, equation 5. In [0, inf), without a unit; lower is
    better.

    Trap: the mean includes the pairs of each row with itself, so it is biased upwards for few
    images, and only equal counts compare.

    Args:
        reference: CLIP embeddings of length 1, (n, d), n at least 1.
        samples: CLIP embeddings of length 1, (m, d), m at least 1, on the same device.
    """
    check_features("reference", reference, rows=1)
    check_features("samples", samples, rows=1, like=reference.shape[1])
    x, y = reference.double(), samples.double()
    within = _gaussian_mean(x, x) + _gaussian_mean(y, y)
    return CMMD_SCALE * max((within - 2 * _gaussian_mean(x, y)).item(), 0.0)  # rounding


def _gaussian_mean(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    total = x.new_zeros(())
    for rows in blocks(len(x), len(y)):
        distances = torch.cdist(x[rows], y).square_()
        total += distances.div_(-2 * CMMD_SIGMA**2).exp_().sum()
    return total / (len(x) * len(y))


def kernel_sum(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the sum of KID's kernel over all pairs of rows of float64 (n, d) and (m, d)."""
    total = x.new_zeros(())
    for rows in blocks(len(x), len(y)):
        total += (x[rows] @ y.T).div_(x.shape[1]).add_(1).pow_(3).sum()
    return total
