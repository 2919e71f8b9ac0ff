"""Adversarial losses and gradient penalties, per logit: (n,) in, (n,) out.

D's loss is the mean of its real and its fake term, so that a D that outputs logit 0 everywhere has
the ideal loss of the source text: ln 2 for bce, 0.25 for mse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import relu, softplus

LogitLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Loss:
    """Losses of D and G, each (real_logits, fake_logits) -> (n,), to be minimized."""

    D: LogitLoss
    G: LogitLoss
    ideal: float | None
    """Both losses if D cannot distinguish real from fake; None if the loss has no such value."""
    paired: bool = False
    """Whether G's loss depends on the real logits, which cost a further pass through D."""


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
# Mao et al. 2017, with targets 1 and 0. Without a sigmoid, distant logits still have a gradient.
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
# Arjovsky et al. 2017: minus D's loss estimates the Wasserstein distance. Not halved like the
# others, because the published penalty weight of 10 refers to the full difference.
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
    paired=True,
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
    """Return the squared norm of d logit / d image, (n,): R1 at real images, R2 at fake images.

    `images` must require gradients and be the input of the n `logits`; with packs there are
    n * pack of them. A logit may depend on its own images only, except through the minibatch
    standard deviation, so D must not contain BatchNorm. Mescheder et al. 2018, eq. 9.
    """
    return _gradient(images, logits).square().sum(1)


def wgan_gp_penalty(images: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return (|d logit / d image| - 1)^2, (n,): the penalty of Gulrajani et al. 2017, eq. 3."""
    return (_gradient(images, logits).norm(dim=1) - 1) ** 2


def interpolate_images(real: torch.Tensor, fake: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Mix images (n, C, H, W) with the weights `alpha` (n,) in [0, 1) of the real ones.

    The result, where the gradient penalty of WGAN-GP is taken, is detached from G and requires
    gradients.
    """
    alpha = alpha.reshape(-1, *[1] * (real.dim() - 1))
    return (fake + alpha * (real - fake)).detach().requires_grad_()


def _gradient(images: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return d logit / d image, float32, one row per logit."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.float().reshape(len(logits), -1)
