"""How alike pairs of images look: the diversity measure for images above 160 pixels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import avg_pool2d, conv2d

Images = NDArray[np.uint8] | torch.Tensor
"""uint8 (n, H, W, C) in [0, 255], C being 1 or 3."""

_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the five scales, fine to coarse: Wang et al. 2003."""
_WINDOW, _SIGMA = 11, 1.5
_SMALLEST = (_WINDOW - 1) * 2 ** (len(_WEIGHTS) - 1) + 1
"""The window must fit the coarsest scale."""


def ms_ssim(left: Images, right: Images) -> torch.Tensor:
    """Multi-scale structural similarity of each pair: (n,), in [0, 1], 1 if they are equal.

    Wang, Simoncelli and Bovik 2003, equation 7: 11 x 11 Gaussian window, five scales, negative
    terms cut at 0, mean over channels. Odd sides are padded by zeros when halved, as
    pytorch-msssim does; code that pads otherwise gives other numbers.

    Args:
        left: uint8 (n, H, W, C), H and W above 160.
        right: The same shape.

    Raises:
        ValueError: Shapes or dtypes are others, or a side is too short for five scales.
    """
    a, b = _pixels("left", left), _pixels("right", right)
    if a.shape != b.shape:
        raise ValueError(
            f"left {tuple(left.shape)} and right {tuple(right.shape)}: must be of one shape; "
            "pair images of one set"
        )
    result = a.new_ones(a.shape[:2])
    for scale, weight in enumerate(_WEIGHTS):
        if scale:
            pad = [side % 2 for side in a.shape[2:]]
            a, b = avg_pool2d(a, 2, padding=pad), avg_pool2d(b, 2, padding=pad)
        luminance, structure = _ssim_maps(a, b)
        last = scale == len(_WEIGHTS) - 1
        term = luminance * structure if last else structure
        result = result * term.mean((2, 3)).clamp_min(0) ** weight
    return result.mean(1)


def pair_similarity(images: Images, pairs: int, *, rng_seed: int) -> torch.Tensor:
    """MS-SSIM of random pairs, float32 (pairs,): their mean is the score of Odena et al. 2017.

    Higher is *more alike*, so more collapsed: compare with real against real. No image is in two
    pairs, so the values are independent and `confidence.bootstrap` of their mean is right.

    Traps: it sees layout and light, not identity (aligned faces are alike anyway), and is blind
    to a mode lost among many. Faces at 64 pixels cannot be measured.

    Args:
        images: uint8 (n, H, W, C), H and W above 160.
        pairs: At least 1 and at most n // 2.
        rng_seed: Makes the pairing repeatable.

    Raises:
        ValueError: As `ms_ssim`, or there are not so many pairs.
    """
    if not 1 <= pairs <= len(images) // 2:
        raise ValueError(
            f"pairs={pairs} of {len(images)} images: must be in [1, {len(images) // 2}], as no "
            "image is in two pairs; ask for fewer, or draw more images"
        )
    order = np.random.default_rng(rng_seed).permutation(len(images))[: 2 * pairs].reshape(2, pairs)
    at_once = 16  # float32 pairs of 218x178x3: some 100 MB with all maps
    starts = range(0, pairs, at_once)
    parts = [order[:, start : start + at_once] for start in starts]
    return torch.cat([ms_ssim(images[left], images[right]).cpu() for left, right in parts])


def _pixels(name: str, images: Images) -> torch.Tensor:
    """uint8 (n, H, W, C) -> float32 (n, C, H, W)."""
    tensor = torch.as_tensor(images)
    if tensor.dtype != torch.uint8 or tensor.ndim != 4 or tensor.shape[3] not in (1, 3):
        raise ValueError(
            f"{name}: {tensor.dtype} {tuple(tensor.shape)}; must be uint8 (n, H, W, C), C 1 or 3; "
            "hand over the bytes as they are stored"
        )
    if min(tensor.shape[1:3]) < _SMALLEST:
        raise ValueError(
            f"{name} {tuple(tensor.shape)}: both sides must be above {_SMALLEST - 1}, or the "
            "window does not fit the fifth scale; use vendi_score or birthday at this size"
        )
    return tensor.permute(0, 3, 1, 2).float()


def _ssim_maps(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Luminance and contrast-structure of (n, C, H, W), each (n, C, H - 10, W - 10)."""
    # Around mid-grey squares are a quarter as large, and so is what float32 loses of them.
    a, b = a - 127.5, b - 127.5
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    mean_a, mean_b = mean_a + 127.5, mean_b + 127.5
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance, (2 * covariance + c2) / (var_a + var_b + c2)


def _blur(maps: torch.Tensor) -> torch.Tensor:
    """Weighted mean under the window, which stays inside."""
    channels = maps.shape[1]
    at = torch.arange(_WINDOW, dtype=maps.dtype, device=maps.device) - _WINDOW // 2
    window = torch.exp(-(at**2) / (2 * _SIGMA**2))
    window = (window / window.sum()).expand(channels, 1, 1, _WINDOW)
    return conv2d(conv2d(maps, window, groups=channels), window.mT, groups=channels)
