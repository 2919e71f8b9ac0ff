"""Can D tell real images from noise? Where it cannot, no generator will learn from it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ganray.config.schema import Config
from ganray.data.loader import ImageDataset
from ganray.data.subset import Subset
from ganray.data.transforms import to_float, to_uint8
from ganray.distributed import Means, local_device
from ganray.errors import UserError
from ganray.evaluation.reference import read
from ganray.figures import ClassifiedImages, separation_chart
from ganray.gan import latents, networks
from ganray.gan.step import discriminator_step
from ganray.training import journal
from ganray.training.loop import (
    ThroughputMeter,
    build_sampler,
    check_finite,
    first_state,
    rank_alphas,
    rank_images,
    rank_labels,
    stream,
)
from ganray.training.state import TrainState

MIN_REAL_PROB, MAX_NOISE_PROB = 0.99, 0.01
"""The source text's mark."""
HELD_BACK = 256
"""ImageDataset, or a fifth of a smaller set, that D is judged by and never learns from."""
PICTURE = "discriminator.png"
"""In the run folder."""

Batch = tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]
"""Real images and noise, float (n, C, H, W), and the one-hot labels of a conditional D."""


@dataclass(frozen=True)
class DiscriminatorCheck:
    """What D says of images and noise that it has not learned from."""

    real_prob: float
    """Mean of D's probability, in [0, 1], that real images are real."""
    noise_prob: float
    """The same of uniform noise."""
    images_seen: int
    """Real images that D learned from."""
    figure: Path
    """How the two came apart, and examples."""

    @property
    def separates(self) -> bool:
        """Whether D passes the source text's mark."""
        return self.real_prob > MIN_REAL_PROB and self.noise_prob < MAX_NOISE_PROB

    def __str__(self) -> str:
        return (
            f"D(real) {self.real_prob:.4f} and D(noise) {self.noise_prob:.4f} on images held back,"
            f" after {self.images_seen:,} images"
        )


def check_discriminator(
    config: Config, images: ImageDataset, log: journal.Journal
) -> DiscriminatorCheck:
    """Train D alone, real images against uniform noise, until it separates them or `train.kimg`.

    Runs in this process alone, with the run's own network, loss, optimizer and batches.

    Raises:
        ValueError: the images are too few to hold some back.
    """
    state = first_state(config, images, local_device())
    ids = _held_back(config, images)
    held = _batch_of(state, images, ids)
    others = Subset(images, np.delete(np.arange(len(images)), ids))
    with contextlib.closing(stream(config, others, state.device, 0)) as pixels:
        learned = _train_until_separated(state, _batches(state, others, pixels), held, log)
    return _verdict(state, held, learned)


def _held_back(config: Config, images: ImageDataset) -> np.ndarray:
    """Ids of whole packs: the first in a run's order, which for far images lie in few shards."""
    together = config.network.group_size()
    most = min(HELD_BACK, len(images) // 5)
    count = max(together, most // together * together)
    if count >= len(images):
        raise UserError(
            f"check_discriminator=True: {count} images are held back, of which D looks at"
            f" {together} together, but there are {len(images)}; use more --data.images"
        )
    return build_sampler(config, images).indices(0, count)


def _batch_of(state: TrainState, images: ImageDataset, ids: np.ndarray) -> Batch:
    real = read(state.config.data, images, ids).to(state.device)
    labels = []
    if state.classes:
        classes = torch.from_numpy(images.annotations(ids).labels).to(state.device)
        labels = [networks.one_hot_labels(classes, state.classes)]
    real = to_float(real, state.config.pixel_min())
    return real, _noise_like(real, state.config, "held noise", 0), labels


def _batches(
    state: TrainState, images: ImageDataset, pixels: Iterator[torch.Tensor]
) -> Iterator[Batch]:
    """One batch a step, each with noise of its own."""
    low, size = state.config.pixel_min(), state.config.train.batch_size
    for batch in pixels:
        real = to_float(rank_images(state, batch, slice(0, size)), low)
        labels = rank_labels(state, images)
        noise = _noise_like(real, state.config, "noise", state.step)
        state.step += 1
        yield real, noise, labels


def _noise_like(real: torch.Tensor, config: Config, stream: str, step: int) -> torch.Tensor:
    low, seed = config.pixel_min(), latents.derive_seed(config.train.rng_seed, stream, step)
    generator = torch.Generator(real.device).manual_seed(seed)
    return low + (1 - low) * torch.rand(real.shape, generator=generator, device=real.device)


def _train_until_separated(
    state: TrainState, batches: Iterator[Batch], held: Batch, log: journal.Journal
) -> int:
    """Returns the number of real images that D learned from."""
    size, steps = state.config.train.batch_size, state.config.train.steps()
    means, pace, G = Means(state.device), ThroughputMeter(0), nn.Identity()
    everything = slice(0, size)
    due = 1
    for step, (real, noise, labels) in enumerate(batches, start=1):
        # The noise stands where a step has its latents, before a G that changes nothing.
        how = state.D_optimizer, real, noise, labels
        alpha = rank_alphas(state, everything)
        means.add(discriminator_step(state.D_objective, G, *how, alpha=alpha))
        if step < due and step < steps:
            continue
        due = math.ceil(1.2 * step)  # some nets need a thousand times as many images as others
        scores = means.sync() | pace.lap(step * size, size, state.device)
        check_finite(scores, step)
        real_prob, noise_prob = (probs.mean().item() for probs in _judge(state, held))
        held_out = {"check/real_prob": real_prob, "check/noise_prob": noise_prob}
        log.metrics(step * size, scores | held_out)
        if (real_prob > MIN_REAL_PROB and noise_prob < MAX_NOISE_PROB) or step == steps:
            return step * size
    raise AssertionError("the stream of batches is endless")


@torch.no_grad()
def _judge(state: TrainState, held: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """D's probabilities, (n / pack,) of the real images and (n / pack,) of the noise."""
    real, noise, labels = held
    state.D.eval()  # a look leaves D as it is: spectral norm's buffers move in training mode
    probs = state.D(real, *labels).sigmoid(), state.D(noise, *labels).sigmoid()
    state.D.train()
    return probs


def _verdict(state: TrainState, held: Batch, learned: int) -> DiscriminatorCheck:
    folder, low = state.config.run_folder(), state.config.pixel_min()
    real_probs, noise_probs = (probs.cpu().numpy() for probs in _judge(state, held))
    pack = state.config.network.pack  # one picture for each of D's words
    real, noise = (to_uint8(images[::pack], low).cpu().numpy() for images in (held[0], held[1]))
    real_curve, noise_curve = (
        journal.history(folder, f"check/{kind}_prob") for kind in ("real", "noise")
    )
    shown = [
        ClassifiedImages("real images", real, real_probs, real_curve, MIN_REAL_PROB),
        ClassifiedImages("noise", noise, noise_probs, noise_curve, MAX_NOISE_PROB),
    ]
    path = folder / PICTURE
    separation_chart(shown, path)
    real_prob, noise_prob = (float(kind.probs.mean()) for kind in shown)
    return DiscriminatorCheck(real_prob, noise_prob, learned, path)
