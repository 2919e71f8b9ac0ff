"""The day of a GAN: one function, the same under Ray, torchrun and a plain call."""

from __future__ import annotations

import contextlib
import math
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import psutil
import torch

from ganray.config.schema import Config, LatentConfig
from ganray.data.in_memory import InMemoryDataset
from ganray.data.loader import ImageDataset, Loader
from ganray.data.sampler import DeterministicSampler, rank_slice
from ganray.data.transforms import augment, to_float
from ganray.distributed import Means, broadcast_from_rank0, rank, world_size
from ganray.errors import UserError
from ganray.evaluation.evaluator import Evaluator
from ganray.figures import sample_grid
from ganray.gan import latents, networks
from ganray.gan.step import discriminator_step, generator_step
from ganray.training.best import record_scores
from ganray.training.context import WorkerContext
from ganray.training.journal import Journal
from ganray.training.state import TrainState


class Diverged(UserError):
    """A loss is no longer finite: raised on every rank at the same step, and final."""


def train(
    config: Config,
    images: ImageDataset,
    evaluator: Evaluator,
    context: WorkerContext,
    journal: Journal,
) -> TrainState:
    """Train until `train.kimg`, from the latest checkpoint if there is one.

    Args:
        config: of the run.
        images: what D is shown.
        evaluator: compares samples with reals.
        context: where this rank runs.
        journal: keeps silent on ranks other than 0.

    Raises:
        Diverged: a loss is no longer finite.
        ValueError: the checkpoint belongs to a run that learns something else.
    """
    # Wake up: the same weights on every rank, then each its own slice of the global batch.
    device, size = context.device, config.train.batch_size
    state = first_state(config, images, device)
    if checkpoint := broadcast_from_rank0(context.latest_checkpoint()):
        state.load(checkpoint)
    mine = rank_slice(size, rank(), world_size())
    weight = (mine.stop - mine.start) * world_size() / size
    means, pace = Means(device), ThroughputMeter(state.images_seen)
    autocast = torch.autocast(device.type, torch.bfloat16, config.train.precision == "bf16")

    last_scores: dict[str, float] = {}

    with contextlib.closing(stream(config, images, device, state.step)) as batches:
        while state.step < config.train.steps():
            real = to_float(rank_images(state, next(batches), mine), config.pixel_min())
            labels = rank_labels(state, images)
            how = labels, weight, autocast
            # Discriminator.
            z, shares = rank_latents(state, "D", mine, labels), rank_alphas(state, mine)
            stats = discriminator_step(
                state.D_objective, state.G, state.D_optimizer, real, z, *how, shares
            )
            means.add(stats)
            # Generator, where it is its turn; then its moving average.
            for draw in config.train.generator_updates(state.step):
                z = rank_latents(state, draw, mine, labels)
                stats = generator_step(state.G_objective, state.D, state.G_optimizer, real, z, *how)
                means.add(stats)
            state.advance()
            # Log: the only place where the host waits for the device.
            if state.is_due(config.train.log_every):
                means.add(replaced(images, device))
                scores = means.sync() | pace.lap(state.images_seen, size, device)
                check_finite(scores, state.step)
                journal.metrics(state.images_seen, scores)
            # Look.
            if state.is_due(config.train.sample_every) and rank() == 0:
                picture = sample_grid(state.samples().numpy(), state.columns)
                journal.image("samples", state.images_seen, picture)
            # Judge: how much of the data does G cover?
            if state.is_due(config.evaluation.every or config.train.sample_every):
                generate = partial(state.generate, "evaluation", evaluator.samples)
                scores = evaluator(generate, final=state.step == config.train.steps())
                if scores is not None:
                    last_scores = record_scores(state, journal, scores)
            # Remember: every rank takes part.
            if state.is_due(config.train.checkpoint_every):
                checkpoint_now(state, context, last_scores)
    return state


def first_state(config: Config, images: ImageDataset, device: torch.device) -> TrainState:
    """Networks and optimizers for these images, before the first step."""
    classes = len(images.class_names) if config.network.conditional else 0
    return TrainState(config, config.data.cropped_shape(images.image_shape), device, classes)


def stream(
    config: Config, images: ImageDataset, device: torch.device, start_step: int
) -> Loader | InMemoryDataset:
    """This rank's part of each step's batch, from `start_step` on."""
    kind = InMemoryDataset if config.data.residence == "device" else Loader
    return kind(
        images,
        build_sampler(config, images),
        batch_size=config.train.batch_size,
        rank=rank(),
        world_size=world_size(),
        device=device,
        start_step=start_step,
    )


def build_sampler(config: Config, images: ImageDataset) -> DeterministicSampler:
    """Which images each step's batch holds."""
    data = config.data
    block, window = data.blocks(images.shard_rows) if data.shuffle == "blocks" else (0, 0)
    return DeterministicSampler(len(images), config.train.rng_seed, block, window)


def rank_images(state: TrainState, images: torch.Tensor, mine: slice) -> torch.Tensor:
    """This rank's images, cropped and mirrored as the config says; uint8 (n_rank, H, W, C)."""
    config = state.config
    return augment(
        images,
        crop=config.data.crop,
        flip=config.data.flip,
        rng_seed=config.train.rng_seed,
        step=state.step,
        batch_size=config.train.batch_size,
        mine=mine,
    )


def replaced(images: ImageDataset, device: torch.device) -> dict[str, torch.Tensor]:
    """How many damaged images others stood in for, on all ranks since the start; {} if none."""
    if not images.counts_replaced:
        return {}
    # The mean over ranks of this is the sum over ranks of the counts.
    total = torch.tensor([images.replaced * world_size()], dtype=torch.float64, device=device)
    return {"data/replaced_images": total}


def rank_labels(state: TrainState, images: ImageDataset) -> list[torch.Tensor]:
    """One-hot labels of this rank's images, float32 (n_rank, classes); none if unconditional."""
    if not state.classes:
        return []
    order, share = build_sampler(state.config, images), (rank(), world_size())
    ids = order.rank_indices(state.step, state.config.train.batch_size, *share)
    labels = torch.from_numpy(images.annotations(ids).labels).to(state.device)
    return [networks.one_hot_labels(labels, state.classes)]


def rank_latents(
    state: TrainState, stream: str, mine: slice, labels: Sequence[torch.Tensor]
) -> torch.Tensor:
    """This rank's rows of the step's global latents; float32 (n_rank, latent.size [+ classes])."""
    config = state.config
    z = latents.sample(
        config.latent,
        config.train.batch_size,
        rng_seed=config.train.rng_seed,
        stream=stream,
        step=state.step,
        device=state.device,
    )
    return torch.cat([z[mine], *labels], 1)


def rank_alphas(state: TrainState, mine: slice) -> torch.Tensor | None:
    """Where between fake and real this rank's slopes are held at 1; float32 (n_rank,) in [0, 1).

    One number for each pack, which is what a logit depends on. None where there is no such penalty.
    """
    train, pack = state.config.train, state.config.network.pack
    if not state.config.loss.gp_weight:
        return None
    shares = latents.sample(
        LatentConfig("uniform", 1),
        train.batch_size // pack,
        rng_seed=train.rng_seed,
        stream="penalty",
        step=state.step,
        device=state.device,
    )
    return shares.flatten().repeat_interleave(pack)[mine]


def check_finite(scores: dict[str, float], step: int) -> None:
    """Stop a diverged run; the scores are reduced, so every rank raises together."""
    bad = [name for name, value in scores.items() if not math.isfinite(value)]
    if bad:
        raise Diverged(
            f"{bad[0]} is {scores[bad[0]]} at step {step}: training diverged;"
            " try a lower optimizer.lr_D and optimizer.lr_G, or loss.r1_gamma above 0"
        )


def checkpoint_now(state: TrainState, context: WorkerContext, found: Mapping[str, float]) -> None:
    """Collective: rank 0 writes the state, all report, with what the last evaluation found."""
    metrics = {"kimg": state.images_seen / 1000, **found}
    if rank() != 0:
        context.report(metrics, state.step, None)
        return
    with tempfile.TemporaryDirectory() as folder:
        state.save(Path(folder))
        context.report(metrics, state.step, Path(folder))


class ThroughputMeter:
    """Speed and memory between two log lines."""

    def __init__(self, images_seen: int) -> None:
        self._images, self._time = images_seen, time.perf_counter()

    def lap(self, images_seen: int, batch_size: int, device: torch.device) -> dict[str, float]:
        """Figures since the last call; images are summed over ranks, memory is this process's."""
        now, images = time.perf_counter(), images_seen - self._images
        seconds, self._images, self._time = now - self._time, images_seen, now
        return {
            "data/images_per_s": images / seconds,
            "time/step_ms": 1000 * seconds * batch_size / images,
            "memory/peak_gib": _peak_bytes(device) / 2**30,
        } | _system(device)


def _system(device: torch.device) -> dict[str, float]:
    """Load of rank 0's machine since the last call, under MLflow's names for its system page."""
    load = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_percentage": psutil.virtual_memory().percent,
    }
    if device.type == "cuda":
        with contextlib.suppress(ModuleNotFoundError):  # nvidia-ml-py comes with the gpu extra
            load["system/gpu_utilization_percentage"] = float(torch.cuda.utilization(device))
    return load


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
