"""How the reference classifier is trained: the numbers, and what its batches are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import pad


@dataclass(frozen=True)
class Recipe:
    """How the classifier is trained. Every field, and the data, go into its hash."""

    version: int = 1
    """Counts the changes to the code here and in ``features`` that change what is learned."""
    epochs: float = 2.5
    """Passes over the training images; see ``min_images``."""
    min_images: int = 30_000
    """Images to see at least, in as many passes as that takes: small sets need more of them."""
    batch_size: int = 128
    """Images a step, spoilt ones included."""
    lr: float = 0.02
    """Peak of AdamW's one-cycle schedule; more steps at 0.01 learn no better."""
    weight_decay: float = 1e-4
    """Of AdamW, decoupled; 0.05 does as well."""
    shift: float = 1 / 28
    """Images are moved at random by up to this share of a side, and by up to a pixel at least."""
    blends: float = 1 / 8
    """Share of a batch that is mixed with another image, up to 1/2; see ``spoilt``."""
    noise: float = 1 / 16
    """Share of a batch that is replaced by noise; see ``spoilt``."""
    rng_seed: int = 0
    """Of the first weights, the order, the shifts, the blends and the noise."""


ATTRIBUTES_RECIPE = Recipe(epochs=0, min_images=100_000)
"""For attributes, at a cost that does not grow with the set: 36 s on one CPU core at 32x32. From
4,000 drawn faces it learns to tell 95 % of the attributes of others, of which 80 % are told by
always guessing what is commoner."""


def orders(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """`steps` batches of `size` rows; each pass in a new order, its rest left out."""
    order = torch.randperm(count, generator=generator)
    at = 0
    for _ in range(steps):
        if at + size > count:
            order, at = torch.randperm(count, generator=generator), 0
        yield order[at : at + size]
        at += size


def shifted(pixels: torch.Tensor, recipe: Recipe, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by a few pixels, the edge repeated: (n, C, H, W) as it came."""
    n, _, height, width = pixels.shape
    far_y, far_x = (max(1, round(recipe.shift * side)) for side in (height, width))
    dy = torch.randint(2 * far_y + 1, (n,), generator=generator)
    dx = torch.randint(2 * far_x + 1, (n,), generator=generator)
    padded = pad(pixels, (far_x, far_x, far_y, far_y), mode="replicate")
    # A view of all shifts, (n, C, 2 far_y + 1, 2 far_x + 1, H, W), of which one each is copied.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    device = pixels.device
    return windows[torch.arange(n, device=device), :, dy.to(device), dx.to(device)]


def spoilt(
    x: torch.Tensor,
    y: torch.Tensor,
    unknown: float,
    recipe: Recipe,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Some images blended and some made noise, in place, so that confidence can be gated.

    Trained on MNIST alone, the classifier is sure (p > 0.9) of all uniform noise and of a third of
    the averages of two digits; with both of these, of none and of 1 in 100. Blends have the blend
    of both labels (Zhang et al. 2018), noise all classes alike (Hendrycks et al. 2019). Of
    attributes a blend is as sure as before where both images agree, and noise has each by half:
    its share among the images would make noise a sure instance of "no hat".

    Args:
        x: float32 (n, C, H, W) in [0, 255], in random order.
        y: float32 (n, K), probabilities; of classes they add up to 1.
        unknown: What noise has in all of y: 1 / K for classes, 1 / 2 for attributes.
        recipe: How many.
        generator: On the CPU.
    """
    device, n = x.device, len(x)
    blends, noise = int(recipe.blends * n), int(recipe.noise * n)
    share = torch.rand(blends, 1, generator=generator).to(device)
    other = slice(blends, 2 * blends)  # as good as any: the order is random
    y[:blends] = share * y[:blends] + (1 - share) * y[other]
    share = share[:, :, None, None]
    x[:blends] = share * x[:blends] + (1 - share) * x[other]
    # Half of the noise keeps an image's levels, in places drawn at random; the other half is
    # normal around any level, with any contrast down to none.
    normal, shuffled = slice(n - noise, n - noise // 2), slice(n - noise // 2, n)
    places = torch.randperm(x[0, 0].numel(), generator=generator).to(device)
    x[shuffled] = x[shuffled].flatten(2)[:, :, places].view_as(x[shuffled])
    level, contrast = 255 * torch.rand(2, len(x[normal]), 1, 1, 1, generator=generator)
    drawn = level + contrast * torch.randn(x[normal].shape, generator=generator)
    x[normal] = drawn.clamp(0, 255).to(device)
    y[n - noise :] = unknown
    return x.contiguous(memory_format=torch.channels_last), y
