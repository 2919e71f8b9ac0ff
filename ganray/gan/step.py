"""The whole algorithm: two objectives and the two updates.

DDP wraps an *objective*, not a network: one DDP forward for each backward, whatever the
objective does inside, and only the trained network's gradients on the wire.

`labels` is empty, or for a conditional pair holds the one-hot labels (n, classes) of the real
images. The fakes are of the same classes, so that D learns nothing from the labels alone.

Statistics have a number for each logit: one an image, (n,), or one a pack of images, (n / pack,).
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
_SURE = math.log(99)
"""The logit of a probability of 0.99."""


class DiscriminatorObjective(nn.Module):
    """(real, fake) -> (loss, statistics): real up, fake down, D's slope small at both."""

    def __init__(self, D: nn.Module, loss: LossConfig) -> None:
        super().__init__()
        self.D, self.loss = D, loss

    def forward(
        self,
        real: torch.Tensor,
        fake: torch.Tensor,
        *labels: torch.Tensor,
        alpha: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Stats]:
        """Real and fake (n, C, H, W) -> mean loss and statistics.

        `alpha` (n,), in [0, 1) and alike in a pack, is where between fake and real WGAN-GP looks.
        """
        real = real.requires_grad_(self.loss.r1_gamma > 0)
        fake = fake.requires_grad_(self.loss.r2_gamma > 0)
        real_logits, fake_logits = self.D(real, *labels).float(), self.D(fake, *labels).float()
        adversarial = LOSSES[self.loss.name].D(real_logits, fake_logits)
        stats = {
            "D/loss": adversarial,
            "D/real_prob": real_logits.sigmoid(),
            "D/fake_prob": fake_logits.sigmoid(),
            # Of images that D is right about, and more than 99 % sure: near 1, G learns nothing.
            "D/saturation": ((real_logits > _SURE).float() + (fake_logits < -_SURE).float()) / 2,
        }
        total = adversarial
        if self.loss.r1_gamma:
            stats["D/r1"] = gradient_penalty(real, real_logits)
            total = total + 0.5 * self.loss.r1_gamma * stats["D/r1"]
        if self.loss.r2_gamma:
            stats["D/r2"] = gradient_penalty(fake, fake_logits)
            total = total + 0.5 * self.loss.r2_gamma * stats["D/r2"]
        if self.loss.gp_weight:
            assert alpha is not None, "drawn by the caller, for all ranks"
            middle = interpolate_images(real, fake, alpha)
            stats["D/gp"] = wgan_gp_penalty(middle, self.D(middle, *labels).float())
            total = total + self.loss.gp_weight * stats["D/gp"]
        return total.mean(), {name: value.detach() for name, value in stats.items()}


class GeneratorObjective(nn.Module):
    """(z, real) -> (loss, statistics): make D call the fakes real. D is frozen by the caller.

    With `unroll`, a D some steps ahead, which has learned from these very images. Each rank would
    look ahead by its own share of the batch, so that the run would depend on how many there are:
    `plan.check_workers` allows one. The steps go down D's adversarial loss, without its penalties.
    """

    def __init__(self, G: nn.Module, D: nn.Module, loss: LossConfig) -> None:
        super().__init__()
        self.G, self.D, self.loss = G, D, loss

    def forward(
        self, z: torch.Tensor, real: torch.Tensor, *labels: torch.Tensor
    ) -> tuple[torch.Tensor, Stats]:
        """Latents (n, size) -> mean loss, statistics. Only pairwise losses look at `real`."""
        loss, fake, D = LOSSES[self.loss.name], self.G(z), self.D
        real = real.detach()  # the D step's penalties may have left it asking for gradients
        if steps := self.loss.unroll:

            def D_loss(D: Discriminator) -> torch.Tensor:
                return loss.D(D(real, *labels).float(), D(fake, *labels).float()).mean()

            D = unrolled_discriminator(D, steps, self.loss.unroll_lr, D_loss)
        fake_logits = D(fake, *labels).float()
        real_logits = fake_logits.detach()
        if self.loss.name == "relativistic":
            with torch.set_grad_enabled(steps > 0):  # G moves no reals, but a D that looks ahead
                real_logits = D(real, *labels).float()
        adversarial = loss.G(real_logits, fake_logits)
        return adversarial.mean(), {"G/loss": adversarial.detach()}


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
) -> Stats:
    """Update D once. `weight` is this rank's share of the global batch times the world size.

    G is called bare under no_grad: its graph is not needed, and DDP must see one forward only.
    """
    with autocast:
        with torch.no_grad():
            fake = G(z)
        loss, stats = objective(real, fake, *labels, alpha=alpha)
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
    """Update G once, through a frozen D whose gradients are neither computed nor sent."""
    D.requires_grad_(False)
    with autocast:
        loss, stats = objective(z, real, *labels)
    optimizer.zero_grad(set_to_none=True)
    (loss * weight).backward()
    optimizer.step()
    D.requires_grad_(True)
    return stats
