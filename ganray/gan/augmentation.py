"""Differentiable augmentation of the images that D sees, for small data sets.

ADA (Karras et al. 2020, "Training GANs with limited data", appendix B) makes each change with
probability p, here those of color with half of it. DiffAugment (Zhao et al. 2020) makes all of its
changes to every image. All changes are affine in the image, so that G's gradients and gradient
penalties pass through them.

Unlike in ADA, geometric changes are one bilinear interpolation without a low-pass filter, and there
are no image filters and no noise, which R3GAN does not use either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ganray.config.schema import AugmentConfig

DRAWS = 31
"""Random numbers per image."""
_COLOR = 0.5
"""Probability of ADA's changes of color, relative to that of the others: R3GAN's."""
_CUTOUT = 0.5
"""Side of the rectangle that cutout makes gray, relative to that of the image."""
_SHIFT = 1 / 8
"""Maximum shift in whole pixels, and standard deviation of others, relative to the side."""


@dataclass(frozen=True)
class Augmentation:
    """Augmentation by a policy other than `none`.

    Args:
        config: The policy.
        pixel_min: Value of black, -1 or 0. White is 1.
    """

    config: AugmentConfig
    pixel_min: float

    def __call__(self, images: torch.Tensor, draws: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        """Return changed images, float32 (n, C, H, W).

        Args:
            images: float (n, C, H, W).
            draws: Uniform in [0, 1), float32 (n, DRAWS); what changes in an image follows from it.
            p: Probability of each change of ADA, float32 ().
        """
        gray = (1 + self.pixel_min) / 2
        with torch.autocast(images.device.type, enabled=False):
            images = (images.float() - gray) / (1 - gray)
            if self.config.policy == "ada":
                images = _ada(images, _Draws(draws), p)
            else:
                has_color = self.config.policy == "diffaugment"
                images = _diff_augment(images, _Draws(draws), has_color)
            return images * (1 - gray) + gray


class _Draws:
    """Hands out the columns of the random numbers, each (n,), and each once."""

    def __init__(self, draws: torch.Tensor) -> None:
        self._columns = iter(draws.unbind(1))

    def uniform(self, low: float, high: float) -> torch.Tensor:
        return low + (high - low) * next(self._columns)

    def normal(self, std: float) -> torch.Tensor:
        # Up to 5 standard deviations; a draw of 0 would be infinitely many.
        return std * torch.special.ndtri(next(self._columns).clamp(3e-7, 1 - 3e-7))

    def integer(self, low: int, high: int) -> torch.Tensor:
        """Return integers in [low, high], as floats."""
        return (low + (high + 1 - low) * next(self._columns)).floor()

    def event(self, p: torch.Tensor) -> torch.Tensor:
        """Return whether something happens that has probability p, bool."""
        return next(self._columns) < p


def _ada(images: torch.Tensor, draw: _Draws, p: torch.Tensor) -> torch.Tensor:
    where = torch.where
    height, width = images.shape[2:]
    mirror = where(draw.event(p), 1 - 2 * draw.integer(0, 1), 1.0)
    quarters = where(draw.event(p), draw.integer(0, 3), 0.0)
    x, y = _shifts(draw, width, height)
    shifts = draw.event(p)
    scale = where(draw.event(p), draw.normal(0.2).exp2(), 1.0)
    # Rotations before and after the stretch: one of them happens with probability p.
    p_rotation = 1 - (1 - p).sqrt()
    before, after = (
        where(draw.event(p_rotation), draw.uniform(-math.pi, math.pi), 0.0) for _ in range(2)
    )
    stretch = where(draw.event(p), draw.normal(0.2).exp2(), 1.0)
    moves = draw.event(p)
    images = _interpolate(
        images,
        _scaling(mirror, torch.ones_like(mirror))
        @ _rotation(quarters * (math.pi / 2))
        @ _translation(where(shifts, x, 0.0), where(shifts, y, 0.0))
        @ _scaling(scale, scale)
        @ _rotation(before)
        @ _scaling(stretch, 1 / stretch)
        @ _rotation(after)
        @ _translation(
            where(moves, draw.normal(_SHIFT * width), 0.0),
            where(moves, draw.normal(_SHIFT * height), 0.0),
        ),
        reflects=True,
    )
    p_color = _COLOR * p
    images = _change_colors(
        images,
        brightness=where(draw.event(p_color), draw.normal(0.2), 0.0),
        contrast=where(draw.event(p_color), draw.normal(0.5).exp2(), 1.0),
        inversion=where(draw.event(p_color), draw.integer(0, 1), 0.0),
        hue=where(draw.event(p_color), draw.uniform(-math.pi, math.pi), 0.0),
        saturation=where(draw.event(p_color), draw.normal(1.0).exp2(), 1.0),
    )
    return where(_per_image(draw.event(p)), _cut_out(images, draw), images)


def _diff_augment(images: torch.Tensor, draw: _Draws, has_color: bool) -> torch.Tensor:
    if has_color:
        images = images + _per_image(draw.uniform(-0.5, 0.5))
        gray = images.mean(1, keepdim=True)
        images = gray + (images - gray) * _per_image(draw.uniform(0, 2))
        mean = images.mean((1, 2, 3), keepdim=True)
        images = mean + (images - mean) * _per_image(draw.uniform(0.5, 1.5))
    height, width = images.shape[2:]
    images = _interpolate(images, _translation(*_shifts(draw, width, height)), reflects=False)
    return _cut_out(images, draw)


def _shifts(draw: _Draws, *sides: int) -> list[torch.Tensor]:
    """Draw a shift in whole pixels for each side, each (n,)."""
    return [draw.integer(-round(_SHIFT * side), round(_SHIFT * side)) for side in sides]


def _interpolate(images: torch.Tensor, transform: torch.Tensor, reflects: bool) -> torch.Tensor:
    """Interpolate images bilinearly at transformed positions.

    `grid_sample` does the same, but torch lacks its second derivative.

    Args:
        images: float (n, C, H, W).
        transform: Homogeneous transforms (n, 3, 3) from positions (x, y, 1) in the result to those
            in `images`, in pixels from the center.
        reflects: Whether images are reflected at their borders; else they are gray beyond them.
    """
    channels, height, width = images.shape[1:]
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = torch.arange(height, device=images.device) - (height - 1) / 2
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    positions = torch.stack([columns, rows, torch.ones_like(rows)]).flatten(1)
    x, y, _ = (transform @ positions).unbind(1)
    columns, column_weights = _neighbors(x + (width - 1) / 2, width, reflects)
    rows, row_weights = _neighbors(y + (height - 1) / 2, height, reflects)
    index = (rows[:, :, None] * width + columns[:, None]).flatten(1)
    weights = (row_weights[:, :, None] * column_weights[:, None]).flatten(1, 2)
    pixels = images.flatten(2).gather(2, index[:, None].expand(-1, channels, -1))
    # (n, C, neighbors, pixels)
    return (pixels.unflatten(2, (4, -1)) * weights[:, None]).sum(2).unflatten(2, (height, width))


def _neighbors(
    positions: torch.Tensor, side: int, reflects: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return indices and weights, each (n, 2, k), of the pixels around positions (n, k)."""
    if reflects:
        positions = (positions + 0.5).remainder(2 * side)
        positions = torch.minimum(positions, 2 * side - positions) - 0.5
    low = positions.floor()
    share = positions - low
    indices, weights = torch.stack([low, low + 1], 1), torch.stack([1 - share, share], 1)
    if not reflects:
        weights = weights * ((indices >= 0) & (indices < side))
    return indices.clamp(0, side - 1).long(), weights


def _scaling(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    zero = torch.zeros_like(x)
    return _matrix([[x, zero, zero], [zero, y, zero], [zero, zero, zero + 1]])


def _rotation(angle: torch.Tensor) -> torch.Tensor:
    zero, cos, sin = torch.zeros_like(angle), angle.cos(), angle.sin()
    return _matrix([[cos, -sin, zero], [sin, cos, zero], [zero, zero, zero + 1]])


def _translation(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    zero = torch.zeros_like(x)
    return _matrix([[zero + 1, zero, x], [zero, zero + 1, y], [zero, zero, zero + 1]])


def _matrix(rows: list[list[torch.Tensor]]) -> torch.Tensor:
    """Stack elements, each (n,), to matrices (n, rows, columns)."""
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def _change_colors(
    images: torch.Tensor,
    brightness: torch.Tensor,
    contrast: torch.Tensor,
    inversion: torch.Tensor,
    hue: torch.Tensor,
    saturation: torch.Tensor,
) -> torch.Tensor:
    """Add brightness, then multiply colors, invert their luma, turn their hue and saturate them.

    Images that have other than three channels have no hue.
    """
    channels = images.shape[1]
    identity = torch.eye(channels, device=images.device)
    luma = torch.full_like(identity, 1 / channels)  # projection on the axis of grays
    colors = _per_matrix(contrast) * (identity - 2 * _per_matrix(inversion) * luma)
    if channels == 3:
        # Rodrigues' rotation around the axis of grays.
        shifted = identity.roll(1, 0)
        cross = (shifted - shifted.T) / math.sqrt(3)
        cos, sin = _per_matrix(hue.cos()), _per_matrix(hue.sin())
        colors = (cos * identity + sin * cross + (1 - cos) * luma) @ colors
    colors = (luma + _per_matrix(saturation) * (identity - luma)) @ colors
    images = images + _per_image(brightness)
    return (colors @ images.flatten(2)).unflatten(2, images.shape[2:])


def _cut_out(images: torch.Tensor, draw: _Draws) -> torch.Tensor:
    """Make a rectangle gray, whose center is anywhere in the image."""
    inside = []
    for side in images.shape[2:]:
        pixels = (torch.arange(side, device=images.device) + 0.5) / side
        inside.append((pixels - draw.uniform(0, 1)[:, None]).abs() < _CUTOUT / 2)
    rectangle = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(rectangle, 0.0, images)


def _per_image(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]


def _per_matrix(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None]
