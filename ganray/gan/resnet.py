"""Residual networks without normalization: R3GAN, Huang et al. 2024 (arXiv 2501.05441).

G and D mirror each other: stages of residual blocks, one stage for each size of the image from 4x4
on. The only biases are those before activations. bf16 is not used at 4x4, as published.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn
from torch.nn.functional import conv2d, conv_transpose2d

from ganray.config.schema import NetworkConfig

Shape = tuple[int, int, int]
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)

_SMALLEST = 4
"""Side of the smallest stage."""
_LEAK = 0.2
"""Slope of leaky ReLU below zero."""
_EMBEDDING = 64
"""Elements that follow z in a conditional G, instead of the one-hot label."""


class ResnetGenerator(nn.Module):
    """Learned 4x4 features, weighted by z, then doubled in size. No tanh follows.

    `inputs` is the size of z with its one-hot label, `classes` that of the label.
    """

    def __init__(self, network: NetworkConfig, inputs: int, shape: Shape, classes: int) -> None:
        super().__init__()
        channels, side, _ = shape
        widths = stage_widths(network.width_G, network.max_width, side)
        self.embedding = _initialize(nn.Linear(classes, _EMBEDDING, False)) if classes else None
        self.size = inputs - classes
        width = self.size + _EMBEDDING * bool(classes)
        self.from_latent = _initialize(nn.Linear(width, widths[0], bias=False))
        self.features = nn.Parameter(torch.randn(widths[0], _SMALLEST, _SMALLEST))
        self.smallest = nn.Sequential(*_blocks(network, widths[0], len(widths)))
        larger: list[nn.Module] = []
        for previous, width in pairwise(widths):
            # At the smaller size, where it costs a quarter.
            larger += [_conv1x1(previous, width)] if previous != width else []
            larger += [Upsample(), *_blocks(network, width, len(widths))]
        self.larger = nn.Sequential(*larger, _conv1x1(widths[-1], channels))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return images (n, C, H, W), about in [-1, 1], for latents (n, size [+ classes])."""
        if self.embedding is not None:
            z, label = z[:, : self.size], z[:, self.size :]
            z = torch.cat([z, self.embedding(label)], 1)
        with torch.autocast(z.device.type, enabled=False):
            weights = self.from_latent(z.float())
            features = self.smallest(self.features * weights[:, :, None, None])
        return self.larger(features)


class ResnetDiscriminator(nn.Module):
    """Mirror of `ResnetGenerator`: 4x4 features are weighted and added up, then a linear layer.

    The paper calls the former a depthwise 4x4 convolution.

    A conditional one returns the dot product of its features with an embedding of the label
    (Miyato and Koyama 2018).
    """

    def __init__(self, network: NetworkConfig, shape: Shape, classes: int) -> None:
        super().__init__()
        channels, side, _ = shape
        *widths, last = stage_widths(network.width_D, network.max_width, side)[::-1]
        larger: list[nn.Module] = [_conv1x1(channels, widths[0])]
        for width, following in zip(widths, [*widths[1:], last], strict=True):
            larger += [*_blocks(network, width, len(widths) + 1), Downsample()]
            larger += [_conv1x1(width, following)] if width != following else []
        self.larger = nn.Sequential(*larger)
        self.smallest = nn.Sequential(*_blocks(network, last, len(widths) + 1))
        self.pool = nn.Parameter(torch.randn(last, _SMALLEST, _SMALLEST) / _SMALLEST)
        gain = 1 / math.sqrt(last)
        self.embedding = _initialize(nn.Linear(classes, last, False), gain) if classes else None
        # Defined last, as `apply_regularizers` appends a feature to the input of the last layer.
        self.head = _initialize(nn.Linear(last, last if classes else 1, bias=False))

    def forward(self, images: torch.Tensor, *labels: torch.Tensor) -> torch.Tensor:
        """Return logits (n,) for images (n, C, H, W) and, if conditional, labels (n, classes)."""
        features = self.larger(images)
        with torch.autocast(images.device.type, enabled=False):
            pooled = (self.smallest(features.float()) * self.pool).sum((2, 3))
            outputs = self.head(pooled)
            if self.embedding is not None:
                outputs = (outputs * self.embedding(*labels)).sum(1, keepdim=True)
        return outputs.flatten()


class ResidualBlock(nn.Module):
    """1x1 convolution to twice the width, grouped 3x3, 1x1 back; added to the input.

    Args:
        width: Channels of the input.
        group_width: Channels per group of the 3x3 convolution; 0: one group.
        gain: Gain of the initial weights of all but the last convolution, which starts at zero, so
            that the block starts as the identity (Zhang et al. 2019, Fixup).
    """

    def __init__(self, width: int, group_width: int, gain: float) -> None:
        super().__init__()
        wide = 2 * width
        groups = wide // group_width if group_width else 1
        self.residual = nn.Sequential(
            _initialize(nn.Conv2d(width, wide, 1), gain),
            nn.LeakyReLU(_LEAK, inplace=True),
            _initialize(nn.Conv2d(wide, wide, 3, padding=1, groups=groups), gain),
            nn.LeakyReLU(_LEAK, inplace=True),
            _initialize(nn.Conv2d(wide, width, 1, bias=False), 0.0),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, width, H, W) to the same shape."""
        return features + self.residual(features)


class _Resample(nn.Module):
    """Fixed separable filter [1, 3, 3, 1] / 8 on each channel, with zeros beyond the borders."""

    filter: torch.Tensor

    def __init__(self, gain: float) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("filter", gain * torch.outer(taps, taps), persistent=False)

    def kernel(self, features: torch.Tensor) -> torch.Tensor:
        """Return the filter as the weight of a depthwise convolution of these features."""
        return self.filter.to(features.dtype).expand(features.shape[1], 1, -1, -1)


class Upsample(_Resample):
    """Doubles the sides of (n, C, H, W)."""

    def __init__(self) -> None:
        super().__init__(gain=4)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, C, H, W) to (n, C, 2 H, 2 W)."""
        kernel, channels = self.kernel(features), features.shape[1]
        return conv_transpose2d(features, kernel, stride=2, padding=1, groups=channels)


class Downsample(_Resample):
    """Halves the sides of (n, C, H, W)."""

    def __init__(self) -> None:
        super().__init__(gain=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, C, H, W) to (n, C, H / 2, W / 2)."""
        kernel, channels = self.kernel(features), features.shape[1]
        return conv2d(features, kernel, stride=2, padding=1, groups=channels)


def stage_widths(width: int, max_width: int, side: int) -> list[int]:
    """Return the widths of the stages, from 4x4 to side x side.

    `width` is that of the largest stage; it is doubled per halving of the side, up to `max_width`.
    """
    halvings = int(math.log2(side // _SMALLEST))
    return [min(width * 2**halving, max_width) for halving in range(halvings, -1, -1)]


def _blocks(network: NetworkConfig, width: int, stages: int) -> list[nn.Module]:
    """Return the blocks of a stage, with the gain of Fixup for blocks of three layers."""
    total = network.blocks * stages
    gain = math.sqrt(2 / (1 + _LEAK**2)) * total ** (-1 / 4)
    return [ResidualBlock(width, network.group_width, gain) for _ in range(network.blocks)]


def _conv1x1(inputs: int, outputs: int) -> nn.Conv2d:
    return _initialize(nn.Conv2d(inputs, outputs, 1, bias=False))


@torch.no_grad()
def _initialize(layer: Layer, gain: float = 1.0) -> Layer:
    """Draw weights from N(0, gain^2 / fan-in) and set biases to zero."""
    layer.weight.normal_(0, gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        layer.bias.zero_()
    return layer
