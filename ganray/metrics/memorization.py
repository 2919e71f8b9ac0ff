"""Memorization: whether samples are copies of training images.

A sample that owes nothing to single training images is near one no more often than near a held-out
image, except that there are more of them. The excess is the share of copies. It does not depend on
the samples' quality, unlike two published measures that are computed as well: bad samples are far
from all real images, and look "authentic".
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
_TINY = 1e-12
"""Squared distance that stands for 0 as a divisor."""


@dataclass(frozen=True)
class TrainingNeighbours:
    """The training images that are nearest to n images."""

    nearest: torch.Tensor
    """int64 (n,): the nearest training image."""
    distances: torch.Tensor
    """float64 (n,): squared distance to it."""
    neighbours: torch.Tensor
    """int64 (n,): the training image nearest to `nearest`."""
    spacing: torch.Tensor
    """float64 (n,): squared distance of these two."""
    nearest_held_out: torch.Tensor
    """int64 (n,): the nearest held-out image."""
    near_training: torch.Tensor
    """bool (n,): whether the nearest real image is a training image, and nearer to this one than to
    any other real image."""
    near_held_out: torch.Tensor
    """bool (n,): the same for held-out images."""
    odds: float
    """Number of training images for each held-out image that an image is compared with."""

    @classmethod
    def of(
        cls,
        images: torch.Tensor,
        training: torch.Tensor,
        held_out: torch.Tensor,
        *,
        are_held_out: bool = False,
    ) -> TrainingNeighbours:
        """Search among t training and h held-out images, which nothing was trained on.

        Args:
            images: Feature matrix (n, d) of any dtype, n at least 1.
            training: Feature matrix (t, d), t at least 2.
            held_out: Feature matrix (h, d), h at least 2.
            are_held_out: Whether `images` is `held_out`, of which each is compared with all others.
        """
        own = torch.arange(len(images), device=images.device) if are_held_out else None
        distances, nearest = nearest_rows(images, training)
        others, nearest_other = nearest_rows(images, held_out, own)
        found, index = nearest.unique(return_inverse=True)
        spacing, neighbours = nearest_rows(training[found], training, found)
        # The distances of these training images, and of held-out ones, to any other real image.
        room = torch.minimum(spacing, nearest_rows(training[found], held_out)[0])[index]
        found, at = nearest_other.unique(return_inverse=True)
        room_other = torch.minimum(
            nearest_rows(held_out[found], training)[0],
            nearest_rows(held_out[found], held_out, found)[0],
        )[at]
        return cls(
            nearest,
            distances,
            neighbours[index],
            spacing[index],
            nearest_other,
            near_training=(distances < others) & (distances < room),
            near_held_out=(others < distances) & (others < room_other),
            odds=len(training) / (len(held_out) - are_held_out),
        )

    def memorized(self) -> Estimate:
        """Return the share of the images that are copies of training images, in (-inf, 1].

        Those that are so near a training image, less `odds` times those that are so near a held-out
        image: around 0 without memorization, 1 if all are copies.

        The 95 % interval treats images that are near the same real image as one observation, as
        images that repeat, or resemble a few real images at the edge, say less than their number.
        """
        n = len(self.distances)
        near = self.nearest[self.near_training].unique(return_counts=True)[1].double()
        other = self.nearest_held_out[self.near_held_out].unique(return_counts=True)[1].double()
        value = (near.sum() - self.odds * other.sum()).item() / n
        # One more held-out image, lest none of them seem certain.
        one = torch.cat([near, other, near.new_ones(1)]).mean().square()
        variance = near.square().sum() + self.odds**2 * (other.square().sum() + one)
        reach = _Z * math.sqrt(variance.item()) / n
        return Estimate(value, value - reach, min(1.0, value + reach), n)

    def authenticity(self) -> Estimate:
        """Return the share of images farther from their training image than its neighbour is.

        Alaa et al. 2022, section 3.3. In [0, 1]; 0 for copies. Trap: it is high for bad samples.
        """
        authentic = int((self.distances > self.spacing).sum())
        return share_interval(authentic, len(self.distances))

    def closest(self) -> torch.Tensor:
        """Return all images, int64 (n,), those that are most like copies first.

        They are nearest to their training image, relative to its distance to other ones.
        """
        return (self.distances / self.spacing.clamp_min(_TINY)).argsort(stable=True)


def copying_statistic(samples: TrainingNeighbours, held_out: TrainingNeighbours) -> float:
    """Return C_T of a single cell (Meehan, Chaudhuri and Dasgupta 2020), a z-score.

    It is that of Mann and Whitney's test of the samples' distances to their nearest training images
    against those of held-out images. Below -3: copies. Trap: far above 0 for bad samples.
    """
    from scipy.stats import mannwhitneyu  # takes half a second, which workers need not wait for

    a, b = (x.distances.cpu().numpy() for x in (samples, held_out))
    u, n, h = float(mannwhitneyu(a, b).statistic), len(a), len(b)
    return (u - n * h / 2) / math.sqrt(n * h * (n + h + 1) / 12)


def nearest_rows(
    queries: torch.Tensor, points: torch.Tensor, excluded: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the squared distance, float64 (q,), and row, int64 (q,), of the nearest point.

    The nearest one is found in float32, so that of nearly equal ones it may be the other; its
    distance is exact.

    Args:
        queries: Feature matrix (q, d), of any dtype.
        points: Feature matrix (p, d) on the same device.
        excluded: int64 (q,): a row of `points` for each query, which is passed over; None: none.
    """
    centre = queries.float().mean(0)
    x = queries.float() - centre
    closest = x.new_full((len(x),), torch.inf)
    rows = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for start in range(0, len(points), _POINTS):
        y = points[start : start + _POINTS].float() - centre
        lengths = y.square().sum(1)
        for part in blocks(len(x), len(y)):
            squares = lengths.addmm(x[part], y.T, alpha=-2)  # less those of x
            if excluded is not None:
                at = excluded[part] - start
                inside = ((at >= 0) & (at < len(y))).nonzero()[:, 0]
                squares[inside, at[inside]] = torch.inf
            values, columns = squares.min(1)
            closer = values < closest[part]
            closest[part] = values.where(closer, closest[part])
            rows[part] = (columns + start).where(closer, rows[part])
    distances = torch.empty(len(x), dtype=torch.float64, device=x.device)
    for part in blocks(len(x), x.shape[1]):
        difference = queries[part].double() - points[rows[part]].double()
        distances[part] = difference.square().sum(1)
    return distances, rows
