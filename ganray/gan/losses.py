"""Adversarial losses on logits and gradient penalties, all per logit: (n,) in, (n,) out.

D's losses are the mean of its real and its fake half, so that an undecided D (logit 0
everywhere) scores the ideal that the source text draws: ln 2 for bce, 0.25 for mse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import relu, softplus

PerImage = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Loss:
    """A pair of objectives, each (real_logits, fake_logits) -> (n,), to be minimised."""

    D: PerImage
    G: PerImage
    ideal: float | None
    """Both losses where D cannot tell real from fake; None where the game has no such value."""


# Goodfellow et al. 2014, the non-saturating form: softplus(-x) = -log sigmoid(x).
_bce = Loss(
    D=lambda real, fake: (softplus(-real) + softplus(fake)) / 2,
    G=lambda _, fake: softplus(-fake),
    ideal=math.log(2),
)
# Squared error of the probability, the source text's MSELoss on a sigmoid output.
_mse = Loss(
    D=lambda real, fake: ((real.sigmoid() - 1) ** 2 + fake.sigmoid() ** 2) / 2,
    G=lambda _, fake: (fake.sigmoid() - 1) ** 2,
    ideal=0.25,
)
# Mao et al. 2017, with targets 1 and 0; no sigmoid, so that far-off logits still pull.
_lsgan = Loss(
    D=lambda real, fake: ((real - 1) ** 2 + fake**2) / 2,
    G=lambda _, fake: (fake - 1) ** 2,
    ideal=0.25,
)
# Lim and Ye 2017.
_hinge = Loss(
    D=lambda real, fake: (relu(1 - real) + relu(1 + fake)) / 2,
    G=lambda _, fake: -fake,
    ideal=None,
)
# Arjovsky et al. 2017: minus D's loss estimates the distance. Not halved as the others, since the
# published weight of its penalty is for the whole difference.
_wgan = Loss(
    D=lambda real, fake: fake - real,
    G=lambda _, fake: -fake,
    ideal=None,
)
# Jolicoeur-Martineau 2018, paired as in R3GAN (Huang et al. 2024, equation 2).
_relativistic = Loss(
    D=lambda real, fake: softplus(fake - real),
    G=lambda real, fake: softplus(real - fake),
    ideal=math.log(2),
)

LOSSES: dict[str, Loss] = {
    "bce": _bce,
    "mse": _mse,
    "lsgan": _lsgan,
    "hinge": _hinge,
    "wgan": _wgan,
    "relativistic": _relativistic,
}


def gradient_penalty(images: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Squared norm of d logit / d its images, (n,): R1 at the reals, R2 at the fakes.

    `images` must require gradients and be what the n `logits` were computed from, n times as many
    where D judges packs. But for what D is told of a group's spread, a logit may depend on its own
    images only (so: no BatchNorm in D). Mescheder et al. 2018, eq. 9.
    """
    return _gradient(images, logits).square().sum(1)


def wgan_gp_penalty(images: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """(|d logit / d its images| - 1)^2, (n,): the GP of WGAN-GP (Gulrajani et al. 2017, eq. 3)."""
    return (_gradient(images, logits).norm(dim=1) - 1) ** 2


def interpolate_images(real: torch.Tensor, fake: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Points on the lines from fake to real images (n, C, H, W), where `share` (n,) in [0, 1) says.

    Cut off from G, and asking for gradients: where the GP is taken.
    """
    share = share.reshape(-1, *[1] * (real.dim() - 1))
    return (fake + share * (real - fake)).detach().requires_grad_()


def _gradient(images: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """D logit / d its images, float32: a row for each logit."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.float().reshape(len(logits), -1)
