"""The scatter of random halves, many at once: the replicates behind the intervals of a report.

`confidence.half_samples` calls a metric once for each half. Of the metrics here one pass over the
distances, or one product of blocks, serves all halves: 200 of 10,000 samples take seconds.

The reals are held fixed: the scatter is that of drawing other fakes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from ganray.metrics.frechet import Moments, kid
from ganray.metrics.manifold import Manifold
from ganray.metrics.matrices import TIE, blocks, refuse_features, squared_distances

_REACH = 24
"""Neighbours of each fake to know. Its 3rd within a half lies beyond with chance 2e-5."""
_PARTS = 40
"""Of which a half takes 20, where sums of parts are all that a metric needs."""

Replicates = NDArray[np.float64]
"""(R,): the metric of each half."""


def manifold_halves(
    real: Manifold,
    fake: torch.Tensor,
    halves: int,
    *,
    rng_seed: int,
    precision_recall_k: int = 3,
    density_coverage_k: int = 5,
) -> dict[str, Replicates]:
    """``manifold.manifold_scores`` of random halves of the fakes, by the names of its fields.

    Args:
        real: Fit with k at least both of the k below.
        fake: float32 or float64 (m, d), finite, m at least 8, on the device of the reals.
        halves: R.
        rng_seed: Of the halves.
        precision_recall_k: As there.
        density_coverage_k: As there.

    Raises:
        ValueError: The fakes are not as above.
    """
    refuse_features("fake", fake, rows=8, like=real.features.shape[1])
    centre = real.features.double().mean(0)
    reals, fakes = real.features.double() - centre, fake.double() - centre
    in_half = _random_halves(len(fakes), halves, rng_seed, fake.device)
    radii, reach = _radii(fakes, in_half, precision_recall_k)
    precise = torch.zeros(len(fakes), dtype=torch.bool, device=fake.device)
    held = torch.zeros(len(fakes), dtype=torch.int64, device=fake.device)
    recalled = torch.zeros(halves, dtype=torch.int64, device=fake.device)
    covered = torch.zeros_like(recalled)
    closed = real.nearest[:, precision_recall_k - 1, None] * (1 + TIE)
    opened = real.nearest[:, density_coverage_k - 1, None] * (1 - TIE)
    for rows in blocks(len(reals), len(fakes)):
        squares = squared_distances(reals[rows], fakes)
        precise |= (squares <= closed[rows]).any(0)
        inside = squares < opened[rows]
        held += inside.sum(0)
        row, fakes_met = inside.nonzero().T
        row_near, fakes_near = (squares <= reach).nonzero().T
        far = squares[row_near, fakes_near]
        for i, half in enumerate(in_half):
            covered[i] += _distinct(row[half[fakes_met]], len(squares))
            in_ball = half[fakes_near] & (far <= radii[i][fakes_near])
            recalled[i] += _distinct(row_near[in_ball], len(squares))
    weights = in_half.double() / in_half.sum(1, keepdim=True)
    found = {
        "precision": weights @ precise.double(),
        "recall": recalled.double() / len(reals),
        "density": weights @ held.double() / density_coverage_k,
        "coverage": covered.double() / len(reals),
    }
    return {name: values.cpu().numpy() for name, values in found.items()}


def moments_halves(
    statistic: Callable[[Moments], float], rows: torch.Tensor, halves: int, *, rng_seed: int
) -> Replicates:
    """A statistic of the moments of random halves of the rows (n, d): Vendi, rank, Frechet.

    A half is 20 of 40 random parts, whose moments are merged.
    """
    parts = [Moments.of(rows[part]) for part in _parts(len(rows), rng_seed)]
    found = []
    for chosen in _random_halves(len(parts), halves, rng_seed).numpy():
        whole = Moments.none(rows.shape[1], rows.device)
        for part, taken in zip(parts, chosen, strict=True):
            whole = whole.merge(part) if taken else whole
        found.append(statistic(whole))
    return np.array(found)


def kid_halves(real: torch.Tensor, fake: torch.Tensor, halves: int, *, rng_seed: int) -> Replicates:
    """``frechet.kid`` of random halves of the fakes (m, d) against all reals (n, d)."""
    x, y = real.double(), fake.double()
    groups = [y[part] for part in _parts(len(y), rng_seed)]
    sizes = y.new_tensor([len(group) for group in groups])
    own = torch.stack([((group.square().mean(1) + 1) ** 3).sum() for group in groups])
    across = torch.stack([_sums(group, groups) for group in groups])
    to_real = sum(
        (_sums(x[rows], groups) for rows in blocks(len(x), len(y))), torch.zeros_like(own)
    )
    # The reals against each other: from kid's own sum, all fakes being all groups.
    taken = _random_halves(len(groups), halves + 1, rng_seed).to(y)
    taken[0] = 1
    m = taken @ sizes
    among = ((taken @ across) * taken).sum(1) - taken @ own
    of_fakes = among / (m * (m - 1)) - 2 * (taken @ to_real) / (len(x) * m)
    return (kid(real, fake) + of_fakes[1:] - of_fakes[0]).cpu().numpy()


def _random_halves(
    count: int, halves: int, rng_seed: int, device: torch.device | None = None
) -> torch.Tensor:
    """Bool (halves, count), count // 2 of each row true."""
    rng = np.random.default_rng(rng_seed)
    chosen = np.zeros((halves, count), np.bool_)
    for row in chosen:
        row[rng.permutation(count)[: count // 2]] = True
    return torch.from_numpy(chosen).to(device)


def _parts(count: int, rng_seed: int) -> list[torch.Tensor]:
    """Row numbers of nearly equal random parts."""
    order = np.random.default_rng(rng_seed).permutation(count)
    return [torch.from_numpy(part) for part in np.array_split(order, min(_PARTS, count // 4))]


def _radii(fakes: torch.Tensor, in_half: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Closed squared radii of the fakes' balls: (R, m) in each half, and (m,) the largest known."""
    reach = min(_REACH, len(fakes) - 1)
    # Made before: small tensors that stay would lie where a block was, so that the next does not
    # fit there.
    distances = fakes.new_empty(len(fakes), reach)
    neighbours = distances.new_empty(distances.shape, dtype=torch.int64)
    for rows in blocks(len(fakes), len(fakes)):
        squares = squared_distances(fakes[rows], fakes)
        squares.diagonal(rows.start).fill_(-1)  # itself comes first, before any duplicate
        found = squares.topk(reach + 1, largest=False)
        distances[rows] = found.values[:, 1:] * (1 + TIE)
        neighbours[rows] = found.indices[:, 1:]
    radii = torch.empty(in_half.shape, dtype=distances.dtype, device=distances.device)
    for radius, half in zip(radii, in_half, strict=True):
        nearer = (half[neighbours].cumsum(1) < k).sum(1, keepdim=True)
        radius[:] = distances.gather(1, nearer.clamp_max(distances.shape[1] - 1))[:, 0]
    return radii, distances[:, -1]


def _distinct(rows: torch.Tensor, count: int) -> torch.Tensor:
    """How many of `count` rows are named at least once in int64 (p,)."""
    met = torch.zeros(count, dtype=torch.bool, device=rows.device)
    met[rows] = True
    return met.sum()


def _sums(x: torch.Tensor, groups: list[torch.Tensor]) -> torch.Tensor:
    """Sum of the kernel of x's rows with those of each group, (g,)."""
    return torch.stack([_kernel(x, group).sum() for group in groups])


def _kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x @ y.T).div_(x.shape[1]).add_(1).pow_(3)
