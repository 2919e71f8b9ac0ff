"""Ways through the space of latents. Pure functions; a latent here is float32 (size,).

A latent of many normal numbers is about sqrt(size) long, hardly ever much more or less: they lie
on a thin shell, and the generator has learned from nothing inside it. The straight way between
two of them cuts through the empty inside (halfway it is 1.4 times too short); the great circle
stays on the shell.
"""

from __future__ import annotations

import math

import torch

from ganray.config import LatentConfig
from ganray.gan.latents import moments

_PARALLEL = 1e-3
"""Radians. Closer to 0 or pi, two latents span no plane that float32 could tell."""


def lerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The straight line from a (size,) to b (size,) at t (k,) in [0, 1]: (k, size)."""
    return a + t[:, None] * (b - a)


def slerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The great circle from a (size,) to b (size,) at t (k,) in [0, 1]: (k, size).

    The direction turns evenly, the norm goes evenly from |a| to |b|. Where there is no one great
    circle (parallel, opposite, zero, or latents of a single number) this is `lerp`.
    """
    angle = angle_between(a, b)
    if not _PARALLEL < angle < math.pi - _PARALLEL:
        return lerp(a, b, t)
    norm_a, norm_b, t = a.norm(), b.norm(), t[:, None]
    from_a, from_b = torch.sin((1 - t) * angle), torch.sin(t * angle)
    direction = (from_a * a / norm_a + from_b * b / norm_b) / math.sin(angle)
    return direction * torch.lerp(norm_a, norm_b, t)


def angle_between(a: torch.Tensor, b: torch.Tensor) -> float:
    """Radians in [0, pi] between a (size,) and b (size,); 0 where one of them is zero."""
    u, v = a * b.norm(), b * a.norm()
    # Exact near 0 and pi too, where the arc cosine of the dot product keeps half of the digits.
    return 2 * math.atan2((u - v).norm().item(), (u + v).norm().item())


def neighbours(z: torch.Tensor, towards: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """A walk in z's neighbourhood: z (size,) turned towards another latent, its norm kept.

    Args:
        z: where the walk starts, (size,).
        towards: the way it takes, (size,). Another draw of the same distribution keeps to where
            latents are; a random direction would leave the cube of the uniform ones.
        angles: how far to turn, (k,) in radians.

    Returns:
        (k, size). A z of a single number has nothing to turn to, and shrinks instead.
    """
    length = z.norm()
    along = z / length
    across = towards - (towards @ along) * along
    across = across / across.norm().clamp_min(1e-6 * length)
    angles = angles[:, None]
    return length * (torch.cos(angles) * along + torch.sin(angles) * across)


def closed_walk(stops: torch.Tensor, steps: int) -> torch.Tensor:
    """A loop along great circles through stops (k, size): (steps, size).

    It starts at the first stop, and its last latent lies one step before the first.
    """
    count = len(stops)
    position = torch.arange(steps) * count / steps
    legs = [
        slerp(stops[i], stops[(i + 1) % count], position[position.floor() == i] - i)
        for i in range(count)
    ]
    return torch.cat(legs)


def shell_radius(latent: LatentConfig) -> float:
    """sqrt(E|z|^2), the length that latents of this distribution have, nearly."""
    mean, std = (torch.as_tensor(moment).expand(latent.size) for moment in moments(latent))
    if latent.scaling != "raw":
        mean = torch.zeros(latent.size)
    if latent.scaling == "standardised":
        std = torch.ones(latent.size)
    return math.sqrt(float(((mean + latent.offset).square() + std.square()).double().sum()))


def onto_shell(z: torch.Tensor, radius: float) -> torch.Tensor:
    """Z (n, size), each scaled to the length `radius`; the zero latent stays where it is."""
    return z * (radius / z.norm(dim=1, keepdim=True).clamp_min(1e-12))
