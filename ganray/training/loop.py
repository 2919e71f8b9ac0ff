"""The training loop, shared by all launchers."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import psutil
import torch
from torch import nn

from ganray.config.schema import Config, DataConfig, LatentConfig
from ganray.data.in_memory import InMemoryDataset
from ganray.data.loader import ImageDataset, Loader
from ganray.data.sampler import DeterministicSampler, rank_slice
from ganray.data.transforms import augment, upload
from ganray.distributed import Means, barrier, broadcast_from_rank0, rank, world_size
from ganray.errors import UserError
from ganray.evaluation.evaluator import Evaluator
from ganray.figures import sample_grid
from ganray.gan import latents, networks
from ganray.gan.augmentation import DRAWS
from ganray.training.checkpoints import CheckpointWriter
from ganray.training.context import WorkerContext
from ganray.training.journal import Journal
from ganray.training.profiling import profile_steps
from ganray.training.rank_times import RankTimes
from ganray.training.run_storage import node_copy
from ganray.training.schedules import scheduled_values
from ganray.training.scores import record_scores
from ganray.training.state import TrainState
from ganray.training.updates import Batch, Updates
from ganray.training.watchdog import Watchdog

MAX_ROLLBACKS = 3
"""Times that one attempt goes back to a checkpoint if `train.on_nan` is rollback."""


class Diverged(UserError):
    """A loss or weight is not finite. All ranks raise it at the same step; a retry cannot help."""


def train(
    config: Config,
    images: ImageDataset,
    evaluator: Evaluator,
    context: WorkerContext,
    journal: Journal,
    watchdog: Watchdog,
) -> TrainState:
    """Train until `train.kimg`, from the latest checkpoint if there is one; return the state.

    If training diverges, `train.on_nan` decides whether it goes back to that checkpoint. The
    journal keeps what it has of the steps that are repeated then.

    Raises:
        Diverged: A loss or weight is not finite.
        UserError: The user can fix the failure, e.g. a full disk.
    """
    rollbacks = 0
    while True:
        try:
            # On a GPU, backward passes would otherwise run in a thread of their own, in which
            # second derivatives are numbered, and therefore added, in an order that varies.
            with torch.autograd.set_multithreading_enabled(False):
                return _train(config, images, evaluator, context, journal, watchdog, rollbacks)
        except Diverged as error:
            if config.train.on_nan == "stop" or rollbacks == MAX_ROLLBACKS:
                raise
            rollbacks += 1
            if rank() == 0:
                context.announce(
                    f"{error}; back to the last checkpoint, with other batches and latents"
                    f" ({rollbacks} of at most {MAX_ROLLBACKS} times)"
                )


def _train(
    config: Config,
    images: ImageDataset,
    evaluator: Evaluator,
    context: WorkerContext,
    journal: Journal,
    watchdog: Watchdog,
    rollbacks: int,
) -> TrainState:
    # Initialize, or load the latest checkpoint.
    watchdog.enter("start", 0)
    device, batch_size = context.device, config.train.batch_size
    state = build_state(config, images, device)
    if checkpoint := broadcast_from_rank0(context.checkpoint()):
        state.load(node_copy(checkpoint, config))
    elif config.init_from:
        state.load_weights(Path(config.init_from))
    state.rollbacks = max(state.rollbacks, rollbacks)
    first_step = state.step
    sampler = build_sampler(config.data, images, state.rng_seed)
    rows = rank_slice(batch_size, rank(), world_size())
    weight = (rows.stop - rows.start) * world_size() / batch_size
    means, throughput = Means(), ThroughputMeter(state.images_seen)
    times = RankTimes(state.D, device)
    last_scores: dict[str, float] = {}
    last_checkpoint, is_late = time.monotonic(), False

    with (
        contextlib.closing(build_loader(config, images, sampler, device, state.step)) as batches,
        contextlib.closing(CheckpointWriter(state, context)) as writer,
        context.stop_requests() as stop_requested,
        profile_steps(config.profile, device, context.folder) as end_step,
    ):
        update = Updates(state, weight, writer.wait_for_copy)
        if rank() == 0:
            _, sizes = journal.history("system/workers")
            was = f" (was {sizes[-1]:g})" if len(sizes) and sizes[-1] != world_size() else ""
            context.announce(
                f"training on {world_size()} worker{'s' * (world_size() > 1)}{was} from"
                f" {state.images_seen / 1000:g} kimg",
                is_training=True,
            )
        while state.step < config.train.steps():
            # Fetch real images and draw latents.
            watchdog.enter("data", state.step)
            real = augment_rows(state, times.fetch(batches), rows)
            labels = rank_labels(state, images, sampler)
            streams = config.train.generator_updates(state.step)
            draws = rank_draws(state, ["D", *streams], rows)
            batch = Batch(
                real,
                labels,
                z_D=rank_latents(state, "D", rows, labels),
                z_G=[rank_latents(state, stream, rows, labels) for stream in streams],
                alpha=rank_alphas(state, rows),
                penalty_scale=config.loss.penalty_scale(state.step),
                draws_D=draws[0] if draws else None,
                draws_G=draws[1:],
            )

            # Update D and G.
            watchdog.enter("first step" if state.step == first_step else "step", state.step)
            means.add(update(batch))

            # Update G_ema.
            state.advance()
            end_step()

            # Log metrics. The host waits for the device here only.
            if state.is_due(config.train.log_every):
                metrics = means.sync() | scheduled_metrics(state)
                speed = throughput.update(state.images_seen, batch_size, device) | times.update()
                metrics |= speed
                check_finite(metrics, state.step, D=state.D, G=state.G)
                journal.metrics(state.images_seen, metrics)
                context.observe(metrics if rank() == 0 else speed)
                writer.check()
                writer.reserve()
                minutes = (time.monotonic() - last_checkpoint) / 60
                is_late = broadcast_from_rank0(minutes >= config.train.checkpoint_minutes)

            # Save a sample grid.
            if state.is_due(config.train.sample_every) and rank() == 0:
                watchdog.enter("sample grid", state.step)
                grid = sample_grid(state.generate_grid().numpy(), state.columns)
                journal.image("samples", state.images_seen, grid)

            # Evaluate.
            scores = None
            if state.is_due(config.evaluation.every or config.train.sample_every):
                watchdog.enter("evaluation", state.step)
                generate = partial(state.generate, "evaluation", evaluator.samples)
                scores = evaluator(generate, final=state.step == config.train.steps())
                if scores is not None:
                    last_scores = record_scores(state, journal, scores)
                    context.observe(last_scores)
                    if (chart := evaluator.mode_chart()) is not None:
                        journal.image("modes", state.images_seen, chart)

            # Save a checkpoint, from which training resumes, and the state of best coverage.
            latest = is_late or state.is_checkpoint_due()
            if latest:
                watchdog.enter("checkpoint", state.step)
            if state.step == config.train.steps():
                check_weights(state)
            checkpoint = writer.save(latest=latest, coverage=scores["coverage"] if scores else 0)
            if latest:
                reported = {"kimg": state.images_seen / 1000, **last_scores}
                context.report(reported, checkpoint, writer.wait)
                last_checkpoint, is_late = time.monotonic(), False

            # Stop, unless weights contain NaN: the next log line ends the run, on all ranks.
            is_asked = rank() == 0 and state.step < config.train.steps() and stop_requested()
            if is_asked and not nonfinite_weight(D=state.D, G=state.G):
                watchdog.enter("checkpoint", state.step)
                writer.save(latest=not latest)
                writer.wait()
                context.stop()
                break
        watchdog.enter("end", state.step)
        writer.finish()
    barrier()  # all ranks see the last checkpoint
    return state


def build_state(config: Config, images: ImageDataset, device: torch.device) -> TrainState:
    """Build networks and optimizers for these images, before the first step."""
    classes = len(images.class_names) if config.network.conditional else 0
    return TrainState(config, config.data.cropped_shape(images.image_shape), device, classes)


def build_sampler(data: DataConfig, images: ImageDataset, rng_seed: int) -> DeterministicSampler:
    """Build the sampler that decides which images are in the batch of each step."""
    block, window = data.blocks(images.shard_rows) if data.shuffle == "blocks" else (0, 0)
    return DeterministicSampler(len(images), rng_seed, block, window)


def build_loader(
    config: Config,
    images: ImageDataset,
    sampler: DeterministicSampler,
    device: torch.device,
    start_step: int,
) -> Loader | InMemoryDataset:
    """Build the iterator over this rank's part of each batch, from `start_step` on."""
    loader = InMemoryDataset if config.data.residence == "device" else Loader
    return loader(
        images,
        sampler,
        batch_size=config.train.batch_size,
        rank=rank(),
        world_size=world_size(),
        device=device,
        start_step=start_step,
    )


def augment_rows(state: TrainState, images: torch.Tensor, rows: slice) -> torch.Tensor:
    """Crop and flip this rank's `rows` of the batch as configured; uint8 (n_rank, H, W, C)."""
    data, train = state.config.data, state.config.train
    return augment(
        images,
        crop=data.crop,
        flip=data.flip,
        rng_seed=state.rng_seed,
        step=state.step,
        batch_size=train.batch_size,
        rank_slice=rows,
    )


def rank_labels(
    state: TrainState, images: ImageDataset, sampler: DeterministicSampler
) -> list[torch.Tensor]:
    """Return one-hot labels of this rank's images, float32 (n_rank, classes); [] if unconditional.

    The labels are those of the images that the loader returns for the current step.
    """
    if not state.classes:
        return []
    indices = sampler.rank_indices(state.step, state.config.train.batch_size, rank(), world_size())
    labels = upload(images.annotations(indices).labels, state.device)
    return [networks.one_hot_labels(labels, state.classes)]


def rank_latents(
    state: TrainState, stream: str, rows: slice, labels: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return `rows` of the global batch of latents; float32 (n_rank, latent.size [+ classes])."""
    z = _sample(state, state.config.latent, state.config.train.batch_size, stream)
    return torch.cat([z[rows], *labels], 1)


def rank_alphas(state: TrainState, rows: slice) -> torch.Tensor | None:
    """Return `rows` of WGAN-GP's mixing weights, float32 (n_rank,) in [0, 1); None if unused.

    Images of a pack share one weight, because they share one logit.
    """
    if not state.config.loss.gp_weight:
        return None
    pack = state.config.network.pack
    packs = state.config.train.batch_size // pack
    alphas = _sample(state, LatentConfig("uniform", 1), packs, "penalty")
    return alphas.flatten().repeat_interleave(pack)[rows]


def rank_draws(state: TrainState, streams: Sequence[str], rows: slice) -> list[torch.Tensor]:
    """Return `rows` of the augmentations' random numbers for each update; [] if there are none.

    Each is uniform in [0, 1), float32 (n_rank, 2 * DRAWS).
    """
    if state.config.augment.policy == "none":
        return []
    uniform, batch_size = LatentConfig("uniform", 2 * DRAWS), state.config.train.batch_size
    return [_sample(state, uniform, batch_size, f"augment/{name}")[rows] for name in streams]


def _sample(state: TrainState, latent: LatentConfig, count: int, stream: str) -> torch.Tensor:
    return latents.sample(
        latent, count, rng_seed=state.rng_seed, stream=stream, step=state.step, device=state.device
    )


def scheduled_metrics(state: TrainState) -> dict[str, float]:
    """Return the values of options that change during the run, of the last step."""
    start, values = scheduled_values(state.config, 0), state.values
    end = scheduled_values(state.config, sys.maxsize)
    names = (field.name for field in dataclasses.fields(values))
    changing = {n: getattr(values, n) for n in names if getattr(start, n) != getattr(end, n)}
    if state.config.augment.policy == "ada":
        changing["augment_p"] = state.augment_p.item()
    return {f"schedule/{name}": value for name, value in changing.items()}


def check_finite(metrics: Mapping[str, float], step: int, **networks: nn.Module) -> None:
    """Raise Diverged if a metric is not finite, on all ranks together as metrics are reduced."""
    bad = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        weight = nonfinite_weight(**networks)
        raise diverged(bad[0] + (f" and {weight} is not finite" if weight else ""), step)


def nonfinite_weight(**networks: nn.Module) -> str | None:
    """Return the first weight that contains NaN or infinity, e.g. "D.0.weight"; None if none does.

    The host waits for the device once.
    """
    weights = {f"{k}.{n}": p for k, net in networks.items() for n, p in net.named_parameters()}
    finite = torch.stack([weight.isfinite().all() for weight in weights.values()]).tolist()
    return next((name for name, ok in zip(weights, finite, strict=True) if not ok), None)


def diverged(problem: str, step: int) -> Diverged:
    """Return the error for a metric or weight that is not finite."""
    return Diverged(
        f"{problem} at step {step}: training diverged; try a lower optimizer.lr_D and"
        " optimizer.lr_G, or loss.r1_gamma above 0"
    )


def check_weights(state: TrainState) -> None:
    """Raise Diverged if a weight is not finite; weights are equal on all ranks, so all raise."""
    if weight := nonfinite_weight(D=state.D, G=state.G):
        raise diverged(f"{weight} is not finite", state.step)


class ThroughputMeter:
    """Measures training speed, memory and machine load between two log lines."""

    def __init__(self, images_seen: int) -> None:
        self._images, self._time = images_seen, time.perf_counter()

    def update(self, images_seen: int, batch_size: int, device: torch.device) -> dict[str, float]:
        """Return metrics since the last call: images over all ranks, memory of this process."""
        now, images = time.perf_counter(), images_seen - self._images
        seconds, self._images, self._time = now - self._time, images_seen, now
        return {
            "speed/images_per_s": images / seconds,
            "speed/step_ms": 1000 * seconds * batch_size / images,
            "system/peak_memory_gib": _peak_bytes(device) / 2**30,
            "system/workers": world_size(),
        } | _machine_load(device)


def _machine_load(device: torch.device) -> dict[str, float]:
    """Return the load since the last call, named as on MLflow's system metrics page."""
    load = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_percentage": psutil.virtual_memory().percent,
    }
    if device.type == "cuda":
        with contextlib.suppress(ModuleNotFoundError):  # nvidia-ml-py is part of the gpu extra
            load["system/gpu_utilization_percentage"] = float(torch.cuda.utilization(device))
    return load


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
