"""Memorization: whether samples are copies of training images.

A sample that owes nothing to single training images is near one no more often than near a held-out
image, except that there are more of them. The excess is the share of copies. It does not depend on
the samples' quality, unlike two published measures that are computed as well: bad samples are far
from all real images, and look "authentic".

It rests on training and held-out images being alike. Held-out images that are compared with each
other and the training images in the same way show how far they are: their excess would be 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ganray.metrics.intervals import Estimate, share_interval
from ganray.metrics.matrices import blocks

_POINTS = 8_192
"""Points that are compared at a time."""
_Z = 1.96
"""Half of a 95 % interval in standard errors."""
_ALIKE = 0.1
"""Share of held-out images that are alike another real image."""
_TINY = 1e-12
"""Squared distance that stands for 0 as a divisor."""


@dataclass(frozen=True)
class TrainingNeighbors:
    """The training and held-out images that are nearest to n images."""

    nearest: torch.Tensor
    """int64 (n,): the nearest training image."""
    distances: torch.Tensor
    """float64 (n,): squared distance to it."""
    nearest_held_out: torch.Tensor
    """int64 (n,): the nearest held-out image."""
    held_out_distances: torch.Tensor
    """float64 (n,): squared distance to it."""
    odds: float
    """Number of training images for each held-out image that an image is compared with."""

    @classmethod
    def of(
        cls,
        images: torch.Tensor,
        training: torch.Tensor,
        held_out: torch.Tensor,
        own: torch.Tensor | None = None,
    ) -> TrainingNeighbors:
        """Search among t training and h held-out images, which nothing was trained on.

        Args:
            images: Feature matrix (n, d) of any dtype, n at least 1.
            training: Feature matrix (t, d), t at least 1.
            held_out: Feature matrix (h, d), h at least 2.
            own: int64 (n,): rows of `held_out` that the images are, and are not compared with;
                None: they are other images.
        """
        distances, nearest = nearest_rows(images, training)
        others, nearest_other = nearest_rows(images, held_out, own)
        odds = len(training) / (len(held_out) - (own is not None))
        return cls(nearest, distances, nearest_other, others, odds)

    def radius(self) -> float:
        """Return the squared distance within which 10 % of the images have a real image.

        Of held-out images it is a distance at which real images are alike by chance. A sample that
        is farther from all real images is no copy.
        """
        return torch.minimum(self.distances, self.held_out_distances).quantile(_ALIKE).item()

    def memorized(self, radius: float) -> Estimate:
        """Return the share of the images that are copies of training images, in (-inf, 1].

        Those within the squared `radius` of a training image, and nearer to that than to any
        held-out image, less `odds` times those for which it is the other way round: around 0
        without memorization, 1 if all are copies.

        The 95 % interval treats images that are near the same real image as one observation, as
        images that repeat, or resemble a few real images at the edge, say less than their number.
        """
        n, is_nearer = len(self.distances), self.distances < self.held_out_distances
        near, other = (
            rows[condition & (distances <= radius)].unique(return_counts=True)[1].double()
            for rows, distances, condition in (
                (self.nearest, self.distances, is_nearer),
                (self.nearest_held_out, self.held_out_distances, ~is_nearer),
            )
        )
        value = (near.sum() - self.odds * other.sum()).item() / n
        # One more held-out image, lest none of them seem certain.
        one = torch.cat([near, other, near.new_ones(1)]).mean().square()
        variance = near.square().sum() + self.odds**2 * (other.square().sum() + one)
        reach = _Z * math.sqrt(variance.item()) / n
        return Estimate(value, value - reach, min(1.0, value + reach), n)


@dataclass(frozen=True)
class TrainingSpacing:
    """Distances between the training images that are nearest to n images and their neighbors."""

    neighbors: torch.Tensor
    """int64 (n,): the training image nearest to that training image."""
    distances: torch.Tensor
    """float64 (n,): squared distance of these two."""

    @classmethod
    def of(cls, nearest: torch.Tensor, training: torch.Tensor) -> TrainingSpacing:
        """Search the neighbors of some training images, int64 (n,), among all, (t, d)."""
        found, index = nearest.unique(return_inverse=True)
        distances, rows = nearest_rows(training[found.to(training.device)], training, found)
        return cls(rows.to(index.device)[index], distances.to(index.device)[index])

    def authenticity(self, samples: TrainingNeighbors) -> Estimate:
        """Return the share of samples farther from their training image than its neighbor is.

        Alaa et al. 2022, section 3.3. In [0, 1]; 0 for copies. Trap: it is high for bad samples.
        """
        authentic = int((samples.distances > self.distances).sum())
        return share_interval(authentic, len(samples.distances))

    def closest(self, samples: TrainingNeighbors) -> torch.Tensor:
        """Return all samples, int64 (n,), those that are most like copies first.

        They are nearest to their training image, relative to its distance to other ones.
        """
        return (samples.distances / self.distances.clamp_min(_TINY)).argsort(stable=True)


def copying_statistic(samples: TrainingNeighbors, held_out: TrainingNeighbors) -> float:
    """Return C_T of a single cell (Meehan, Chaudhuri and Dasgupta 2020), a z-score.

    It is that of Mann and Whitney's test of the samples' distances to their nearest training images
    against those of held-out images. Below -3 for copies. Traps: so it is for blurred samples and
    those of a few modes, which are near all real images; it is far above 0 for noise.
    """
    from scipy.stats import mannwhitneyu  # takes half a second, which workers need not wait for

    a, b = (x.distances.cpu().numpy() for x in (samples, held_out))
    u, n, h = float(mannwhitneyu(a, b).statistic), len(a), len(b)
    return (u - n * h / 2) / math.sqrt(n * h * (n + h + 1) / 12)


def nearest_rows(
    queries: torch.Tensor, points: torch.Tensor, excluded: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the squared distance, float64 (q,), and row, int64 (q,), of the nearest point.

    It is found in float32, so that of nearly equal ones it may be another; its distance is exact.

    Args:
        queries: Feature matrix (q, d), of any dtype.
        points: Feature matrix (p, d); on the CPU it is moved to the queries' device block by block.
        excluded: int64 (q,): a row of `points` for each query, which is passed over; None: none.
    """
    device = queries.device
    center = queries.float().mean(0)
    x = queries.float() - center
    closest = x.new_full((len(x),), torch.inf)
    rows = torch.zeros(len(x), dtype=torch.int64, device=device)
    for start in range(0, len(points), _POINTS):
        y = points[start : start + _POINTS].to(device).float() - center
        lengths = y.square().sum(1)
        for part in blocks(len(x), len(y)):
            squares = lengths.addmm(x[part], y.T, alpha=-2)  # less those of x
            if excluded is not None:
                at = excluded[part].to(device) - start
                inside = ((at >= 0) & (at < len(y))).nonzero()[:, 0]
                squares[inside, at[inside]] = torch.inf
            values, columns = squares.min(1)
            closer = values < closest[part]
            closest[part] = values.where(closer, closest[part])
            rows[part] = (columns + start).where(closer, rows[part])
    distances = torch.empty(len(x), dtype=torch.float64, device=device)
    for part in blocks(len(x), x.shape[1]):
        found = points[rows[part].to(points.device)].to(device)
        distances[part] = (queries[part].double() - found.double()).square().sum(1)
    return distances, rows
