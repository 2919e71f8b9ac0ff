"""Feature matrices: which are accepted, and distances between them in blocks of bounded memory.

A feature matrix is a tensor on any device, float32 or float64 (n, d), finite, one row an image.
"""

from __future__ import annotations

from typing import Any

import scipy.linalg
import torch

BLOCK_BYTES = 16 * 2**20
"""Of one float64 block of an (n, m) matrix; four live at a time at most. Larger ones leave the
caches: 64 MiB takes a third longer on the CPU."""
NEAR = 1e-5
"""Squared distances below this share of the squared norms are taken from differences."""
TIE = 1e-8
"""Squared distances that differ by less than this share are equal: above their rounding errors
(1e-10 where most is cancelled), below the rounding of float32 features (6e-8)."""


def check_features(name: str, features: torch.Tensor, rows: int, like: int | None = None) -> None:
    """Refuse what is not a feature matrix of at least `rows` rows, and of `like` columns if given.

    Raises:
        ValueError: It is not.
    """
    shape, dtype = tuple(features.shape), features.dtype
    if dtype not in (torch.float32, torch.float64) or len(shape) != 2 or 0 in shape[1:]:
        raise ValueError(
            f"{name}: {str(dtype).removeprefix('torch.')} {shape}; must be float32 or float64 "
            "(n, d), d at least 1; flatten each image's features to a row"
        )
    if shape[0] < rows:
        raise ValueError(f"{name}: {shape[0]} rows; must be at least {rows}; add images")
    if like is not None and shape[1] != like:
        raise ValueError(
            f"{name}: {shape[1]} columns beside {like}; must be as many; take both from one network"
        )
    if not features.isfinite().all():
        bad = int((~features.isfinite()).any(1).sum())
        raise ValueError(
            f"{name}: {bad} rows with inf or nan; must be finite; look for where training diverged"
        )


def blocks(rows: int, columns: int, block_rows: int | None = None) -> list[slice]:
    """Slices that cover `rows` rows, each of which times `columns` float64 is one block.

    Args:
        rows: Of the whole matrix, not negative.
        columns: Of the whole matrix, not negative.
        block_rows: Annotations of a slice; as many as ``BLOCK_BYTES`` holds if None, but at least one.
    """
    step = block_rows or max(1, BLOCK_BYTES // (8 * max(columns, 1)))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def eigh(symmetric: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues (d,), ascending, and vectors (d, d) of a symmetric float64 (d, d).

    The fast way does not converge for some matrices of nearly equal eigenvalues, which are what
    collapsed samples have; then the slow one does, QR iteration.
    """
    try:
        return torch.linalg.eigh(symmetric)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        found: Any = scipy.linalg.eigh(symmetric.cpu().numpy(), driver="ev")
        values, vectors = found
        return torch.from_numpy(values).to(symmetric), torch.from_numpy(vectors).to(symmetric)


def squared_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distances of the rows of x to those of y, exactly 0 between equal rows.

    A product of matrices is many times as fast as differences, but loses what is nearer than
    the norms are long; so the few pairs that are near are done again, from their differences.
    They are fewest with the centre of the rows at 0.

    Args:
        x: float64 (n, d), centred.
        y: float64 (m, d), from which the same centre was taken.

    Returns:
        float64 (n, m), not negative, right to a relative error far below ``TIE``.
    """
    norms = x.square().sum(1, keepdim=True)
    squares = (norms + y.square().sum(1)).addmm_(x, y.T, alpha=-2)
    # Near rows have near norms, so x's stand for both.
    near = squares < 2 * NEAR * norms
    if near.sum() > near.numel() // 4:  # all in a few points: plain differences take less
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()
    for pairs in near.nonzero().split(max(1, BLOCK_BYTES // (64 * x.shape[1]))):
        rows, columns = pairs.T
        squares[rows, columns] = (x[rows] - y[columns]).square_().sum(1)
    return squares
