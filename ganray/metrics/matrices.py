"""Feature matrices and the distances between their rows, in blocks of bounded memory.

A feature matrix is a finite float32 or float64 tensor (n, d) on any device, with one row per image.
"""

from __future__ import annotations

from typing import Any

import scipy.linalg
import torch

BLOCK_BYTES = 16 * 2**20
"""Size of one float64 block of an (n, m) matrix; at most four exist at a time. Larger blocks do not
fit the CPU's caches: 64 MiB takes a third longer."""
NEAR = 1e-5
"""Squared distances below this fraction of the squared norms are computed from differences."""
TIE = 1e-8
"""Relative difference below which squared distances count as equal. It is above their rounding
error (1e-10 where most digits cancel) and below the rounding of float32 features (6e-8)."""


def check_features(name: str, features: torch.Tensor, rows: int, like: int | None = None) -> None:
    """Check that `features` is a feature matrix.

    Args:
        name: Name of the matrix in error messages.
        features: The matrix.
        rows: Minimum number of rows.
        like: Required number of columns; None if any number will do.

    Raises:
        ValueError: It is not such a matrix.
    """
    shape, dtype = tuple(features.shape), features.dtype
    if dtype not in (torch.float32, torch.float64) or len(shape) != 2 or 0 in shape[1:]:
        raise ValueError(
            f"{name}: {str(dtype).removeprefix('torch.')} {shape}; must be float32 or float64 "
            "(n, d), d at least 1; flatten the features of each image to a row"
        )
    if shape[0] < rows:
        raise ValueError(f"{name}: {shape[0]} rows; must be at least {rows}; add images")
    if like is not None and shape[1] != like:
        raise ValueError(
            f"{name}: {shape[1]} columns, but the other matrix has {like}; use the same network for"
            " both"
        )
    if not features.isfinite().all():
        bad = int((~features.isfinite()).any(1).sum())
        raise ValueError(
            f"{name}: {bad} rows with inf or nan; must be finite; check whether training diverged"
        )


def blocks(rows: int, columns: int) -> list[slice]:
    """Return slices that cover `rows` rows; a slice times `columns` fits ``BLOCK_BYTES``.

    A slice has at least one row.
    """
    step = max(1, BLOCK_BYTES // (8 * max(columns, 1)))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def eigh(symmetric: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return eigenvalues (d,), ascending, and eigenvectors (d, d) of a symmetric float64 matrix.

    torch's fast algorithm does not converge for some matrices with nearly equal eigenvalues, which
    collapsed samples have. QR iteration, which is slow, takes its place there.
    """
    try:
        return torch.linalg.eigh(symmetric)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        result: Any = scipy.linalg.eigh(symmetric.cpu().numpy(), driver="ev")
        values, vectors = result
        return torch.from_numpy(values).to(symmetric), torch.from_numpy(vectors).to(symmetric)


def squared_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return squared Euclidean distances between rows, exactly 0 between equal rows.

    A matrix product is many times faster than differences, but cancels where rows are closer than
    their norms are long. Those few pairs are recomputed from differences. They are fewest if the
    rows are centered.

    Args:
        x: float64 (n, d), centered.
        y: float64 (m, d), with the same center subtracted.

    Returns:
        float64 (n, m), not negative, with a relative error far below ``TIE``.
    """
    norms = x.square().sum(1, keepdim=True)
    squares = (norms + y.square().sum(1)).addmm_(x, y.T, alpha=-2)
    # Near rows have near norms, so the norms of x stand for both.
    near = squares < 2 * NEAR * norms
    if near.sum() > near.numel() // 4:  # all rows in a few points: plain differences are cheaper
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()
    for pairs in near.nonzero().split(max(1, BLOCK_BYTES // (64 * x.shape[1]))):
        rows, columns = pairs.T
        squares[rows, columns] = (x[rows] - y[columns]).square_().sum(1)
    return squares
