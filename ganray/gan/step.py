"""The GAN algorithm: the objectives of D and G and one update of each.

DDP wraps an *objective*, not a network, so that there is one DDP forward per backward, however
often the objective calls its networks, and only the trained network's gradients are reduced.

`labels` is empty, or for a conditional pair holds the one-hot labels (n, classes) of the real
images. Fake images have the same labels, so that D learns nothing from the labels alone.

Statistics have one value per logit: (n,), or (n / pack,) if D classifies packs of images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.optim import Optimizer

from ganray.config.schema import LossConfig
from ganray.gan.losses import LOSSES, gradient_penalty, interpolate_images, wgan_gp_penalty
from ganray.gan.regularization import Discriminator, unrolled_discriminator

Stats = dict[str, torch.Tensor]
Labels = Sequence[torch.Tensor]

_FULL_PRECISION = nullcontext()
_CONFIDENT_LOGIT = math.log(99)
"""Logit of the probability 0.99."""


class DiscriminatorObjective(nn.Module):
    """Loss of D: adversarial loss plus gradient penalties."""

    def __init__(self, D: nn.Module, loss: LossConfig) -> None:
        super().__init__()
        self.D, self.loss = D, loss

    def forward(
        self,
        real: torch.Tensor,
        fake: torch.Tensor,
        *labels: torch.Tensor,
        alpha: torch.Tensor | None = None,
        penalty_scale: float = 1.0,
    ) -> tuple[torch.Tensor, Stats]:
        """Return the mean loss and statistics for real and fake images (n, C, H, W).

        `alpha` (n,) in [0, 1), equal within a pack, are the mixing weights of WGAN-GP.
        `penalty_scale` multiplies R1 and R2; at 0 they are not computed.
        """
        r1_gamma, r2_gamma = (
            penalty_scale * gamma for gamma in (self.loss.r1_gamma, self.loss.r2_gamma)
        )
        real = real.requires_grad_(r1_gamma > 0)
        fake = fake.requires_grad_(r2_gamma > 0)
        real_logits, fake_logits = self.D(real, *labels).float(), self.D(fake, *labels).float()
        adversarial = LOSSES[self.loss.name].D(real_logits, fake_logits)
        confident_real = (real_logits > _CONFIDENT_LOGIT).float()
        confident_fake = (fake_logits < -_CONFIDENT_LOGIT).float()
        stats = {
            "loss/D": adversarial,
            "discriminator/real_prob": real_logits.sigmoid(),
            "discriminator/fake_prob": fake_logits.sigmoid(),
            # Near 1, D is correct with > 99 % probability and G's gradients vanish.
            "discriminator/saturation": (confident_real + confident_fake) / 2,
        }
        total = adversarial
        if r1_gamma:
            stats["loss/r1"] = gradient_penalty(real, real_logits)
            total = total + 0.5 * r1_gamma * stats["loss/r1"]
        if r2_gamma:
            stats["loss/r2"] = gradient_penalty(fake, fake_logits)
            total = total + 0.5 * r2_gamma * stats["loss/r2"]
        if self.loss.gp_weight:
            assert alpha is not None, "loss.gp_weight needs alpha"
            mixed = interpolate_images(real, fake, alpha)
            stats["loss/gp"] = wgan_gp_penalty(mixed, self.D(mixed, *labels).float())
            total = total + self.loss.gp_weight * stats["loss/gp"]
        return total.mean(), {name: value.detach() for name, value in stats.items()}


class GeneratorObjective(nn.Module):
    """Loss of G, computed through a D that the caller has frozen.

    With `unroll`, D is first unrolled by that many steps on these images, down its adversarial loss
    without the penalties. Each rank would unroll on its own slice of the batch, so the result would
    depend on the world size: `plan.check_workers` allows one worker only.
    """

    def __init__(self, G: nn.Module, D: nn.Module, loss: LossConfig) -> None:
        super().__init__()
        self.G, self.D, self.loss = G, D, loss

    def forward(
        self, z: torch.Tensor, real: torch.Tensor, *labels: torch.Tensor
    ) -> tuple[torch.Tensor, Stats]:
        """Return the mean loss and statistics for latents z (n, size).

        `real` is used by the relativistic loss and by unrolling only.
        """
        loss, fake, D = LOSSES[self.loss.name], self.G(z), self.D
        real = real.detach()  # the penalties of the D step may have left requires_grad set
        if steps := self.loss.unroll:

            def D_loss(D: Discriminator) -> torch.Tensor:
                return loss.D(D(real, *labels).float(), D(fake, *labels).float()).mean()

            D = unrolled_discriminator(D, steps, self.loss.unroll_lr, D_loss)
        fake_logits = D(fake, *labels).float()
        real_logits = fake_logits.detach()
        if self.loss.name == "relativistic":
            # Real logits depend on G only through an unrolled D.
            with torch.set_grad_enabled(steps > 0):
                real_logits = D(real, *labels).float()
        adversarial = loss.G(real_logits, fake_logits)
        return adversarial.mean(), {"loss/G": adversarial.detach()}


def discriminator_step(
    objective: nn.Module,
    G: nn.Module,
    optimizer: Optimizer,
    real: torch.Tensor,
    z: torch.Tensor,
    labels: Labels = (),
    weight: float = 1.0,
    autocast: AbstractContextManager[object] = _FULL_PRECISION,
    alpha: torch.Tensor | None = None,
    penalty_scale: float = 1.0,
) -> Stats:
    """Update D once and return its statistics.

    G is called without DDP and under no_grad: its graph is not needed, and DDP must see one forward
    only. `weight` is this rank's share of the global batch times the world size; `alpha` and
    `penalty_scale` are those of `DiscriminatorObjective.forward`.
    """
    with autocast:
        with torch.no_grad():
            fake = G(z)
        loss, stats = objective(real, fake, *labels, alpha=alpha, penalty_scale=penalty_scale)
    optimizer.zero_grad(set_to_none=True)
    (loss * weight).backward()
    optimizer.step()
    return stats


def generator_step(
    objective: nn.Module,
    D: nn.Module,
    optimizer: Optimizer,
    real: torch.Tensor,
    z: torch.Tensor,
    labels: Labels = (),
    weight: float = 1.0,
    autocast: AbstractContextManager[object] = _FULL_PRECISION,
) -> Stats:
    """Update G once, through a frozen D whose gradients are neither computed nor reduced."""
    D.requires_grad_(False)
    with autocast:
        loss, stats = objective(z, real, *labels)
    optimizer.zero_grad(set_to_none=True)
    (loss * weight).backward()
    optimizer.step()
    D.requires_grad_(True)
    return stats
