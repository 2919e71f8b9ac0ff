"""The GAN algorithm: the objectives of D and G and one update of each.

DDP wraps an *objective*, not a network, so that there is one DDP forward per backward, however
often the objective calls its networks, and only the trained network's gradients are reduced.

`labels` is empty, or for a conditional pair holds the one-hot labels (n, classes) of the real
images. Fake images have the same labels, so that D learns nothing from the labels alone.

Statistics have one value per logit: (n,), or (n / pack,) if D classifies packs of images.

`draws` are the random numbers of the augmentation, float32 (n, 2 * DRAWS), for real and for fake
images, and `p` is its probability. Without an augmentation both are unused.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ganray.config.schema import LossConfig
from ganray.gan.augmentation import DRAWS, Augmentation
from ganray.gan.losses import LOSSES, gradient_penalty, interpolate_images, wgan_gp_penalty
from ganray.gan.regularization import Discriminator, unrolled_discriminator

Stats = dict[str, torch.Tensor]
Labels = Sequence[torch.Tensor]

OVERFITTING = "discriminator/overfitting"
"""Statistic of D that an adaptive augmentation follows."""
_FULL_PRECISION = nullcontext()
_CONFIDENT_LOGIT = math.log(99)
"""Logit of the probability 0.99."""


class DiscriminatorObjective(nn.Module):
    """Loss of D: adversarial loss plus gradient penalties."""

    def __init__(
        self, D: nn.Module, loss: LossConfig, augmentation: Augmentation | None = None
    ) -> None:
        super().__init__()
        self.D, self.loss, self.augmentation = D, loss, augmentation

    def forward(
        self,
        real: torch.Tensor,
        fake: torch.Tensor,
        *labels: torch.Tensor,
        alpha: torch.Tensor | None = None,
        penalty_scale: float = 1.0,
        draws: torch.Tensor | None = None,
        p: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Stats]:
        """Return the mean loss and statistics for real and fake images (n, C, H, W).

        `alpha` (n,) in [0, 1), equal within a pack, are the mixing weights of WGAN-GP.
        `penalty_scale` multiplies R1 and R2; at 0 they are not computed. Penalties are those of D
        with its augmentation, as a function of the unchanged images.
        """
        of_real, of_fake = augmented_discriminators(self.D, self.augmentation, draws, p)
        r1_gamma, r2_gamma = (
            penalty_scale * gamma for gamma in (self.loss.r1_gamma, self.loss.r2_gamma)
        )
        real = real.requires_grad_(r1_gamma > 0)
        fake = fake.requires_grad_(r2_gamma > 0)
        real_logits, fake_logits = of_real(real, *labels).float(), of_fake(fake, *labels).float()
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
        if self.augmentation is not None and self.augmentation.config.target:
            # Karras et al. 2020, equation 1: r_t.
            stats[OVERFITTING] = real_logits.sign()
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
            stats["loss/gp"] = wgan_gp_penalty(mixed, of_fake(mixed, *labels).float())
            total = total + self.loss.gp_weight * stats["loss/gp"]
        return total.mean(), {name: value.detach() for name, value in stats.items()}


class GeneratorObjective(nn.Module):
    """Loss of G, computed through a D that the caller has frozen.

    With `unroll`, D is first unrolled by that many steps on these images, down its adversarial loss
    without the penalties. Each rank would unroll on its own slice of the batch, so the result would
    depend on the world size: `plan.check_workers` allows one worker only.
    """

    def __init__(
        self,
        G: nn.Module,
        D: nn.Module,
        loss: LossConfig,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__()
        self.G, self.D, self.loss, self.augmentation = G, D, loss, augmentation

    def forward(
        self,
        z: torch.Tensor,
        real: torch.Tensor,
        *labels: torch.Tensor,
        draws: torch.Tensor | None = None,
        p: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Stats]:
        """Return the mean loss and statistics for latents z (n, size).

        `real` is used by paired losses and by unrolling only.
        """
        loss, fake, D = LOSSES[self.loss.name], self.G(z), self.D
        real = real.detach()  # the penalties of the D step may have left requires_grad set
        if steps := self.loss.unroll:

            def D_loss(D: Discriminator) -> torch.Tensor:
                of_real, of_fake = augmented_discriminators(D, self.augmentation, draws, p)
                return loss.D(of_real(real, *labels).float(), of_fake(fake, *labels).float()).mean()

            D = unrolled_discriminator(D, steps, self.loss.unroll_lr, D_loss)
        of_real, of_fake = augmented_discriminators(D, self.augmentation, draws, p)
        fake_logits = of_fake(fake, *labels).float()
        real_logits = fake_logits.detach()
        if loss.paired:
            # Real logits depend on G only through an unrolled D.
            with torch.set_grad_enabled(steps > 0):
                real_logits = of_real(real, *labels).float()
        adversarial = loss.G(real_logits, fake_logits)
        return adversarial.mean(), {"loss/G": adversarial.detach()}


def augmented_discriminators(
    D: Discriminator,
    augmentation: Augmentation | None,
    draws: torch.Tensor | None,
    p: torch.Tensor | None,
) -> tuple[Discriminator, Discriminator]:
    """Return D of augmented real and D of augmented fake images; D itself if there are no draws."""
    if augmentation is None or draws is None or p is None:
        return D, D
    augment = augmentation

    def discriminator(draws: torch.Tensor, p: torch.Tensor) -> Discriminator:
        return lambda images, *labels: D(augment(images, draws, p), *labels)

    return discriminator(draws[:, :DRAWS], p), discriminator(draws[:, DRAWS:], p)


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
    draws: torch.Tensor | None = None,
    p: torch.Tensor | None = None,
    microbatch: int | None = None,
) -> Stats:
    """Update D once and return its statistics.

    G is called without DDP and under no_grad: its graph is not needed, and DDP must see one forward
    only. `weight` is this rank's share of the global batch times the world size; `alpha` and
    `penalty_scale` are those of `DiscriminatorObjective.forward`. Gradients are accumulated over
    parts of `microbatch` images.
    """
    optimizer.zero_grad(set_to_none=True)
    stats: list[Stats] = []
    for rows, share, reduction in _parts(objective, len(z), microbatch):
        with reduction:
            with autocast:
                with torch.no_grad():
                    fake = G(z[rows])
                loss, part = objective(
                    real[rows],
                    fake,
                    *(label[rows] for label in labels),
                    alpha=None if alpha is None else alpha[rows],
                    penalty_scale=penalty_scale,
                    draws=None if draws is None else draws[rows],
                    p=p,
                )
            (loss * (weight * share)).backward()
        stats.append(part)
    optimizer.step()
    return _concatenate(stats)


def generator_step(
    objective: nn.Module,
    D: nn.Module,
    optimizer: Optimizer,
    real: torch.Tensor,
    z: torch.Tensor,
    labels: Labels = (),
    weight: float = 1.0,
    autocast: AbstractContextManager[object] = _FULL_PRECISION,
    draws: torch.Tensor | None = None,
    p: torch.Tensor | None = None,
    microbatch: int | None = None,
) -> Stats:
    """Update G once, through a frozen D whose gradients are neither computed nor reduced."""
    D.requires_grad_(False)
    optimizer.zero_grad(set_to_none=True)
    stats: list[Stats] = []
    for rows, share, reduction in _parts(objective, len(z), microbatch):
        with reduction:
            with autocast:
                loss, part = objective(
                    z[rows],
                    real[rows],
                    *(label[rows] for label in labels),
                    draws=None if draws is None else draws[rows],
                    p=p,
                )
            (loss * (weight * share)).backward()
        stats.append(part)
    optimizer.step()
    D.requires_grad_(True)
    return _concatenate(stats)


def _parts(
    objective: nn.Module, count: int, microbatch: int | None
) -> Iterator[tuple[slice, float, AbstractContextManager[object]]]:
    """Yield the rows of each part of the batch, their share of it, and a context for its passes.

    The context keeps DDP from averaging gradients before the last part.
    """
    size = microbatch or count
    for start in range(0, count, size):
        stop = min(start + size, count)
        is_last = stop == count
        is_ddp = isinstance(objective, DistributedDataParallel)
        reduction = objective.no_sync() if is_ddp and not is_last else nullcontext()
        yield slice(start, stop), (stop - start) / count, reduction


def _concatenate(parts: Sequence[Stats]) -> Stats:
    """Return the statistics of the whole batch."""
    if len(parts) == 1:  # the usual case, without copies
        return parts[0]
    values = defaultdict[str, list[torch.Tensor]](list)
    for part in parts:
        for name, value in part.items():
            values[name].append(value)
    return {name: torch.cat(value) for name, value in values.items()}
