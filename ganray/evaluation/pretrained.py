"""Features of Inception v3, computed by torch-fidelity from the user's own file of weights.

Nothing is downloaded. The file is loaded with ``weights_only``, so it cannot run code.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import torch

from ganray.errors import UserError
from ganray.evaluation.classifier import UNREADABLE, ImageBatch, batches, check_images
from ganray.evaluation.extractors import Features, coarse_pixels

BATCH = 32
"""Images per batch; each is resized to 299x299, whatever its size."""
PUBLISHED = (
    "weights-inception-2015-12-05-6726825d.pth from "
    "https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0 (pytorch-fid publishes the same"
    " file as pt_inception-2015-12-05-6726825d.pth)"
)


class InceptionExtractor:
    """Inception v3, the network of the FID: 2,048 features per image and no modes.

    This is torch-fidelity's ``inception-v3-compat``, which resizes images like the TensorFlow
    original, so distances compare with published ones. ``CombinedExtractor`` adds modes.
    """

    mode_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()

    def __init__(self, weights: Path, device: torch.device) -> None:
        """Load the weights.

        Args:
            weights: File with the published state dict.
            device: Where features are computed.

        Raises:
            UserError: The file is absent or another, or torch-fidelity is not installed.
        """
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise UserError(
                "evaluation.features=inception needs torch-fidelity, which is not installed; "
                "pip install torch-fidelity"
            ) from error
        if not weights.is_file():
            raise UserError(
                f"evaluation.weights={weights}: no such file; must be {PUBLISHED}; download it, as "
                "ganray does not"
            )
        try:
            with weights.open("rb") as file:
                self.hash = hashlib.file_digest(file, "sha256").hexdigest()[:16]
                file.seek(0)
                state = torch.load(file, map_location="cpu", weights_only=True)
            # torch-fidelity unpickles its file without weights_only: give it the tensors alone.
            tensors = io.BytesIO()
            torch.save(state, tensors)
            tensors.seek(0)
            network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], tensors)
        except UNREADABLE as error:
            reason = " ".join(str(error).split())[:150]
            raise UserError(
                f"evaluation.weights={weights}: not the weights of Inception v3 "
                f"({type(error).__name__}: {reason}); must be {PUBLISHED}"
            ) from error
        self._network, self._device = network.to(device), device

    def extract(self, images: ImageBatch) -> Features:
        """Return float32 (n, 2048) features, not negative; grey images become RGB."""
        check_images("images", images)
        features = [torch.empty(0, 2048, device=self._device)]
        if len(images):  # the network does not take an empty batch
            with torch.no_grad():
                for pixels in batches(images, self._device, BATCH):
                    features += self._network(pixels.expand(-1, 3, -1, -1).to(torch.uint8))
        return Features(torch.cat(features), coarse_pixels(images, self._device))
