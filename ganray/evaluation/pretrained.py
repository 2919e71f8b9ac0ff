"""Features of published networks, computed from the user's own file of weights.

Nothing is downloaded. The file is loaded with ``weights_only``, so it cannot run code.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import interpolate, normalize

from ganray.errors import UserError
from ganray.evaluation.classifier import UNREADABLE, ImageBatch, batches, check_images
from ganray.evaluation.extractors import Features, coarse_pixels

BATCH = 32
"""Images per batch; each is resized to the network's input, whatever its size."""

State = dict[str, Any]
"""State dict of a file of weights."""
Network = Callable[[torch.Tensor], torch.Tensor]
"""Returns the features, float32 (n, d), of uint8 (n, 3, H, W), n at least 1."""


@dataclass(frozen=True)
class PublishedNetwork:
    """Network and preprocessing that published metrics are defined by."""

    title: str
    package: str
    """Module of the package that has the architecture."""
    width: int
    """Number of features per image."""
    file: str
    """Name and origin of the weights."""
    build: Callable[[State, torch.device], Network]


def _inception(state: State, device: torch.device) -> Network:
    """Build torch-fidelity's network, which resizes images like the TensorFlow original."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # torch-fidelity unpickles its file without weights_only: give it the tensors alone.
    tensors = io.BytesIO()
    torch.save(state, tensors)
    tensors.seek(0)
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], tensors).to(device)
    return lambda images: network(images)[0]


def _dinov2(state: State, device: torch.device) -> Network:
    """Build DINOv2's ViT-L/14 on 8-bit images resized to 224x224.

    This is the protocol of FD-DINOv2 (Stein et al. 2023) and of their code, dgm-eval. The position
    embedding is resized as DINOv2's own code does it; timm's way gives other features.
    """
    cls, patches = state["pos_embed"].split([1, state["pos_embed"].shape[1] - 1], 1)
    side = math.isqrt(patches.shape[1])
    grid = patches.mT.unflatten(2, (side, side))
    grid = interpolate(grid, scale_factor=(16 + 0.1) / side, mode="bicubic")
    state = state | {"pos_embed": torch.cat([cls, grid.flatten(2).mT], 1)}
    vit = _vision_transformer("vit_large_patch14_dinov2", state, device, side=224, classes=0)
    # Only on the CPU is the resized image rounded between its two passes, like Pillow's.
    return lambda images: vit(_resize(images.cpu(), 224) / 255)


def _clip(state: State, device: torch.device) -> Network:
    """Build CLIP's ViT-L/14 on images resized to 336x336, with features of length 1.

    This is the protocol of CMMD (Jayasumana et al. 2024).
    """
    name = "vit_large_patch14_clip_quickgelu_336"
    vit = _vision_transformer(name, state, device, side=336, classes=768)

    return lambda images: normalize(vit(_resize(images.float() / 255, 336)))


def _resize(images: torch.Tensor, side: int) -> torch.Tensor:
    """Resize images to a square by bicubic interpolation with antialiasing."""
    # Here, as torchvision takes a second to import, and every worker imports this file.
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    return functional.resize(images, [side, side], InterpolationMode.BICUBIC)


def _vision_transformer(
    name: str, state: State, device: torch.device, side: int, classes: int
) -> Network:
    """Build one of timm's networks, for float32 (n, 3, side, side) in [0, 1]."""
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn
    from torchvision.transforms.v2 import functional

    vit: Any = timm.create_model(name, pretrained=False, img_size=side, num_classes=classes)
    vit.load_state_dict(checkpoint_filter_fn(state, vit))
    vit.eval().to(device)
    mean, std = list(vit.pretrained_cfg["mean"]), list(vit.pretrained_cfg["std"])
    return lambda pixels: vit(functional.normalize(pixels.to(device), mean, std))


NETWORKS = {
    "inception": PublishedNetwork(
        "Inception v3",
        "torch_fidelity",
        2048,
        "weights-inception-2015-12-05-6726825d.pth from "
        "https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0 (pytorch-fid publishes the "
        "same file as pt_inception-2015-12-05-6726825d.pth)",
        _inception,
    ),
    "dinov2": PublishedNetwork(
        "DINOv2 ViT-L/14",
        "timm",
        1024,
        "dinov2_vitl14_pretrain.pth from "
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        _dinov2,
    ),
    "clip": PublishedNetwork(
        "CLIP ViT-L/14 at 336 pixels",
        "timm",
        768,
        "open_clip_model.safetensors from "
        "https://huggingface.co/timm/vit_large_patch14_clip_336.openai",
        _clip,
    ),
}
"""Networks by the value of `evaluation.features`."""


class PretrainedExtractor:
    """Features of a published network, without modes, which ``CombinedExtractor`` adds."""

    mode_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()

    def __init__(self, name: str, weights: Path, device: torch.device) -> None:
        """Load the weights.

        Args:
            name: One of ``NETWORKS``.
            weights: File with the published state dict.
            device: Where features are computed.

        Raises:
            UserError: The file is absent or another, or the network's package is not installed.
        """
        published = NETWORKS[name]
        try:
            import_module(published.package)
        except ImportError as error:
            package = published.package.replace("_", "-")
            raise UserError(
                f"evaluation.features={name} needs {package}, which is not installed; "
                f"pip install {package}"
            ) from error
        if not weights.is_file():
            raise UserError(
                f"evaluation.weights={weights}: no such file; must be {published.file}; download "
                "it, as ganray does not"
            )
        try:
            with weights.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            self._network = published.build(_read(weights), device)
        except UNREADABLE as error:
            reason = " ".join(str(error).split())[:150]
            raise UserError(
                f"evaluation.weights={weights}: not the weights of {published.title} "
                f"({type(error).__name__}: {reason}); must be {published.file}"
            ) from error
        self.hash = f"{name}-{digest[:16]}"
        self._width, self._device = published.width, device

    def extract(self, images: ImageBatch) -> Features:
        """Return float32 (n, d) features; gray images become RGB."""
        check_images("images", images)
        features = [torch.empty(0, self._width, device=self._device)]
        if len(images):  # the networks do not take an empty batch
            with torch.no_grad():
                features = [
                    self._network(pixels.expand(-1, 3, -1, -1).to(torch.uint8))
                    for pixels in batches(images, self._device, BATCH)
                ]
        return Features(torch.cat(features), coarse_pixels(images, self._device))


def _read(weights: Path) -> State:
    if weights.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(weights)
        except SafetensorError as error:  # it derives from Exception only
            raise OSError(error) from error
    return dict(torch.load(weights, map_location="cpu", weights_only=True))
