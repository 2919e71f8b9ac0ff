"""The plan of a run: workers, data, networks and training, checked and printed before it starts."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from torch import nn

from ganray import log
from ganray.config.schema import Config, NetworkConfig, TrainConfig
from ganray.data.prepare import DatasetPlan
from ganray.data.storage import open_storage
from ganray.errors import UserError
from ganray.evaluation.datasets import RunDatasets
from ganray.evaluation.reference import MIN_HALVED_IMAGES, usable_count
from ganray.evaluation.suite import MIN_IMAGES
from ganray.gan import networks
from ganray.training.checkpoints import resume_kimg
from ganray.training.state import check_weights_fit, read_state


@dataclass(frozen=True)
class Cluster:
    """Resources for workers; of an autoscaling cluster, once it has grown."""

    cpus: int
    gpus: int
    nodes: int
    grows: bool = False
    """Whether the cluster has to grow to have these resources."""
    is_open_ended: bool = False
    """Whether an autoscaler, whose limits are not known here, may add nodes to these."""
    sizes: tuple[tuple[int, int], ...] = ()
    """CPUs and GPUs of each node; empty if there is one node, or if nodes are yet to come."""

    def room(self, cpus: int, gpu: bool) -> int:
        """Return how many workers fit, each of which is on one node."""
        sizes = self.sizes or ((self.cpus, self.gpus),)
        return sum(min(has // cpus, gpus) if gpu else has // cpus for has, gpus in sizes)

    def __str__(self) -> str:
        growth = " after autoscaling" if self.grows else ""
        return f"{_count(self.nodes, 'node')}, {self.cpus} CPUs, {self.gpus} GPUs{growth}"


@dataclass(frozen=True)
class Workers:
    """Number of DDP workers and the resources of each."""

    count: int
    """Number of workers, of an elastic run the smallest."""
    gpu: bool
    cpus: int
    most: int | None = None
    """Largest number of workers of an elastic run; None: the number does not change."""

    def __str__(self) -> str:
        device = "one GPU each (nccl)" if self.gpu else f"{_count(self.cpus, 'core')} each (gloo)"
        number = f"{self.count} to {self.most} DDP workers, as nodes come and go"
        return f"{number if self.most else _count(self.count, 'DDP worker')}, {device}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def this_machine() -> Cluster:
    """Return the resources that a Ray started on this machine would have."""
    return Cluster(os.cpu_count() or 1, torch.cuda.device_count(), 1)


def resolve_workers(config: Config, cluster: Cluster) -> Workers:
    """Choose the workers and check that the cluster has the resources for them.

    What is asked of an open-ended cluster is left to its autoscaler.
    """
    gpu = cluster.gpus > 0 if config.ray.gpu is None else config.ray.gpu
    cpus = config.ray.cpus_per_worker
    available = cluster.room(cpus, gpu)
    largest = max((has for has, _ in cluster.sizes), default=cluster.cpus)
    default = max(cluster.gpus, 1) if gpu else min(2, available)
    default = min(default, config.train.batch_size)
    count, most = config.ray.worker_range() or (default, default)
    is_possible = count <= available or (cluster.is_open_ended and config.ray.workers)
    if count < 1 or not is_possible:
        need = _count(cpus, "CPU") + (" and 1 GPU" if gpu else "")
        raise UserError(
            f"ray.workers={max(count, 1)} need {need} each, but the cluster has {cluster}"
            + (
                f", and {_count(largest, 'CPU')} on the largest node"
                if len(cluster.sizes) > 1
                else ""
            )
            + f"; try --ray.workers {max(available, 1)}"
            + (f" --ray.cpus_per_worker {max(largest, 1)}" if cpus > largest else "")
            + (" --ray.gpu false" if gpu and not available else "")
        )
    check_workers(config, count, most)
    return Workers(count, gpu, cpus, most if config.ray.is_elastic() else None)


def check_workers(config: Config, count: int, most: int | None = None) -> None:
    """Check that the batch can be split over this number of workers, or any up to `most`."""
    batch_size, network, most = config.train.batch_size, config.network, most or count
    if batch_size < most:
        raise UserError(
            f"train.batch_size={batch_size} cannot be split over {most} workers; use at least"
            f" {most}"
        )
    group = network.group_size()
    if group > 1 and batch_size % (group * math.lcm(*range(count, most + 1))):
        number, multiple = _count(count, "worker"), f"{group * count}"
        if most > count:
            number, multiple = f"{count} to {most} workers", f"{group} times each number of workers"
        raise UserError(
            f"train.batch_size={batch_size} over {number} must be a multiple of"
            f" {multiple}, because D processes images in groups of {group}"
            f" (network.pack={network.pack}, network.minibatch_stddev={network.minibatch_stddev});"
            f" try {_divisible_batch(batch_size, group, count, most)}"
        )
    microbatch = config.train.microbatch
    if microbatch and microbatch % group:
        raise UserError(
            f"train.microbatch={microbatch} must be a multiple of {group}, because D"
            f" processes images in groups (network.pack={network.pack},"
            f" network.minibatch_stddev={network.minibatch_stddev})"
        )
    if microbatch and network.spectral_norm:
        raise UserError(
            f"train.microbatch={microbatch} and network.spectral_norm=true exclude each other, as"
            " each part of the batch would improve D's estimate of its norms; leave one out"
        )
    if microbatch and config.loss.unroll:
        raise UserError(
            f"train.microbatch={microbatch} and loss.unroll={config.loss.unroll} exclude each"
            " other, as D would be unrolled on a part of the batch; leave one out"
        )
    if config.loss.unroll and most > 1:
        raise UserError(
            f"loss.unroll={config.loss.unroll} must be 0 with {most} workers, because each would"
            " unroll D on its own slice of the batch; try --ray.workers 1, or one process"
        )


def _divisible_batch(batch_size: int, group: int, count: int, most: int) -> str:
    """Return a batch size that divides, for the widest range that has one within 25 %."""
    advice = ""
    for largest, factor in enumerate(accumulate(range(count, most + 1), math.lcm), count):
        multiple = group * factor
        nearest = max(1, round(batch_size / multiple)) * multiple
        if not advice or abs(nearest - batch_size) <= batch_size / 4:
            workers = f"{count}:{largest}" if largest > count else f"{count}"
            advice = f"{nearest}" + f" with --ray.workers {workers}" * (largest < most)
    return advice


def describe_plan(datasets: RunDatasets, workers: Workers, store: str) -> str:
    """Describe a run: its name, `plan_rows` and where results go; `store` is the MLflow store."""
    config = datasets.config
    resumes = f"to resume: the same command with --name {config.name}"
    if kimg := resume_kimg(config):
        resumes = f"goes on from {kimg:g} kimg"
    if config.check_discriminator:
        resumes = "trains D alone, until it separates held-out real images from noise"
    rows = {"run": f"{config.name} ({resumes})"}
    rows |= plan_rows(datasets, workers)
    if config.check_discriminator:
        del rows["evaluation"]
    rows |= {"results": f"{log.unbroken(config.run_folder())} and {log.unbroken(store)}"}
    return format_rows(rows)


def format_rows(rows: Mapping[str, str]) -> str:
    """Format names and texts as a table, wrapped at the width of the terminal."""
    width = max(11, *map(len, rows))
    return "\n".join(
        log.wrap(text, f"{name:{width}s} ", indent=width + 1) for name, text in rows.items()
    )


def plan_rows(datasets: RunDatasets, workers: Workers) -> dict[str, str]:
    """Describe data, networks, training, workers and evaluation of a run, by topic."""
    config, images, train = datasets.config, datasets.images, datasets.config.train
    classes = num_classes(config.network, images)
    with torch.device("meta"):
        G, D = networks.build(config.network, config.latent, images.image_shape, classes)
    starts = config.init_from and resume_kimg(config) is None
    if starts:
        folder = Path(config.init_from)
        if folder.exists() or not config.dry_run:  # else only the storage has it
            check_weights_fit(folder, read_state(folder), {"G": G, "D": D})
    height, width, channels = images.stored_shape
    root = config.data.root or ""
    label = f" and one of {classes} labels" if classes else ""
    rows = {
        "data": "; ".join([str(images).replace(root, log.unbroken(root)), *images.notes]),
        "shards": f"{height}x{width}x{channels} {config.data.encoding},"
        f" {images.bytes / 2**20:,.0f} MiB,"
        f" {'ready' if images.ready else 'to be written'}: {log.unbroken(images.location)}",
        "networks": f"{config.network.kind}: G {_parameters(G):,} and D {_parameters(D):,}"
        f" parameters, z {config.latent}{label}" + (f", from {config.init_from}" if starts else ""),
        "training": f"{train.kimg:g} kimg = {train.steps():,} steps of {train.batch_size} images,"
        f" {_describe_loss(config)}, {config.optimizer.name},"
        f" {_describe_kernels(train, workers)}",
        "workers": str(workers),
        "evaluation": _describe_evaluation(datasets),
    }
    if storage := open_storage(config.storage):
        rows["storage"] = f"{storage}: shards, checkpoints and results for all nodes"
    return rows


def few_images_warning(datasets: RunDatasets) -> str | None:
    """Return what it means that there are fewer training images than a batch has; None if not."""
    count, batch_size = datasets.images.count, datasets.config.train.batch_size
    if count >= batch_size:
        return None
    times = f"{batch_size / count:.1f}".removesuffix(".0")
    return (
        f"{_count(count, 'image')} for a batch of {batch_size}: every step shows D all of them,"
        f" about {times} times, and G can only learn them by heart"
    )


def _describe_evaluation(datasets: RunDatasets) -> str:
    evaluation = datasets.config.evaluation
    if not evaluation.is_enabled():
        return "none"
    reference = datasets.reference

    def usable(samples: int, parts: int = 1) -> int:
        return usable_count(reference.count, reference.has_classifier, samples, parts)

    is_halved = reference.has_classifier and reference.count >= MIN_HALVED_IMAGES
    unseen = " that the classifier is not trained on" * is_halved
    parts = []
    if count := usable(evaluation.samples):
        interval = evaluation.every or datasets.config.train.sample_every
        parts.append(f"{count:,} samples every {interval:g} kimg")
    if count := usable(evaluation.report_samples, parts=2):
        parts.append(f"final report on {count:,} samples")
        if count < evaluation.report_samples:
            wanted = f"{evaluation.report_samples:,}"
            parts[-1] += f" (not {wanted}, as it needs two sets of images{unseen})"
    elif parts and evaluation.report_samples:
        parts.append(f"no final report, as it needs two sets of {MIN_IMAGES} images{unseen}")
    if not parts:
        half = ", half of which train the classifier" * is_halved
        return f"none, too few to compare with: {_count(reference.count, 'image')}{half}"
    if not datasets.same:
        height, width, _ = datasets.reference.image_shape
        parts.append(f"reference {datasets.reference}, {height}x{width}")
    if held_out := datasets.held_out:
        parts.append(f"memorization by {held_out.count:,} held-out images")
    return ", ".join(parts)


def _describe_loss(config: Config) -> str:
    """Return the loss and its regularizers, e.g. "relativistic + R1 0.1 + pack 2"."""
    loss, network, train = config.loss, config.network, config.train
    terms = {
        f"R1 {loss.r1_gamma:g}": loss.r1_gamma,
        f"R2 {loss.r2_gamma:g}": loss.r2_gamma,
        f"penalties every {loss.penalty_every} steps": loss.penalty_every > 1,
        f"GP {loss.gp_weight:g}": loss.gp_weight,
        f"unroll {loss.unroll} with lr {loss.unroll_lr:g}": loss.unroll,
        f"pack {network.pack}": network.pack > 1,
        f"minibatch stddev {network.minibatch_stddev}": network.minibatch_stddev,
        "spectral norm": network.spectral_norm,
        f"G every {train.G_every} steps": train.G_every > 1,
        f"{train.G_steps} G steps": train.G_steps > 1,
        config.augment.policy: config.augment.policy != "none",
        f"parts of {train.microbatch}": train.microbatch,
    }
    return " + ".join([loss.name, *(term for term, is_used in terms.items() if is_used)])


def _describe_kernels(train: TrainConfig, workers: Workers) -> str:
    """Return the precision and, on a GPU, how kernels run, e.g. "bf16 + TF32 + CUDA graphs"."""
    on_gpu = {
        "TF32": train.matmul_precision == "high",
        "deterministic": train.deterministic,
        "CUDA graphs": train.cuda_graphs and (workers.most or workers.count) == 1,
    }
    terms = [term for term, is_used in on_gpu.items() if workers.gpu and is_used]
    return " + ".join([train.precision, *terms])


def num_classes(network: NetworkConfig, images: DatasetPlan) -> int:
    """Return the number of classes of a conditional pair; 0 for an unconditional pair."""
    if network.conditional and not images.classes:
        raise UserError(
            f"network.conditional=true needs class labels, but {images.description} have none;"
            " try --data.source mnist, or a folder with one subfolder per class"
        )
    return images.classes if network.conditional else 0


def _parameters(network: nn.Module) -> int:
    return sum(math.prod(p.shape) for p in network.parameters())
