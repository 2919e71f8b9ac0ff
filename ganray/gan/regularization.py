"""What is done to a discriminator against mode collapse, whichever network it is.

Packs and groups are *consecutive images of the global batch*. So a step is the same on any number
of ranks, as long as none of them parts what D looks at together (`NetworkConfig.group_size`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

from ganray.config.schema import NetworkConfig

Discriminator = Callable[..., torch.Tensor]
"""(images, *labels) -> logits."""


def apply_regularizers(D: nn.Module, network: NetworkConfig) -> nn.Module:
    """D with what the config asks for; made for images of `pack` times the channels.

    The last linear or convolutional layer of D must be the one that gives the logits.
    """
    if network.minibatch_stddev:
        add_minibatch_stddev(D, network.minibatch_stddev)
    if network.spectral_norm:
        normalise(D)
    return PackedDiscriminator(D, network.pack) if network.pack > 1 else D


class PackedDiscriminator(nn.Module):
    """A discriminator that judges several images by one logit: PacGAN, Lin et al. 2018."""

    def __init__(self, D: nn.Module, pack: int) -> None:
        super().__init__()
        self.D, self.pack = D, pack

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, C, H, W), n a multiple of `pack` -> logits (n / pack,)."""
        n, channels, height, width = images.shape
        return self.D(images.reshape(n // self.pack, self.pack * channels, height, width))


class MinibatchStddev(nn.Module):
    """One more feature, the mean standard deviation in a group: Karras et al. 2018, section 3.

    Where G has collapsed, a group of fakes is more alike than a group of reals, and D can see it.
    """

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features (n, F) or (n, F, H, W), n a multiple of `group` -> the same, F + 1 of them."""
        groups = features.float().unflatten(0, (-1, self.group))
        # The root of zero has no gradient, and a group of equal images is what this is about.
        stddev = (groups.var(1, correction=0) + 1e-8).sqrt().flatten(1).mean(1)
        shape = (len(features), 1, *features.shape[2:])
        told = stddev.repeat_interleave(self.group).reshape(-1, *[1] * (features.dim() - 1))
        return torch.cat([features, told.expand(shape).to(features.dtype)], 1)


def add_minibatch_stddev(D: nn.Module, group: int) -> None:
    """Give D's last layer the spread of each group of images, and a weight for it, 0 at first."""
    layers = [(n, m) for n, m in D.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    name, last = layers[-1]
    weight = last.weight.detach()
    last.weight = nn.Parameter(torch.cat([weight, torch.zeros_like(weight[:, :1])], 1))
    if isinstance(last, nn.Linear):
        last.in_features += 1
    else:
        last.in_channels += 1
    D.set_submodule(name, nn.Sequential(MinibatchStddev(group), last))


def normalise(D: nn.Module) -> None:
    """Divide each weight matrix of D by its largest singular value: Miyato et al. 2018.

    The singular vectors are sync_run by one power iteration in each forward pass in training mode,
    and kept in buffers: the same on all ranks, which start alike and make the same passes.
    """
    for layer in list(D.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            parts = spectral_norm(layer).get_submodule("parametrizations.weight")
            assert isinstance(parts, nn.ModuleList)
            parts[0] = _FullPrecision(parts[0])


class _FullPrecision(nn.Module):
    """Keeps the power iteration out of autocast: bf16 would lose its slow convergence."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda" if weight.is_cuda else "cpu", enabled=False):
            return self.inner(weight)


def unrolled_discriminator(
    D: nn.Module, steps: int, lr: float, loss: Callable[[Discriminator], torch.Tensor]
) -> Discriminator:
    """D as it would be after some more steps; gradients flow through them: Metz et al. 2017.

    Args:
        D: left as it is.
        steps: how many, 0 or more.
        lr: of each step, plain gradient descent. Metz et al. unroll the optimizer that D has.
        loss: of a D, a scalar.

    Returns:
        What to call in D's place.
    """
    # Leaves of their own: D is frozen while G learns.
    weights = {name: p.detach().requires_grad_() for name, p in D.named_parameters()}
    for _ in range(steps):
        gradients = torch.autograd.grad(
            loss(_with(D, weights)), list(weights.values()), create_graph=True
        )
        moved = zip(weights.items(), gradients, strict=True)
        weights = {name: weight - lr * gradient for (name, weight), gradient in moved}
    return _with(D, weights)


def _with(D: nn.Module, weights: dict[str, torch.Tensor]) -> Discriminator:
    return lambda *inputs: functional_call(D, weights, inputs)
