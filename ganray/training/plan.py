"""What a run will do and cost, in words, before anything is held for it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ganray.config.schema import Config
from ganray.data.prepare import DatasetPlan
from ganray.errors import UserError
from ganray.evaluation.reference import RunDatasets
from ganray.gan import networks
from ganray.gan.step import DiscriminatorObjective, GeneratorObjective

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Cluster:
    """What the workers can get, now or (an autoscaling cluster) after it has grown."""

    cpus: int
    gpus: int
    nodes: int
    grows: bool = False

    def __str__(self) -> str:
        noun = "node" if self.nodes == 1 else "nodes"
        grown = ", once grown" if self.grows else ""
        return f"{self.nodes} {noun}, {self.cpus} CPUs, {self.gpus} GPUs{grown}"


@dataclass(frozen=True)
class Workers:
    """The resolved scaling: how many DDP workers, and what each holds."""

    count: int
    gpu: bool
    cpus: int

    def __str__(self) -> str:
        cores = f"{self.cpus} core{'' if self.cpus == 1 else 's'}"
        where = "one GPU each (nccl)" if self.gpu else f"CPU, {cores} each (gloo)"
        return f"{self.count} DDP worker{'' if self.count == 1 else 's'}, {where}"


def this_machine() -> Cluster:
    """What a Ray on this machine would have, without starting it."""
    return Cluster(os.cpu_count() or 1, torch.cuda.device_count(), 1)


def resolve_workers(config: Config, cluster: Cluster) -> Workers:
    """Choose the workers and check that the cluster has them.

    Raises:
        ValueError: it has not, or the batch has fewer images than there are workers. Ray itself
            would wait for ever.
    """
    gpu = cluster.gpus > 0 if config.ray.gpu is None else config.ray.gpu
    cpus = config.ray.cpus_per_worker
    most = max(cluster.gpus, 1) if gpu else min(2, cluster.cpus // cpus)
    count = config.ray.workers or min(most, config.train.batch_size)
    fits = min(cluster.cpus // cpus, cluster.gpus) if gpu else cluster.cpus // cpus
    if not 0 < count <= fits:
        need = f"{cpus} CPU{'' if cpus == 1 else 's'}" + (" and 1 GPU" if gpu else "")
        raise UserError(
            f"ray.workers={max(count, 1)} need {need} each, but the cluster has {cluster};"
            f" try --ray.workers {max(fits, 1)}"
            + (f" --ray.cpus_per_worker {max(cluster.cpus, 1)}" if cpus > cluster.cpus else "")
            + (" --ray.gpu false" if gpu and not fits else "")
        )
    check_workers(config, count)
    return Workers(count, gpu, cpus)


def check_workers(config: Config, count: int) -> None:
    """Refuse what cannot be learned by so many workers.

    Raises:
        ValueError: the batch has fewer images, or parts what D looks at together; or G looks ahead.
    """
    size, together = config.train.batch_size, config.network.group_size()
    if size < count:
        raise UserError(
            f"train.batch_size={size} cannot be split over {count} workers; give at least {count}"
        )
    if together > 1 and size % (whole := together * count):
        network = config.network
        raise UserError(
            f"train.batch_size={size} over {count} worker{'' if count == 1 else 's'} must be a"
            f" multiple of {whole}, as D looks at {together} images together"
            f" (network.pack={network.pack}, network.minibatch_stddev={network.minibatch_stddev});"
            f" try {max(1, round(size / whole)) * whole}"
        )
    if config.loss.unroll and count > 1:
        raise UserError(
            f"loss.unroll={config.loss.unroll} must be 0 with {count} workers, each of which would"
            " look ahead by its own share of the batch; try --ray.workers 1, or one process"
        )


def describe_plan(sets: RunDatasets, workers: Workers, results: str) -> str:
    """The resolved plan, a line for each thing a person decides on."""
    config = sets.config
    again = f"{config.name} (stopped? the same command with --name {config.name} goes on)"
    where = f"{config.run_folder()} and {results}"
    return format_rows({"run": again} | plan_rows(sets, workers) | {"results": where})


def format_rows(rows: Mapping[str, str]) -> str:
    """A line for each name and text."""
    width = max(9, *map(len, rows))
    return "\n".join(f"{name:{width}s} {text}" for name, text in rows.items())


def plan_rows(sets: RunDatasets, workers: Workers) -> dict[str, str]:
    """What a run will do and take, by topic."""
    config, images, train = sets.config, sets.images, sets.config.train
    classes = num_classes(config, images)
    G, D = _meta_networks(config, images.image_shape, classes)
    height, width, channels = images.stored_shape
    share = math.ceil(train.batch_size / workers.count)
    memory = step_bytes(config, images.image_shape, share, classes)
    label = f" beside one of {classes} labels" if classes else ""
    return {
        "data": str(images),
        "shards": f"{height}x{width}x{channels} {config.data.encoding},"
        f" {images.bytes / 2**20:,.0f} MiB,"
        f" {'ready' if images.ready else 'to be made'}: {images.location}",
        "networks": f"{config.network.kind}: G {_count(G):,} and D {_count(D):,} parameters,"
        f" z {config.latent}{label}",
        "training": f"{train.kimg:g} kimg = {train.steps():,} steps of {train.batch_size} images,"
        f" {_game(config)}, {config.optimizer.name}, {train.precision}",
        "workers": str(workers),
        "memory": f"about {memory / 2**20:,.0f} MiB of tensors in each worker",
        "judged": _judged(sets),
    }


def _judged(sets: RunDatasets) -> str:
    """How much of G is looked at, how often, and beside what, unless it is what is learned."""
    evaluation = sets.config.evaluation
    every = evaluation.every or sets.config.train.sample_every
    height, width, _ = sets.reals.image_shape
    said = [
        f"{evaluation.samples:,} samples every {every:g} kimg" if evaluation.samples else "",
        f"a report on {evaluation.report_samples:,}" if evaluation.report_samples else "",
    ]
    if not any(said):
        return "not at all"
    other = "" if sets.same else f"compared with {sets.reals}, {height}x{width}"
    return ", ".join(filter(None, [*said, other]))


def _game(config: Config) -> str:
    """The loss and all that is added to it, e.g. "relativistic + R1 0.1 + pack 2"."""
    loss, network, train = config.loss, config.network, config.train
    added = {
        f"R1 {loss.r1_gamma:g}": loss.r1_gamma,
        f"R2 {loss.r2_gamma:g}": loss.r2_gamma,
        f"GP {loss.gp_weight:g}": loss.gp_weight,
        f"unroll {loss.unroll} by {loss.unroll_lr:g}": loss.unroll,
        f"pack {network.pack}": network.pack > 1,
        f"minibatch stddev {network.minibatch_stddev}": network.minibatch_stddev,
        "spectral norm": network.spectral_norm,
        f"G every {train.G_every} steps": train.G_every > 1,
        f"{train.G_steps} G steps": train.G_steps > 1,
    }
    return " + ".join([loss.name, *(text for text, on in added.items() if on)])


def num_classes(config: Config, images: DatasetPlan) -> int:
    """How many classes the networks are told of; 0 for an unconditional pair.

    Raises:
        ValueError: the pair is conditional, and the images have no labels.
    """
    if config.network.conditional and not images.classes:
        raise UserError(
            f"network.conditional=True needs images with class labels, which {images.what} have"
            " not; try --data.source mnist, or a folder with a folder for each class"
        )
    return images.classes if config.network.conditional else 0


def step_bytes(config: Config, image_shape: Shape, images: int, classes: int = 0) -> int:
    """Estimate of one worker's memory: weights, gradients, optimizer, G_ema and activations.

    Counts the tensors that autograd keeps in the larger of the two updates for `images` images
    (on the meta device: nothing is computed), not what the process or CUDA need for themselves.
    """
    G, D = _meta_networks(config, image_shape, classes)
    slots = {"adam": 4, "adamw": 4, "rmsprop": 3, "sgd": 3, "lion": 3}[config.optimizer.name]
    averaged = _count(G) if config.train.ema_kimg else 0
    weights = 4 * (slots * (_count(G) + _count(D)) + averaged)
    height, width, channels = image_shape
    real = torch.empty(images, channels, height, width, device="meta")
    z = torch.empty(images, config.latent.size + classes, device="meta")
    labels = [torch.empty(images, classes, device="meta")] if classes else []
    with torch.no_grad():
        fake = G(z)
    counted = [*G.parameters(), *D.parameters()]
    D_objective = DiscriminatorObjective(D, config.loss)
    G_objective = GeneratorObjective(G, D, config.loss)
    alpha = torch.empty(images, device="meta")
    D_kept = _kept_bytes(lambda: D_objective(real, fake, *labels, alpha=alpha), counted)
    G_kept = _kept_bytes(lambda: G_objective(z, real, *labels), counted)
    return weights + max(D_kept, G_kept)


def _meta_networks(config: Config, image_shape: Shape, classes: int) -> tuple[nn.Module, nn.Module]:
    with torch.device("meta"):
        return networks.build(config.network, config.latent, image_shape, classes)


def _count(network: nn.Module) -> int:
    return sum(math.prod(p.shape) for p in network.parameters())


def _kept_bytes(forward: Callable[[], object], counted: Sequence[torch.Tensor]) -> int:
    """Bytes that autograd keeps for the backward of `forward`, each storage once.

    The weights are among them, but `counted` already.
    """
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()  # held until counted, or freed storages would be counted as one
    del result
    for tensor in counted:
        kept.pop(tensor.untyped_storage()._cdata, None)
    return sum(kept.values())
