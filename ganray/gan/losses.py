"""Adversarial losses on logits and gradient penalties, all per image: (n,) in, (n,) out.

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
# Lim and Ye 2017.
_hinge = Loss(
    D=lambda real, fake: (relu(1 - real) + relu(1 + fake)) / 2,
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
    "hinge": _hinge,
    "relativistic": _relativistic,
}


def gradient_penalty(images: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Squared norm of d logit / d image, (n,): R1 at the reals, R2 at the fakes.

    `images` must require gradients and be what `logits` were computed from; row i of `logits`
    may depend on row i of `images` only (so: no BatchNorm in D). Mescheder et al. 2018, eq. 9.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.float().square().flatten(1).sum(1)
