"""Reference images, and the feature extractor used for evaluation."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ganray.config.schema import Config, DataConfig, EvaluationConfig
from ganray.data.format import Shape
from ganray.data.loader import ImageDataset
from ganray.data.transforms import augment, to_squares
from ganray.errors import UserError
from ganray.evaluation.classifier import (
    FewImagesError,
    LazyImages,
    load_classifier,
    reference_classifier,
)
from ganray.evaluation.extractors import (
    AttributeExtractor,
    ClassExtractor,
    CombinedExtractor,
    FeatureExtractor,
    PixelExtractor,
    StackedDigitsExtractor,
    split_channels,
    split_labels,
)
from ganray.evaluation.pretrained import PretrainedExtractor
from ganray.evaluation.suite import MIN_IMAGES

logger = logging.getLogger(__name__)

# The choice of reference images does not depend on train.rng_seed: runs that are compared with each
# other must be compared with the same images.
_SEED = 0
_MAX_TRAINING_IMAGES, _MAX_TRAINING_TRIPLES = 60_000, 20_000
"""Maximum number of training images of the classifier; of stacked MNIST, with three digits each."""
_MAX_TRAINING_BYTES = 2**30
"""Maximum size of the classifier's training images."""
_HELD_OUT = 10_000
"""Images, or half of a smaller set, that the classifier is not trained on, because it is more
confident about training images than about any sample. Samples are compared with these, and in sets
so large that more images remain, with the rest as well."""
_TEST_IMAGES = 5_000
"""Number of held-out images that measure the classifier's accuracy."""
MIN_HALVED_IMAGES = 2 * MIN_IMAGES
"""Minimum number of images to train a classifier on half of them."""


@dataclass(frozen=True)
class EvaluationAssets:
    """Files and locations that workers need for evaluation."""

    classifier: str = ""
    """File of the classifier, see `prepare_classifier`."""
    reference: str = ""
    """Location of the shards of `Config.reference_data`; '' if they are the training images."""
    held_out: str = ""
    """File of `prepare_held_out`; '' if memorization is not measured."""

    def reference_set(self, config: Config, images: ImageDataset) -> ReferenceSet:
        """Return the reference set for these opened reference images."""
        data, evaluation = config.reference_data(), config.evaluation
        return ReferenceSet(images, data, self.classifier, evaluation, self.held_out)


NO_ASSETS = EvaluationAssets()
"""Compare samples with the training images, by pixels."""


@dataclass(frozen=True)
class ReferenceSet:
    """Opened reference images with their feature extractor."""

    images: ImageDataset
    data: DataConfig
    """Their config, `Config.reference_data`."""
    classifier: str
    """File of their classifier; '' for none."""
    evaluation: EvaluationConfig
    """Choice of the network that computes features."""
    held_out: str = ""
    """File of training and held-out images, `EvaluationAssets.held_out`."""

    @property
    def shape(self) -> Shape:
        """(H, W, C) of a reference image."""
        return self.data.cropped_shape(self.images.image_shape)

    def usable_count(self, samples: int, parts: int = 1) -> int:
        """Return the number of usable reference images; see the function of this name."""
        return usable_count(len(self.images), bool(self.classifier), samples, parts)

    def read(self, samples: int, part: int = 0) -> torch.Tensor:
        """Return reference images, the same for every run that is compared with this set.

        Args:
            samples: Number of images.
            part: 0, or 1 for as many others.

        Returns:
            uint8 (n, H, W, C), n being `samples`, or fewer if there are too few images.
        """
        ids = shuffled_ids(self.images)
        if self.classifier:
            held = _held_out(len(ids))
            ids = np.delete(ids, slice(held, held + _MAX_TRAINING_IMAGES))
        return read(self.data, self.images, ids[part * samples : (part + 1) * samples])

    def extractor(self, device: torch.device) -> FeatureExtractor:
        """Build the feature extractor on `device`."""
        own = _own_extractor(self.classifier, self.images, device)
        name, weights = self.evaluation.features, Path(self.evaluation.weights or "")
        if name == "classifier":
            return own
        return CombinedExtractor(PretrainedExtractor(name, weights, device), own)


def usable_count(images: int, halved: bool, samples: int, parts: int = 1) -> int:
    """Return the number of usable reference images, at most `samples`; 0 if there are too few.

    Args:
        images: Number of images in the set.
        halved: Whether a classifier is trained on half of them, at most 60,000, which are excluded.
            Of fewer than 160 images none is trained, as too few would be left.
        samples: Number of images wanted.
        parts: Number of disjoint sets of that size.
    """
    halved = halved and images >= MIN_HALVED_IMAGES
    trained = min(images - _held_out(images), _MAX_TRAINING_IMAGES) if halved else 0
    available = images - trained
    count = min(samples, available // parts)
    return count if count >= MIN_IMAGES else 0


def prepare_classifier(
    config: Config, images: ImageDataset, digest: str, device: torch.device
) -> str:
    """Train the classifier of the reference images unless it exists.

    Args:
        config: Config of the run.
        images: Reference images.
        digest: Digest of the reference images.
        device: Where to train.

    Returns:
        Its file in the home; '' for images without labels, or too few of a class to learn it or
        to be compared with, or if evaluation is disabled.
    """
    evaluation = config.evaluation
    if evaluation.features != "classifier":
        weights = Path(evaluation.weights or "")
        PretrainedExtractor(evaluation.features, weights, device)  # fails before workers start
    has_classes = len(images.class_names) > 1  # a single one says nothing
    if len(images) < MIN_IMAGES:
        return ""
    if not evaluation.is_enabled() or not (has_classes or images.attribute_names):
        return ""
    if len(images) < MIN_HALVED_IMAGES:
        logger.warning(
            f"no modes, and samples are compared by their pixels: {len(images)} images are too few"
            f" to train a classifier on half of them; use at least {MIN_HALVED_IMAGES}"
        )
        return ""
    count = _MAX_TRAINING_TRIPLES if _is_stacked_mnist(images) else _MAX_TRAINING_IMAGES
    count = min(count, _MAX_TRAINING_BYTES // math.prod(images.image_shape))
    ids, held = shuffled_ids(images), _held_out(len(images))
    cache = config.home / "classifiers"
    data = config.reference_data()
    try:
        classifier = reference_classifier(
            *_labeled(data, images, ids[held:][:count]),
            *_labeled(data, images, ids[:held][:_TEST_IMAGES]),
            data_digest=f"{digest}/{data.crop}/{count}{'/flip' if data.flip else ''}",
            cache=cache,
            device=device,
            storage=config.storage,
        )
    except FewImagesError as error:
        logger.warning(f"no modes, and samples are compared by their pixels: {error}")
        return ""
    return str(cache / f"{classifier.hash}.pt")


def _labeled(
    data: DataConfig, images: ImageDataset, ids: np.ndarray
) -> tuple[LazyImages, torch.Tensor]:
    """Return images, read on demand, and their labels or attributes; drop unlabeled images."""
    annotations = images.annotations(ids)
    labels = annotations.attributes
    if images.class_names:
        is_labeled = annotations.labels >= 0
        ids, labels = ids[is_labeled], annotations.labels[is_labeled]
    labels = torch.from_numpy(labels)
    height, width, channels = data.cropped_shape(images.image_shape)
    if _is_stacked_mnist(images):
        shape = (channels * len(ids), height, width, 1)
        pixels = LazyImages(shape, lambda: split_channels(read(data, images, ids)))
        return pixels, split_labels(labels)
    return LazyImages((len(ids), height, width, channels), lambda: read(data, images, ids)), labels


def _held_out(images: int) -> int:
    return min(_HELD_OUT, images // 2)


def _own_extractor(file: str, images: ImageDataset, device: torch.device) -> FeatureExtractor:
    if not file:
        return PixelExtractor(device)
    classifier = load_classifier(Path(file), device)
    if _is_stacked_mnist(images):
        return StackedDigitsExtractor(classifier)
    if images.class_names:
        least = (1 + 1 / len(images.class_names)) / 2  # halfway from chance to certainty
        if classifier.accuracy < least:
            logger.warning(
                f"no modes: the classifier is right about {classifier.accuracy:.0%} of the real"
                f" images only, and must be about {least:.0%}"
            )
            return ClassExtractor(classifier)
        return ClassExtractor(classifier, images.class_names)
    attributes = images.annotations(shuffled_ids(images)[:_MAX_TRAINING_IMAGES]).attributes
    try:
        return AttributeExtractor(classifier, images.attribute_names, attributes)
    except UserError as error:  # no attribute is suitable for modes; the features still are
        logger.warning(f"no modes: {error}")
        return ClassExtractor(classifier)


def check_comparable(
    samples: Shape, references: Shape, option: str = "--evaluation.reference.size"
) -> None:
    """Check that samples can be resized to the shape of the reference images, both (H, W, C).

    The option, for the message, crops the reference images to squares.

    Raises:
        UserError: The numbers of channels differ, or the reference images are not square and may
            show more than the samples.
    """
    shapes = ["x".join(map(str, shape)) for shape in (samples, references)]
    message = f"cannot compare samples of {shapes[0]} with references of {shapes[1]}"
    if samples[2] != references[2]:
        raise UserError(f"{message}: the channels differ")
    if samples != references and references[0] != references[1]:
        raise UserError(f"{message}: crop the references to squares with {option} 64")


def resize_samples(samples: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Resize samples to the size of the reference images, as shards are: uint8 (n, H, W, C).

    Args:
        samples: uint8 (n, h, w, C) on any device; returned unchanged if they have the size.
        shape: (H, W, C) of the reference images, see `check_comparable`.
    """
    if tuple(samples.shape[1:3]) == shape[:2]:
        return samples
    return to_squares(samples.cpu(), shape[0]).contiguous()


def _is_stacked_mnist(images: ImageDataset) -> bool:
    """Return whether these are images of stacked MNIST, with a digit in each channel."""
    names = images.class_names  # ImageNet also has 1,000 classes
    return len(names) == 1000 and names[1] == "001" and images.image_shape[2] == 3


ReadImages = Callable[[np.ndarray], torch.Tensor]
"""Returns the images of ids, int64 (n,), as uint8 (n, H, W, C)."""


def shuffled_ids(images: ImageDataset) -> np.ndarray:
    """Return the ids of all images, int64 (n,), in an order that depends on their number only."""
    return np.random.default_rng(_SEED).permutation(len(images))


def read(data: DataConfig, images: ImageDataset, ids: np.ndarray) -> torch.Tensor:
    """Read images cropped and mirrored as in training: uint8 (n, H, W, C) on the CPU."""
    pixels = torch.empty((len(ids), *images.image_shape), dtype=torch.uint8)
    # Shard by shard, because the cache of remote shards may have no room for all of them.
    order = np.argsort(ids // images.shard_rows, kind="stable")
    ends = np.flatnonzero(np.diff(ids[order] // images.shard_rows)) + 1
    for rows in np.split(order, ends):
        batch = torch.empty((len(rows), *images.image_shape), dtype=torch.uint8)
        images.read_batch(ids[rows], batch)
        pixels[rows] = batch
    return augment(
        pixels,
        crop=data.crop,
        flip=data.flip,
        rng_seed=_SEED,
        step=0,
        batch_size=len(ids),
        rank_slice=slice(0, len(ids)),
    )
