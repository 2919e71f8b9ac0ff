"""Generators and discriminators. Images are float (n, C, H, W), latents (n, size), logits (n,).

No net here mixes the images of a batch (GroupNorm and LayerNorm, never BatchNorm). So a step is
the same on any number of ranks, gradient penalties are exact, and DDP has no buffers to sync.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ganray.config import LatentConfig, NetworkConfig

Shape = tuple[int, int, int]


def build(
    network: NetworkConfig, latent: LatentConfig, image_shape: Shape
) -> tuple[nn.Module, nn.Module]:
    """The pair (G, D) for images of shape (H, W, C)."""
    height, width, channels = image_shape
    shape = (channels, height, width)
    if network.kind == "mlp":
        return (
            MlpGenerator(latent.size, network.width_G, shape),
            MlpDiscriminator(network.width_D, shape),
        )
    return (
        DcganGenerator(latent.size, network.width_G, shape),
        DcganDiscriminator(network.width_D, shape),
    )


class MlpGenerator(nn.Sequential):
    """The source text's CelebA generator: one hidden layer, pixels in [0, 1]."""

    def __init__(self, latent_size: int, hidden: int, shape: Shape) -> None:
        super().__init__(
            nn.Linear(latent_size, hidden),
            nn.LeakyReLU(0.01),
            nn.LayerNorm(hidden),
            nn.Linear(hidden, math.prod(shape)),
            nn.Sigmoid(),
            nn.Unflatten(1, shape),
        )


class MlpDiscriminator(nn.Sequential):
    """The source text's CelebA discriminator; its sigmoid is in the loss, which takes logits."""

    def __init__(self, hidden: int, shape: Shape) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(math.prod(shape), hidden),
            nn.LeakyReLU(0.01),
            nn.LayerNorm(hidden),
            nn.Linear(hidden, 1),
            nn.Flatten(0),
        )


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


def _normalised(channels: int, activation: nn.Module) -> list[nn.Module]:
    return [nn.GroupNorm(4, channels), activation]


def _dcgan_weights(module: nn.Module) -> None:
    """Radford et al. 2015, section 4: N(0, 0.02), without which the game starts unbalanced."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)


def memory_format(network: NetworkConfig) -> torch.memory_format:
    """channels_last for convolutions, which is how shards store images; else torch's default."""
    return torch.channels_last if network.kind == "dcgan" else torch.contiguous_format
