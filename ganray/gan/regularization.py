"""Regularization of the discriminator against mode collapse, for any network.

Packs and groups are *consecutive images of the global batch*. A step is the same on any number of
ranks as long as no pack or group is split between ranks (`NetworkConfig.group_size`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

from ganray.config.schema import NetworkConfig

Discriminator = Callable[..., torch.Tensor]
"""Function (images, *labels) -> logits."""


def apply_regularizers(D: nn.Module, network: NetworkConfig) -> nn.Module:
    """Add minibatch stddev, spectral norm and packing to D as configured.

    D must take images with `pack` times the channels, and its last linear or convolutional layer
    must output the logits.
    """
    if network.minibatch_stddev:
        add_minibatch_stddev(D, network.minibatch_stddev)
    if network.spectral_norm:
        add_spectral_norm(D)
    return PackedDiscriminator(D, network.pack) if network.pack > 1 else D


class PackedDiscriminator(nn.Module):
    """A discriminator that gives one logit for `pack` images: PacGAN, Lin et al. 2018."""

    def __init__(self, D: nn.Module, pack: int) -> None:
        super().__init__()
        self.D, self.pack = D, pack

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (n / pack,) for images (n, C, H, W), n a multiple of `pack`."""
        n, channels, height, width = images.shape
        return self.D(images.reshape(n // self.pack, self.pack * channels, height, width))


class MinibatchStddev(nn.Module):
    """Appends the mean stddev of each group as a feature: Karras et al. 2018, section 3.

    If G has collapsed, fake images of a group differ less than real ones, which D can detect.
    """

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features (n, F) or (n, F, H, W), n a multiple of `group`, to F + 1 features."""
        groups = features.float().unflatten(0, (-1, self.group))
        # The gradient of sqrt is infinite at 0, the variance of the equal images of a collapsed G.
        stddev = (groups.var(1, correction=0) + 1e-8).sqrt().flatten(1).mean(1)
        shape = (len(features), 1, *features.shape[2:])
        feature = stddev.repeat_interleave(self.group).reshape(-1, *[1] * (features.dim() - 1))
        return torch.cat([features, feature.expand(shape).to(features.dtype)], 1)


def add_minibatch_stddev(D: nn.Module, group: int) -> None:
    """Insert `MinibatchStddev` before D's last layer, which gets an input weight of 0 for it."""
    layers = [(n, m) for n, m in D.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    name, last = layers[-1]
    weight = last.weight.detach()
    last.weight = nn.Parameter(torch.cat([weight, torch.zeros_like(weight[:, :1])], 1))
    if isinstance(last, nn.Linear):
        last.in_features += 1
    else:
        last.in_channels += 1
    D.set_submodule(name, nn.Sequential(MinibatchStddev(group), last))


def add_spectral_norm(D: nn.Module) -> None:
    """Divide each weight matrix of D by its largest singular value: Miyato et al. 2018.

    Each forward pass in training mode updates the singular vectors by one power iteration. They are
    buffers that are not synchronized: ranks start from the same values and do the same passes.
    """
    for layer in list(D.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            parametrizations = spectral_norm(layer).get_submodule("parametrizations.weight")
            assert isinstance(parametrizations, nn.ModuleList)
            parametrizations[0] = _FullPrecision(parametrizations[0])


class _FullPrecision(nn.Module):
    """Excludes the power iteration from autocast: in bf16 it does not converge."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda" if weight.is_cuda else "cpu", enabled=False):
            return self.inner(weight)


def unrolled_discriminator(
    D: nn.Module, steps: int, lr: float, loss: Callable[[Discriminator], torch.Tensor]
) -> Discriminator:
    """Return D after some more training steps, differentiable through them: Metz et al. 2017.

    The steps are gradient descent on `loss`; Metz et al. unroll D's own optimizer. `D` itself is
    not modified.
    """
    # New leaves that require gradients, because D is frozen in the G step.
    weights = {name: p.detach().requires_grad_() for name, p in D.named_parameters()}
    for _ in range(steps):
        gradients = torch.autograd.grad(
            loss(_with_weights(D, weights)), list(weights.values()), create_graph=True
        )
        pairs = zip(weights.items(), gradients, strict=True)
        weights = {name: weight - lr * gradient for (name, weight), gradient in pairs}
    return _with_weights(D, weights)


def _with_weights(D: nn.Module, weights: dict[str, torch.Tensor]) -> Discriminator:
    return lambda *inputs: functional_call(D, weights, inputs)
