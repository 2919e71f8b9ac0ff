"""Check that D can separate real images from noise; otherwise no generator can learn from it."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ganray.config.schema import Config
from ganray.data.loader import ImageDataset
from ganray.data.subset import Subset
from ganray.data.transforms import to_float, to_uint8
from ganray.distributed import Means, local_device, sum_values
from ganray.errors import UserError
from ganray.evaluation.reference import read
from ganray.figures import ClassifiedImages, separation_chart
from ganray.gan import latents, networks
from ganray.gan.step import discriminator_step
from ganray.training import journal
from ganray.training.loop import (
    ThroughputMeter,
    augment_rows,
    build_loader,
    build_sampler,
    build_state,
    check_finite,
    rank_alphas,
    rank_labels,
)
from ganray.training.state import TrainState

MIN_REAL_PROB, MAX_NOISE_PROB = 0.99, 0.01
"""D's mean probabilities that the source text asks for."""
HELD_OUT = 256
"""Images, or a fifth of a smaller set, that D is evaluated on and not trained on."""
FIGURE_FILE = "discriminator.png"

Batch = tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]
"""Real images and noise, float (n, C, H, W), and the one-hot labels of a conditional D."""


@dataclass(frozen=True)
class DiscriminatorCheck:
    """Mean probabilities of D on held-out images and noise."""

    real_prob: float
    """Mean probability, in [0, 1], that real images are real."""
    noise_prob: float
    """Mean probability, in [0, 1], that uniform noise is real."""
    images_seen: int
    """Number of real images that D was trained on."""
    figure: Path
    """Figure of the probabilities during training, with examples."""

    @property
    def separates(self) -> bool:
        """Whether D reaches both probabilities of the source text."""
        return _separates(self.real_prob, self.noise_prob)

    def __str__(self) -> str:
        return (
            f"D(real) {self.real_prob:.4f} and D(noise) {self.noise_prob:.4f} on held-out images"
            f" after {self.images_seen:,} images"
        )


def check_discriminator(
    config: Config, images: ImageDataset, log: journal.Journal
) -> DiscriminatorCheck:
    """Train D alone on real images and uniform noise until it separates them or for `train.kimg`.

    Uses this process only, with the network, loss, optimizer and batch size of the run.
    """
    state = build_state(config, images, local_device())
    indices = _held_out_indices(config, images)
    held_out = _held_out_batch(state, images, indices)
    training_set = Subset(images, np.delete(np.arange(len(images)), indices))
    images_seen = _train_until_separated(state, training_set, held_out, log)
    return _result(state, held_out, images_seen)


def _separates(real_prob: float, noise_prob: float) -> bool:
    return real_prob > MIN_REAL_PROB and noise_prob < MAX_NOISE_PROB


def _held_out_indices(config: Config, images: ImageDataset) -> np.ndarray:
    """Return whole groups, the first of the sampler, which lie in few shards of a remote set."""
    group = config.network.group_size()
    limit = min(HELD_OUT, len(images) // 5)
    count = max(group, limit // group * group)
    if count >= len(images):
        raise UserError(
            f"check_discriminator=true holds out {count} images in groups of {group}, but there are"
            f" {len(images)} images; use more --data.images"
        )
    return build_sampler(config.data, images, config.train.rng_seed).indices(0, count)


def _held_out_batch(state: TrainState, images: ImageDataset, indices: np.ndarray) -> Batch:
    real = read(state.config.data, images, indices).to(state.device)
    labels = []
    if state.classes:
        classes = torch.from_numpy(images.annotations(indices).labels).to(state.device)
        labels = [networks.one_hot_labels(classes, state.classes)]
    real = to_float(real, state.config.pixel_min(), state.layout)
    return real, _noise_like(real, state.config, "held noise", 0), labels


def _noise_like(real: torch.Tensor, config: Config, stream: str, step: int) -> torch.Tensor:
    low, seed = config.pixel_min(), latents.derive_seed(config.train.rng_seed, stream, step)
    generator = torch.Generator(real.device).manual_seed(seed)
    return low + (1 - low) * torch.rand(real.shape, generator=generator, device=real.device)


def _train_until_separated(
    state: TrainState, images: ImageDataset, held_out: Batch, log: journal.Journal
) -> int:
    """Train D and return the number of real images that it was trained on."""
    config, batch_size = state.config, state.config.train.batch_size
    rows, steps = slice(0, batch_size), config.train.steps()
    sampler = build_sampler(config.data, images, config.train.rng_seed)
    means, throughput = Means(), ThroughputMeter(0)
    G = nn.Identity()  # passes the noise, which takes the place of the latents, on to D
    next_log = 1
    with closing(build_loader(config, images, sampler, state.device, 0)) as batches:
        for step in range(1, steps + 1):
            real = augment_rows(state, next(batches), rows)
            real = to_float(real, config.pixel_min(), state.layout)
            labels = rank_labels(state, images, sampler)
            noise = _noise_like(real, config, "noise", state.step)
            state.step = step
            alpha = rank_alphas(state, rows)
            stats = discriminator_step(
                state.D_objective, G, state.D_optimizer, real, noise, labels, alpha=alpha
            )
            means.add(sum_values([stats]))
            if step < next_log and step < steps:
                continue
            next_log = math.ceil(1.2 * step)  # networks differ in speed by a factor of 1,000
            metrics = means.sync() | throughput.update(step * batch_size, batch_size, state.device)
            check_finite(metrics, step, D=state.D)
            real_prob, noise_prob = (probs.mean().item() for probs in _probs(state, held_out))
            metrics |= {"check/real_prob": real_prob, "check/noise_prob": noise_prob}
            log.metrics(step * batch_size, metrics)
            if _separates(real_prob, noise_prob):
                break
    return state.step * batch_size


@torch.no_grad()
def _probs(state: TrainState, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return D's probabilities, (n / pack,) of the real images and (n / pack,) of the noise."""
    real, noise, labels = batch
    state.D.eval()  # in training mode spectral norm would update its buffers
    probs = state.D(real, *labels).sigmoid(), state.D(noise, *labels).sigmoid()
    state.D.train()
    return probs


def _result(state: TrainState, held_out: Batch, images_seen: int) -> DiscriminatorCheck:
    """Draw the figure and return the result."""
    folder, pack = state.config.run_folder(), state.config.network.pack
    kinds = []
    for name, images, probs, metric, target in zip(
        ("real images", "noise"),
        held_out[:2],
        _probs(state, held_out),
        ("check/real_prob", "check/noise_prob"),
        (MIN_REAL_PROB, MAX_NOISE_PROB),
        strict=True,
    ):
        # One example per probability: the first image of each pack.
        examples = to_uint8(images[::pack], state.config.pixel_min()).cpu().numpy()
        curve = journal.history(folder, metric)
        kinds.append(ClassifiedImages(name, examples, probs.cpu().numpy(), curve, target))
    separation_chart(kinds, folder / FIGURE_FILE, f"{folder.name}: D alone, on held-out images")
    real_prob, noise_prob = (float(kind.probs.mean()) for kind in kinds)
    return DiscriminatorCheck(real_prob, noise_prob, images_seen, folder / FIGURE_FILE)
