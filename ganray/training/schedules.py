"""Options that change during training: half a cosine from their value to that of the schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ganray.config.schema import Config

INTERVALS = 100
"""Number of times that values change. A CUDA graph, which contains them, is captured anew then."""


@dataclass(frozen=True)
class ScheduledValues:
    """Values of the scheduled options at some time of the run."""

    lr_D: float
    lr_G: float
    beta2: float
    r1_gamma: float
    r2_gamma: float
    ema_kimg: float
    augment_p: float


def scheduled_values(config: Config, images_seen: int) -> ScheduledValues:
    """Return the values after this number of images, which do not depend on the batch size."""
    schedule, optimizer, loss = config.schedule, config.optimizer, config.loss
    progress = min(images_seen / (1000 * (schedule.kimg or config.train.kimg)), 1.0)
    progress = math.floor(INTERVALS * progress) / INTERVALS

    def move(start: float, end: float | None) -> float:
        return start if end is None else cosine(start, end, progress)

    lr_factor, gamma_factor = move(1.0, schedule.lr_factor), move(1.0, schedule.gamma_factor)
    return ScheduledValues(
        lr_D=optimizer.lr_D * lr_factor,
        lr_G=optimizer.lr_G * lr_factor,
        beta2=move(optimizer.beta2, schedule.beta2),
        r1_gamma=loss.r1_gamma * gamma_factor,
        r2_gamma=loss.r2_gamma * gamma_factor,
        ema_kimg=move(config.train.ema_kimg, schedule.ema_kimg),
        augment_p=move(config.augment.p, schedule.augment_p),
    )


def cosine(start: float, end: float, progress: float) -> float:
    """Return the value at a progress in [0, 1], exactly `start` at 0 and `end` at 1."""
    if progress in (0, 1):
        return end if progress else start
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
