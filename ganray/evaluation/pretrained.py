"""Features of networks trained elsewhere, of weights that the user has: nothing is fetched here.

Both see features only; ``CombinedExtractor`` adds another extractor's modes. Weights are read as tensors and
never unpickled, so that a file from anywhere can run no code.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.nn.functional import interpolate

from ganray.errors import UserError
from ganray.evaluation.classifier import UNREADABLE, ImageBatch, batches, refuse_images
from ganray.evaluation.extractors import Features

AT_ONCE = 32
"""ImageBatch of a batch, each 224x224 or 299x299 whatever it came as."""
SIDE = 224
"""Of an image as DINOv2 sees it."""
HEAD = 64
"""Columns of one head of attention, in DINOv2 of every size."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's channels, in [0, 1]; what DINOv2 was trained with."""

INCEPTION_FILE = (
    "weights-inception-2015-12-05-6726825d.pth from "
    "https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0"
)
DINOV2_FILE = (
    "dinov2_vits14_pretrain.pth (or vitb14, vitl14, without registers) from "
    "https://github.com/facebookresearch/dinov2"
)

NO_WEIGHTS = (AssertionError, ValueError, *UNREADABLE)
"""What building a network raises of another's weights."""

Weights = dict[str, torch.Tensor]


class Inception:
    """The network of FID: 2,048 features of Inception v3, as torch-fidelity computes them.

    Of torch-fidelity's ``inception-v3-compat``, which resizes images as the TensorFlow original
    does, so that distances compare with published ones.
    """

    mode_names: tuple[str, ...] = ()
    """None are known."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        """Read the weights.

        Args:
            weights: File of a state dict; the error for one that is absent says which.
            device: Where it looks.

        Raises:
            ValueError: The file is absent or another, or torch-fidelity is not installed.
        """
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise UserError(
                "Inception: torch-fidelity is not installed; pip install torch-fidelity, or take "
                "another extractor"
            ) from error
        state, self.hash = _read(weights, INCEPTION_FILE)
        # It would unpickle whatever the file holds, so it is given a copy of the tensors alone.
        copy = io.BytesIO()
        torch.save(state, copy)
        copy.seek(0)
        try:
            network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], copy)
        except NO_WEIGHTS as error:
            raise _other_file(weights, INCEPTION_FILE, error) from error
        self._network, self._device = network.to(device), device

    def extract(self, images: ImageBatch) -> Features:
        """As ``FeatureExtractor.look``: features are (n, 2048), not negative; grey is seen as RGB.

        Raises:
            ValueError: The images have another shape or dtype.
        """
        refuse_images("images", images)
        features = [torch.empty(0, 2048, device=self._device)]
        with torch.no_grad():
            for x in batches(images, self._device, AT_ONCE) if len(images) else ():
                features += self._network(_rgb(x).to(torch.uint8))
        return Features(torch.cat(features), None, None)


class DinoV2:
    """DINOv2, a vision transformer trained without labels (Oquab et al. 2023).

    ImageBatch are resized to 224x224, whatever their proportions.
    """

    mode_names: tuple[str, ...] = ()
    """None are known."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        """Read the weights.

        Args:
            weights: File of a state dict, as published; the error for one that is absent says
                which. Its size (ViT-S, B, L) is read off the weights.
            device: Where it looks.

        Raises:
            ValueError: The file is absent or another.
        """
        state, self.hash = _read(weights, DINOV2_FILE)
        try:
            self._network = _ViT(state).to(device).eval().requires_grad_(False)
        except NO_WEIGHTS as error:
            raise _other_file(weights, DINOV2_FILE, error) from error
        self._device = device

    def extract(self, images: ImageBatch) -> Features:
        """As ``FeatureExtractor.look``: features are the class token's, (n, 384) of ViT-S.

        Raises:
            ValueError: The images have another shape or dtype.
        """
        refuse_images("images", images)
        mean, std = (torch.tensor(v, device=self._device).view(3, 1, 1) for v in (MEAN, STD))
        features = [torch.empty(0, self._network.cls_token.shape[-1], device=self._device)]
        with torch.no_grad():
            for x in batches(images, self._device, AT_ONCE) if len(images) else ():
                # Bicubic overshoots at edges, and bytes do not.
                x = interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True).clamp_(0, 255)
                features.append(self._network((_rgb(x) / 255 - mean) / std))
        return Features(torch.cat(features), None, None)


class _ViT(nn.Module):
    """float32 (n, 3, 224, 224), normalised -> the class token after the last norm, (n, width)."""

    def __init__(self, state: Weights) -> None:
        super().__init__()
        depth = sum(name.endswith(".norm1.weight") for name in state)
        width, patch = state["cls_token"].shape[-1], state["patch_embed.proj.weight"].shape[-1]
        positions = _positions(state["pos_embed"], SIDE // patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty_like(positions))
        self.patches = nn.Conv2d(3, width, patch, patch)
        layer = nn.TransformerEncoderLayer(
            width,
            width // HEAD,
            4 * width,
            dropout=0,
            activation="gelu",
            layer_norm_eps=1e-6,
            batch_first=True,
            norm_first=True,
        )
        norm = nn.LayerNorm(width, eps=1e-6)
        self.encoder = nn.TransformerEncoder(layer, depth, norm, enable_nested_tensor=False)
        self.load_state_dict(_renamed(state) | {"pos_embed": positions})

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.patches(pixels).flatten(2).mT
        tokens = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], 1)
        return self.encoder(tokens + self.pos_embed)[:, 0]


def _positions(embedded: torch.Tensor, grid: int) -> torch.Tensor:
    """(1, 1 + m * m, width) -> (1, 1 + grid * grid, width), as DINOv2 does it."""
    own, rest = embedded[:, :1], embedded[:, 1:]
    side = round(rest.shape[1] ** 0.5)
    if side == grid:
        return embedded
    rest = rest.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    # The 0.1 guards its authors from a rounding error, and moves every position a little.
    rest = interpolate(rest, scale_factor=(grid + 0.1) / side, mode="bicubic")
    return torch.cat([own, rest.flatten(2).mT], 1)


def _renamed(state: Weights) -> Weights:
    """Each block as torch's own layer names it, with its scale multiplied into the weights."""
    names = {
        "patch_embed.proj.": "patches.",
        "blocks.": "encoder.layers.",
        "attn.qkv.": "self_attn.in_proj_",
        "attn.proj.": "self_attn.out_proj.",
        "mlp.fc1.": "linear1.",
        "mlp.fc2.": "linear2.",
    }
    scales = {"attn.proj.": "ls1.gamma", "mlp.fc2.": "ls2.gamma"}
    renamed: Weights = {}
    for name, value in state.items():
        if name == "mask_token" or name.endswith(".gamma"):  # of training; of the scales
            continue
        for part, scale in scales.items():
            if part in name:
                factor = state[name[: name.index(part)] + scale]
                value = factor.view(-1, *[1] * (value.ndim - 1)) * value
        for old, new in names.items():
            name = name.replace(old, new)
        renamed["encoder." + name if name.startswith("norm.") else name] = value
    return renamed


def _rgb(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.expand(-1, 3, -1, -1)


def _read(path: Path, wanted: str) -> tuple[Weights, str]:
    """(state dict, first 16 hex digits of the file's SHA-256); never unpickles code."""
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; must be {wanted}; download it and name it here, as ganray "
            "fetches no weights"
        )
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise _other_file(path, wanted, error) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise _other_file(path, wanted, TypeError(f"holds a {type(state).__name__}"))
    return cast(Weights, state), digest


def _other_file(path: Path, wanted: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:150]
    return ValueError(
        f"{path}: not the weights wanted ({type(error).__name__}: {reason}); must be {wanted}"
    )
