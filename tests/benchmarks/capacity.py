"""Print what training dcgan64 takes: images/s, node-hours, network and storage, by card and number.

    python -m tests.benchmarks.capacity [--kimg 25000]

Measured is the step of one H200 (README, "On a GPU"), everything else is derived from it: other
cards by data sheets, several GPUs by the model of `tests.benchmarks.gpu.scaling`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ganray.config.presets import CELEBA
from ganray.gan import networks
from tests.benchmarks.gpu import Link, exposed_seconds

GRAPH_S, EAGER_S = 10.6e-3, 17.5e-3
"""Measured step of dcgan64, 128 images, on an H200: one worker alone, and as DDP submits it."""
SHAPE, IMAGES, ORIGINAL = (64, 64, 3), 202_599, 218 * 178 * 3
"""Images of CelebA as dcgan64 has them, and bytes of one at its original size."""


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet, and nodes with an assumed network."""

    name: str
    tflops: float
    """Dense TF32 TFLOP/s."""
    terabytes_per_s: float
    """Memory bandwidth."""
    per_node: int
    link_gigabytes_per_s: float
    """Bandwidth between the GPUs of a node, 80 % of the data sheet's."""
    network_gbit: float
    """Assumed network bandwidth of a node."""

    def slowdown(self) -> float:
        """Return how much longer than on an H200 a step takes, by the worse of two ratios."""
        return max(CARDS[0].tflops / self.tflops, CARDS[0].terabytes_per_s / self.terabytes_per_s)

    def link(self, gpus: int) -> Link:
        """Return the slowest link of a ring; messages take 3 us within a node, 25 between nodes."""
        if gpus <= self.per_node:
            return Link(self.name, gpus, 3, self.link_gigabytes_per_s)
        latency = (3 * (self.per_node - 1) + 25) / self.per_node
        return Link(self.name, gpus, latency, 0.8 * self.network_gbit / 8)


CARDS = (
    Card("H200", 495, 4.8, 8, 360, 100),
    Card("H100", 495, 3.35, 8, 360, 100),
    Card("A100 80 GB", 156, 2.0, 8, 240, 100),
    Card("A10G (cluster.yaml)", 35, 0.6, 1, 0, 10),
    Card("L4", 60, 0.3, 1, 0, 10),
)


@dataclass(frozen=True)
class Row:
    """A number of GPUs that train with a batch."""

    card: Card
    gpus: int
    batch: int
    """Images per step, over all GPUs."""
    images_per_s: float
    network_gbit: float
    """Gradients that a node sends."""

    @property
    def nodes(self) -> int:
        """Nodes that are occupied, at least one."""
        return max(1, self.gpus // self.card.per_node)

    def hours(self, kimg: float) -> float:
        """Return the hours until so many images are seen."""
        return 1000 * kimg / self.images_per_s / 3600

    @property
    def basis(self) -> str:
        """Origin of the images/s."""
        card = "" if self.card is CARDS[0] else "data sheet"
        model = "" if self.gpus == 1 else "DDP model"
        return " + ".join(filter(None, [card, model])) or "measured"


def build_networks() -> tuple[nn.Module, nn.Module]:
    """Return G and D of dcgan64, without memory."""
    config = CELEBA["dcgan64"]
    with torch.device("meta"):
        return networks.build(config.network, config.latent, SHAPE, 0)


def rows() -> Iterator[Row]:
    """Yield 1, 8 and 64 GPUs of each card, with the preset's batch for each GPU, and for all."""
    batch = CELEBA["dcgan64"].train.batch_size
    for card in CARDS:
        yield Row(card, 1, batch, batch / (GRAPH_S * card.slowdown()), 0)
        for gpus in (8, 64):
            for share in (batch, batch // gpus):
                yield several(card, gpus, share)


def several(card: Card, gpus: int, share: int) -> Row:
    """Estimate a step of `share` images on each GPU; the host submits it in no less than eager."""
    batch = CELEBA["dcgan64"].train.batch_size
    step_s = max(EAGER_S, GRAPH_S * card.slowdown() * share / batch)
    G, D = build_networks()
    _, exposed_s = exposed_seconds(card.link(gpus), (D, G), step_s)
    step_s += exposed_s
    sent = 2 * (gpus - 1) / gpus * sum(p.nbytes for net in (G, D) for p in net.parameters())
    gbit = 8e-9 * sent / step_s if gpus > card.per_node else 0
    return Row(card, gpus, gpus * share, gpus * share / step_s, gbit)


def checkpoint_bytes(G: nn.Module, D: nn.Module) -> int:
    """Return the size of a checkpoint: G, D, G_ema and Adam's two moments of G and D."""
    size_G, size_D = (sum(p.nbytes for p in net.parameters()) for net in (G, D))
    return 4 * size_G + 3 * size_D


def table(kimg: float) -> Iterator[str]:
    """Yield the lines of the table and what has to be stored."""
    yield (
        f"{'card':20} {'GPUs':>4} {'nodes':>5} {'batch':>6} {'images/s':>9} {'hours':>7}"
        f" {'node-hours':>10} {'read MB/s':>9} {'send Gb/s':>9}  images/s are"
    )
    pixels = SHAPE[0] * SHAPE[1] * SHAPE[2]
    for row in rows():
        hours, read = row.hours(kimg), row.images_per_s / row.nodes * pixels / 1e6
        yield (
            f"{row.card.name:20} {row.gpus:4} {row.nodes:5} {row.batch:6,} {row.images_per_s:9,.0f}"
            f" {hours:7.2f} {hours * row.nodes:10.2f} {read:9,.0f} {row.network_gbit:9.1f}"
            f"  {row.basis}"
        )
    train, size = CELEBA["dcgan64"].train, checkpoint_bytes(*build_networks())
    kept = train.keep_checkpoints + 1
    yield (
        f"storage: shards {IMAGES * pixels / 1e9:.1f} GB at 64x64, {IMAGES * ORIGINAL / 1e9:.1f} GB"
        f" at 218x178; a checkpoint {size / 1e6:.0f} MB, {kept} kept; one every"
        f" {train.checkpoint_every:g} kimg"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kimg", type=float, default=25_000, help="length of the run")
    print(*table(parser.parse_args().kimg), sep="\n")


if __name__ == "__main__":
    main()
