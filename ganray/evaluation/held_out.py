"""Training images, and images that G is not trained on, with which memorization is measured.

Both are compared with samples by coarse pixels. Features of the reference classifier would not do:
it is trained on half of the training images, and treats them unlike held-out ones.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from tempfile import NamedTemporaryFile

import numpy as np
import torch

from ganray.config.schema import Config, DataConfig
from ganray.data import prepare
from ganray.data.prepare import DatasetPlan
from ganray.data.storage import fetch, open_storage
from ganray.errors import UserError
from ganray.evaluation.extractors import coarse_pixels
from ganray.evaluation.reference import read
from ganray.metrics.memorization import TrainingNeighbors
from ganray.progress import Progress

_MIN_HELD_OUT = 80
"""Minimum number of held-out images."""
_CHUNK = 1_000
"""Images that are read at a time."""
_MAX_CONTROL = 2_000
"""Number of held-out images that are compared with all others, as control."""
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class HeldOutImages:
    """Location of images that G is not trained on."""

    data: DataConfig
    plan: DatasetPlan
    first: int = 0
    """Index of the first of them; the images before it are training images."""

    @property
    def count(self) -> int:
        """Number of held-out images."""
        return self.plan.count - self.first


def locate_held_out(
    config: Config, images: DatasetPlan, reference: DatasetPlan
) -> HeldOutImages | None:
    """Locate the images of the same source that G is not trained on.

    They are the split ``test`` if it is trained on ``train``, or the rest of the reference images
    if it is trained on the first `data.images` of them. None if there are no or too few such
    images, if samples are compared at another size, or there is no room for more shards, and for
    training images whose pixels change (`data.crop`) or that are behind a URL.
    """
    data, reference_data = config.data, config.reference_data()
    if data.crop or data.is_remote() or images.image_shape != reference.image_shape:
        return None
    rest = replace(data, images=reference_data.images)
    if data.images and data != reference_data == rest:
        held_out = HeldOutImages(reference_data, reference, images.count)
    elif data.split == "train":
        test = replace(data, split="test", images=None)
        try:
            storage = open_storage(config.storage)
            held_out = HeldOutImages(test, prepare.plan_dataset(test, config.home, storage))
            prepare.check_room([images, reference, held_out.plan], config.home)
        except UserError:  # this source has no test split, or the disk no room for it
            return None
        if held_out.plan.location == images.location:  # shards, of which all are used
            return None
    else:
        return None
    return held_out if held_out.count >= _MIN_HELD_OUT else None


def prepare_held_out(config: Config, images: DatasetPlan, held_out: HeldOutImages) -> str:
    """Compute the coarse pixels of both sets unless that is done, and return their file."""
    digests = [
        prepare.prepare_dataset(config.data, images),
        prepare.prepare_dataset(held_out.data, held_out.plan),
    ]
    identity = f"1 {digests} {held_out.first} {images.image_shape}"  # 1: version of this code
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    path = config.home / "held_out" / f"{name}.npz"
    fetch(path, config.home, config.storage)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        sets = (config.data, images, 0), (held_out.data, held_out.plan, held_out.first)
        with Progress(
            images.count + held_out.count,
            "reading training and held-out images",
            "images",
        ) as progress:
            arrays = [_pixels_of(*each, progress) for each in sets]
        with NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            np.savez(file, training=arrays[0], held_out=arrays[1])
        os.replace(file.name, path)
    return str(path)


class MemorizationTest:
    """Measures how many samples are copies of training images.

    Args:
        path: The result of `prepare_held_out`.
    """

    def __init__(self, path: str) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            both = arrays["training"], arrays["held_out"]
        # On the CPU: a large training set would take the memory that training needs.
        self.training, self.held_out = map(torch.from_numpy, both)

    @cached_property
    def control(self) -> TrainingNeighbors:
        """Neighbors of held-out images, at most 2,000, as far as memorization would show them."""
        rows = spaced(len(self.held_out), _MAX_CONTROL)
        return TrainingNeighbors.of(self.held_out[rows], self.training, self.held_out, rows)

    def __call__(self, pixels: torch.Tensor, max_pairs: int | None = None) -> TrainingNeighbors:
        """Find the training and held-out images nearest to samples.

        Args:
            pixels: Coarse pixels of the samples, float32 (n, p) in [0, 1].
            max_pairs: Maximum number of distances to real images; if it is exceeded, fewer samples
                are compared, evenly spaced.
        """
        images = len(self.training) + len(self.held_out)
        count = max(1, max_pairs // images) if max_pairs else len(pixels)
        chosen = pixels[spaced(len(pixels), count).to(pixels.device)]
        return TrainingNeighbors.of(to_bytes(chosen), self.training, self.held_out)


def spaced(n: int, count: int) -> torch.Tensor:
    """Return at most `count` of n rows, evenly spaced, int64."""
    return torch.arange(n) if n <= count else torch.linspace(0, n - 1, count).long()


def to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """Round coarse pixels in [0, 1] to uint8, an eighth of the memory of the whole training set."""
    return (pixels * 255).round().to(torch.uint8)


def _pixels_of(data: DataConfig, plan: DatasetPlan, first: int, progress: Progress) -> np.ndarray:
    parts, unflipped = [], replace(data, flip=False)
    with closing(prepare.open_dataset(data, plan.location)) as images:
        for start in range(first, len(images), _CHUNK):
            ids = np.arange(start, min(start + _CHUNK, len(images)))
            parts.append(to_bytes(coarse_pixels(read(unflipped, images, ids), _CPU)).numpy())
            progress.add(len(ids))
    return np.concatenate(parts)
