"""Generators and discriminators. Images are float (n, C, H, W), latents (n, size), logits (n,).

A conditional pair takes one-hot labels, float (n, classes): G takes (n, size + classes), z followed
by the label; D takes (images, labels).

No network here mixes the images of a batch (GroupNorm and LayerNorm, never BatchNorm). Therefore a
step is the same on any number of ranks and gradient penalties are exact. `regularization` adds
layers to D that combine several images of the same rank.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import one_hot

from ganray.config.schema import LatentConfig, NetworkConfig
from ganray.gan.regularization import apply_regularizers
from ganray.gan.resnet import ResnetDiscriminator, ResnetGenerator

Shape = tuple[int, int, int]


def build(
    network: NetworkConfig, latent: LatentConfig, image_shape: Shape, classes: int = 0
) -> tuple[nn.Module, nn.Module]:
    """Build the pair (G, D) for images of shape (H, W, C); conditional if `classes` is not 0."""
    height, width, channels = image_shape
    shape, inputs = (channels, height, width), latent.size + classes
    channels_D = network.pack * channels
    G: nn.Module
    D: nn.Module
    # The order of construction decides the initial weights.
    if network.kind == "mlp":
        G = MlpGenerator(network, inputs, shape)
        D = MlpDiscriminator(network, channels_D * height * width + classes)
    elif network.kind == "resnet":
        G = ResnetGenerator(network, inputs, shape, classes)
        D = ResnetDiscriminator(network, (channels_D, height, width), classes)
    elif network.kind == "metz":
        D = MetzDiscriminator(network.width_D, (channels_D + classes, height, width))
        G = MetzGenerator(inputs, network.width_G, shape)
    else:
        D = DcganDiscriminator(network.width_D, (channels_D + classes, height, width))
        G = DcganGenerator(inputs, network.width_G, shape)
    if classes and network.kind != "resnet":
        D = ConditionalDiscriminator(D, channels=network.kind != "mlp")
    return G, apply_regularizers(D, network)


def one_hot_labels(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Convert labels, int64 (n,) in [0, classes), to float32 (n, classes)."""
    return one_hot(labels, classes).float()


class MlpGenerator(nn.Sequential):
    """The source text's generator: one hidden layer, pixels in [0, 1]."""

    def __init__(self, network: NetworkConfig, inputs: int, shape: Shape) -> None:
        super().__init__(
            nn.Linear(inputs, network.width_G),
            *_hidden(network, network.width_G),
            nn.Linear(network.width_G, math.prod(shape)),
            nn.Sigmoid(),
            nn.Unflatten(1, shape),
        )


class MlpDiscriminator(nn.Sequential):
    """The source text's discriminator. Its final sigmoid is part of the loss."""

    def __init__(self, network: NetworkConfig, inputs: int) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(inputs, network.width_D),
            *_hidden(network, network.width_D),
            nn.Linear(network.width_D, 1),
            nn.Flatten(0),
        )


class ConditionalDiscriminator(nn.Module):
    """Concatenates the label to D's input.

    An MLP gets it beside the flattened pixels, as in the source text; a convolutional network gets
    one constant channel (0 or 1) per class.
    """

    def __init__(self, D: nn.Module, channels: bool) -> None:
        super().__init__()
        self.D, self.channels = D, channels

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return logits (n,) for images (n, C, H, W) and labels (n, classes)."""
        if self.channels:
            labels = labels[:, :, None, None].expand(-1, -1, *images.shape[2:])
            return self.D(torch.cat([images, labels], 1))
        return self.D(torch.cat([images.flatten(1), labels], 1))


class DcganGenerator(nn.Sequential):
    """Radford et al. 2015 with GroupNorm: z -> 4x4, then the side is doubled to the image size.

    If the image side is not a power of two, sides are halved and rounded up (28, 14, 7, 4); the
    smallest may be 3x3.
    """

    def __init__(self, latent_size: int, width: int, shape: Shape) -> None:
        channels, side, _ = shape
        *sides, smallest = halvings(side)
        features = width * 2 ** (len(sides) - 1)
        layers: list[nn.Module] = [
            nn.Unflatten(1, (latent_size, 1, 1)),
            nn.ConvTranspose2d(latent_size, features, smallest, bias=False),
            *_norm_act(features, nn.ReLU()),
        ]
        for side_out in sides[:0:-1]:
            upsample = nn.ConvTranspose2d(
                features, features // 2, _kernel(side_out), 2, 1, bias=False
            )
            features //= 2
            layers += [upsample, *_norm_act(features, nn.ReLU())]
        last = nn.ConvTranspose2d(features, channels, _kernel(side), 2, 1)
        super().__init__(*layers, last, nn.Tanh())
        self.apply(_init_weights)


class DcganDiscriminator(nn.Sequential):
    """Mirror of `DcganGenerator`: the side is halved down to 4x4. No norm after the first layer."""

    def __init__(self, width: int, shape: Shape) -> None:
        channels, side, _ = shape
        *sides, smallest = halvings(side)
        layers: list[nn.Module] = [
            nn.Conv2d(channels, width, _kernel(side), 2, 1),
            nn.LeakyReLU(0.2),
        ]
        for side_in in sides[1:]:
            layers.append(nn.Conv2d(width, width * 2, _kernel(side_in), 2, 1, bias=False))
            width *= 2
            layers += _norm_act(width, nn.LeakyReLU(0.2))
        super().__init__(*layers, nn.Conv2d(width, 1, smallest), nn.Flatten(0))
        self.apply(_init_weights)


class MetzGenerator(nn.Sequential):
    """Metz et al. 2017, appendix C: Linear to 4x4x64, doubled to 7, 14 and 28, a convolution.

    Metz et al. and PacGAN (table 3) use BatchNorm instead of GroupNorm with one group, and PacGAN
    samples with the statistics of the batch. The initial weights are the same: N(0, 0.02).
    """

    def __init__(self, latent_size: int, width: int, shape: Shape) -> None:
        channels, side, _ = shape
        sides = halvings(side, 3)
        features = width * 8
        layers: list[nn.Module] = [
            nn.Linear(latent_size, features * sides[-1] ** 2),
            nn.Unflatten(1, (features, sides[-1], sides[-1])),
            *_norm_act(features, nn.ReLU(), groups=1),
        ]
        for side_out in sides[-2::-1]:
            layers.append(
                nn.ConvTranspose2d(
                    features, features // 2, 3, 2, 1, output_padding=1 - side_out % 2
                )
            )
            features //= 2
            layers += _norm_act(features, nn.ReLU(), groups=1)
        super().__init__(*layers, nn.Conv2d(features, channels, 3, 1, 1), nn.Tanh())
        self.apply(_init_weights)


class MetzDiscriminator(nn.Sequential):
    """Three convolutions and one logit, with so few channels (2, 4, 8) that generators collapse.

    GroupNorm follows all layers, also the first: 585 parameters at width 2, as published.
    """

    def __init__(self, width: int, shape: Shape) -> None:
        channels, side, _ = shape
        layers: list[nn.Module] = []
        for _ in range(3):
            layers.append(nn.Conv2d(channels, width, 3, 2, 1))
            layers += _norm_act(width, nn.LeakyReLU(0.3), groups=1)
            channels, width = width, width * 2
        pixels = halvings(side, 3)[-1] ** 2
        super().__init__(*layers, nn.Flatten(), nn.Linear(channels * pixels, 1), nn.Flatten(0))
        self.apply(_init_weights)


def halvings(side: int, times: int | None = None) -> list[int]:
    """Return a side and its halves, rounded up: 28, 14, 7, 4; `times` of them, or down to 4."""
    sides = [side]
    while len(sides) <= times if times is not None else sides[-1] > 4:
        sides.append((sides[-1] + 1) // 2)
    return sides


def _kernel(side: int) -> int:
    """Return the kernel size that maps `side` to its half rounded up, at stride 2 and padding 1."""
    return 3 if side % 2 else 4


def _hidden(network: NetworkConfig, units: int) -> list[nn.Module]:
    """Return what follows a hidden layer; the source text normalizes after the activation."""
    sigmoid = network.activation == "sigmoid"
    activation = nn.Sigmoid() if sigmoid else nn.LeakyReLU(network.leak)
    return [activation, nn.LayerNorm(units)] if network.layer_norm else [activation]


def _norm_act(channels: int, activation: nn.Module, groups: int = 4) -> list[nn.Module]:
    return [nn.GroupNorm(groups, channels), activation]


def _init_weights(module: nn.Module) -> None:
    """Initialize as Radford et al. 2015, section 4: N(0, 0.02)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)


def memory_format(network: NetworkConfig, device: torch.device) -> torch.memory_format:
    """Return the layout of weights and images that is faster.

    For convolutions on a CPU this is channels_last, in which shards store images. On a GPU torch's
    GroupNorm copies such images to the contiguous layout and the next convolution copies them back:
    7 % of a step of dcgan64 on an H200.
    """
    if network.kind == "mlp" or device.type == "cuda":
        return torch.contiguous_format
    return torch.channels_last
