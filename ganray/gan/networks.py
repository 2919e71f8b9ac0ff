"""Generators and discriminators. Images are float (n, C, H, W), latents (n, size), logits (n,).

A conditional pair is told the class as one-hot labels, float (n, classes): G takes (n, size +
classes), the label beside z; D takes (images, labels).

No net here mixes the images of a batch (GroupNorm and LayerNorm, never BatchNorm). So a step is
the same on any number of ranks, and gradient penalties are exact. `cures` adds to D what looks at
several images, and keeps to the first of these.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import one_hot

from ganray.config import LatentConfig, NetworkConfig
from ganray.gan.cures import cured

Shape = tuple[int, int, int]


def build(
    network: NetworkConfig, latent: LatentConfig, image_shape: Shape, classes: int = 0
) -> tuple[nn.Module, nn.Module]:
    """The pair (G, D) for images of shape (H, W, C); conditional where there are `classes`."""
    G, D = _pair(network, latent, image_shape, classes)
    return G, cured(D, network)


def _pair(
    network: NetworkConfig, latent: LatentConfig, image_shape: Shape, classes: int
) -> tuple[nn.Module, nn.Module]:
    """(G, D), where D takes images of `pack` times the channels."""
    height, width, channels = image_shape
    shape = (channels, height, width)
    seen = network.pack * channels
    if network.kind == "mlp":
        pixels = seen * height * width
        return (
            MlpGenerator(network, latent.size + classes, shape),
            Labelled(MlpDiscriminator(network, pixels + classes))
            if classes
            else MlpDiscriminator(network, pixels),
        )
    D = DcganDiscriminator(network.width_D, (seen + classes, height, width))
    return (
        DcganGenerator(latent.size + classes, network.width_G, shape),
        LabelledMaps(D) if classes else D,
    )


def one_hot_labels(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """int64 (n,) in [0, classes) -> float32 (n, classes), 1 at the label and 0 elsewhere."""
    return one_hot(labels, classes).float()


class MlpGenerator(nn.Sequential):
    """The source text's generators: one hidden layer, pixels in [0, 1]."""

    def __init__(self, network: NetworkConfig, inputs: int, shape: Shape) -> None:
        super().__init__(
            nn.Linear(inputs, network.width_G),
            *_hidden(network, network.width_G),
            nn.Linear(network.width_G, math.prod(shape)),
            nn.Sigmoid(),
            nn.Unflatten(1, shape),
        )


class MlpDiscriminator(nn.Sequential):
    """The source text's discriminators; their last sigmoid is in the loss, which takes logits."""

    def __init__(self, network: NetworkConfig, inputs: int) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(inputs, network.width_D),
            *_hidden(network, network.width_D),
            nn.Linear(network.width_D, 1),
            nn.Flatten(0),
        )


class Labelled(nn.Module):
    """An MLP discriminator that sees the label beside the pixels, as the source text does it."""

    def __init__(self, D: nn.Module) -> None:
        super().__init__()
        self.D = D

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Images (n, C, H, W), labels (n, classes) -> logits (n,)."""
        return self.D(torch.cat([images.flatten(1), labels], 1))


class LabelledMaps(nn.Module):
    """A convolutional discriminator that sees each class as one more channel, all 0 or all 1."""

    def __init__(self, D: nn.Module) -> None:
        super().__init__()
        self.D = D

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Images (n, C, H, W), labels (n, classes) -> logits (n,)."""
        maps = labels[:, :, None, None].expand(-1, -1, *images.shape[2:])
        return self.D(torch.cat([images, maps], 1))


class DcganGenerator(nn.Sequential):
    """Radford et al. 2015 with GroupNorm: z -> 4x4, then doubled until the side is reached."""

    def __init__(self, latent_size: int, width: int, shape: Shape) -> None:
        channels, side, _ = shape
        doublings = int(math.log2(side)) - 2
        wide = width * 2 ** (doublings - 1)
        layers: list[nn.Module] = [
            nn.Unflatten(1, (latent_size, 1, 1)),
            nn.ConvTranspose2d(latent_size, wide, 4, bias=False),
            *_normalised(wide, nn.ReLU()),
        ]
        for _ in range(doublings - 1):
            layers.append(nn.ConvTranspose2d(wide, wide // 2, 4, 2, 1, bias=False))
            wide //= 2
            layers += _normalised(wide, nn.ReLU())
        super().__init__(*layers, nn.ConvTranspose2d(wide, channels, 4, 2, 1), nn.Tanh())
        self.apply(_dcgan_weights)


class DcganDiscriminator(nn.Sequential):
    """Its mirror: the side is halved down to 4x4, then one logit. No norm on the first layer."""

    def __init__(self, width: int, shape: Shape) -> None:
        channels, side, _ = shape
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for _ in range(int(math.log2(side)) - 3):
            layers.append(nn.Conv2d(width, width * 2, 4, 2, 1, bias=False))
            width *= 2
            layers += _normalised(width, nn.LeakyReLU(0.2))
        super().__init__(*layers, nn.Conv2d(width, 1, 4), nn.Flatten(0))
        self.apply(_dcgan_weights)


def _hidden(network: NetworkConfig, units: int) -> list[nn.Module]:
    """What follows a hidden layer of an MLP; the source text normalises after the activation."""
    sigmoid = network.activation == "sigmoid"
    activation = nn.Sigmoid() if sigmoid else nn.LeakyReLU(network.leak)
    return [activation, nn.LayerNorm(units)] if network.layer_norm else [activation]


def _normalised(channels: int, activation: nn.Module) -> list[nn.Module]:
    return [nn.GroupNorm(4, channels), activation]


def _dcgan_weights(module: nn.Module) -> None:
    """Radford et al. 2015, section 4: N(0, 0.02), without which the game starts unbalanced."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)


def memory_format(network: NetworkConfig) -> torch.memory_format:
    """channels_last for convolutions, which is how shards store images; else torch's default."""
    return torch.channels_last if network.kind == "dcgan" else torch.contiguous_format
