"""Who judges a run: the reals that its samples are compared with, and the extractor of both."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ganray.config.schema import Config, DataConfig, EvaluationConfig
from ganray.data import prepare
from ganray.data.format import Shape
from ganray.data.loader import ImageDataset
from ganray.data.prepare import DatasetPlan
from ganray.data.transforms import augment, to_squares
from ganray.distributed import local_device
from ganray.errors import UserError
from ganray.evaluation.classifier import LazyImages, load_classifier, reference_classifier
from ganray.evaluation.extractors import (
    AttributeExtractor,
    ClassExtractor,
    ClassifierFeatureExtractor,
    CombinedExtractor,
    FeatureExtractor,
    PixelExtractor,
    StackedDigitsExtractor,
    split_channels,
    split_labels,
)
from ganray.evaluation.pretrained import InceptionExtractor
from ganray.evaluation.suite import MIN_IMAGES

# Which reals are compared with does not depend on a run's own seed: runs that are compared with
# each other must be compared with the same images.
_SEED = 0
_LEARNED = 60_000
_TRIPLES = 20_000
_LEARNED_BYTES = 2**30
"""Of the classifier's training images, at most."""
_HELD_OUT = 10_000
"""ImageDataset, or half of a smaller set, that the classifier does not learn: it is surer of those that
it has learned than of any sample, however good. They are what samples are compared with."""
_TESTED = 5_000
"""Of these, those that say how good the classifier is."""


@dataclass(frozen=True)
class EvaluationAssets:
    """What a run's workers are told of its judge."""

    classifier: str = ""
    """Its file: see `prepare_classifier`."""
    reference: str = ""
    """Where the shards are of `Config.reference_data`; '' if they are those that are learned."""

    def reference_set(self, config: Config, images: ImageDataset) -> ReferenceSet:
        """Those images, opened, and what they are looked at through."""
        return ReferenceSet(images, config.reference_data(), self.classifier, config.evaluation)


NO_ASSETS = EvaluationAssets()
"""Samples are compared by pixels, with what is learned."""


@dataclass(frozen=True)
class ReferenceSet:
    """Opened: the images that samples are compared with, and through what."""

    images: ImageDataset
    data: DataConfig
    """How they are shown: `Config.reference_data`."""
    classifier: str
    """What `prepare_classifier` returned for them; '' for none."""
    evaluation: EvaluationConfig
    """Whether features are another network's; modes are never."""

    @property
    def shape(self) -> Shape:
        """(H, W, C) of a real."""
        return self.data.cropped_shape(self.images.image_shape)

    def comparable(self, samples: int, parts: int = 1) -> int:
        """How many of them there are to compare with: see the function of this name."""
        return comparable(len(self.images), bool(self.classifier), samples, parts)

    def reals(self, samples: int, part: int = 0) -> torch.Tensor:
        """Some of them, the same for every run that is compared with this set.

        Args:
            samples: how many.
            part: 0, or 1 for as many others.

        Returns:
            uint8 (n, H, W, C), n being `samples`, or fewer where images are few.
        """
        ids = _shuffled_ids(self.images)[part * samples : (part + 1) * samples]
        return read(self.data, self.images, ids)

    def extractor(self, device: torch.device) -> FeatureExtractor:
        """Who looks, in the process that uses it."""
        own = _own_extractor(self.classifier, self.images, device)
        if self.evaluation.features == "classifier":
            return own
        inception = InceptionExtractor(Path(self.evaluation.weights or ""), device)
        return CombinedExtractor(inception, own)


def comparable(images: int, halved: bool, samples: int, parts: int = 1) -> int:
    """How many reals there are to compare with, at most `samples`; 0 where they are too few.

    Args:
        images: in the set.
        halved: whether a classifier learns half of them, which are left out.
        samples: how many are wanted.
        parts: how many sets of them.
    """
    known = _held_out(images) if halved else images
    found = min(samples, known // parts)
    return found if found >= MIN_IMAGES else 0


def prepare_classifier(
    config: Config, images: ImageDataset, digest: str, device: torch.device
) -> str:
    """Train the classifier that this data needs, if it was not yet.

    Args:
        config: of the run.
        images: those that samples are compared with: `Config.reference_data`.
        digest: stands for them.
        device: where to train.

    Returns:
        Its file in the home; '' where nothing is known of images, or nothing is to be evaluated.
    """
    evaluation = config.evaluation
    told = images.class_names or images.attribute_names
    if evaluation.features != "classifier":
        # Report a wrong file here, before a worker is held.
        InceptionExtractor(Path(evaluation.weights or ""), device)
    if not evaluation.is_enabled() or not told:
        return ""
    height, width, channels = images.image_shape
    most = _TRIPLES if _stacked(images) else _LEARNED
    count = min(most, _LEARNED_BYTES // (height * width * channels))
    ids, held = _shuffled_ids(images), _held_out(len(images))
    cache = config.home / "classifiers"
    data = config.reference_data()
    seen = f"{data.crop}/{count}{'/flip' if data.flip else ''}"
    classifier = reference_classifier(
        *_labelled(data, images, ids[held:][:count]),
        *_labelled(data, images, ids[:held][:_TESTED]),
        data_digest=f"{digest}/{seen}",
        cache=cache,
        device=device,
    )
    return str(cache / f"{classifier.hash}.pt")


def _labelled(
    data: DataConfig, images: ImageDataset, ids: np.ndarray
) -> tuple[LazyImages, torch.Tensor]:
    """Pixels, to be read if need be, and classes or attributes, of those ids that have any."""
    rows = images.annotations(ids)
    labels = rows.labels if images.class_names else rows.attributes
    if images.class_names:
        known = labels >= 0
        ids, labels = ids[known], labels[known]
    labels = torch.from_numpy(labels)
    height, width, channels = data.cropped_shape(images.image_shape)
    if not _stacked(images):
        shape = (len(ids), height, width, channels)
        return LazyImages(shape, lambda: read(data, images, ids)), labels

    def digits() -> torch.Tensor:
        return split_channels(read(data, images, ids))

    return LazyImages((channels * len(ids), height, width, 1), digits), split_labels(labels)


def _held_out(images: int) -> int:
    return min(_HELD_OUT, images // 2)


def _own_extractor(file: str, images: ImageDataset, device: torch.device) -> FeatureExtractor:
    if not file:
        return PixelExtractor(device)
    classifier = load_classifier(Path(file), device)
    if _stacked(images):
        return StackedDigitsExtractor(classifier)
    if images.class_names:
        return ClassExtractor(classifier, images.class_names)
    known = images.annotations(_shuffled_ids(images)[:_LEARNED]).attributes
    try:
        return AttributeExtractor(classifier, images.attribute_names, known)
    except ValueError as error:  # attributes that cannot be told apart: still its features are
        print(f"no modes: {error}", flush=True)
        return ClassifierFeatureExtractor(classifier)


def check_comparable(made: Shape, reals: Shape) -> None:
    """Refuse reals that samples cannot be brought to the shape of.

    Args:
        made: (H, W, C) of the samples.
        reals: the same of what they are compared with.

    Raises:
        ValueError: one has colours and the other has none; or the reals are no squares, and show
            what may lie outside of the samples.
    """
    shapes = " and reals of ".join("x".join(map(str, shape)) for shape in (made, reals))
    if made[2] != reals[2]:
        raise UserError(f"samples of {shapes} do not compare; use runs and images of one kind")
    if made != reals and reals[0] != reals[1]:
        raise UserError(
            f"samples of {shapes} do not compare, as these may show more; use squares as reals:"
            " --evaluation.reference.size 64"
        )


def resize_samples(samples: torch.Tensor, reals: Shape) -> torch.Tensor:
    """Samples in the size of the reals, made as shards are: uint8 (n, H, W, C).

    Args:
        samples: uint8 (n, h, w, C), on any device; returned as they are if they have the size.
        reals: (H, W, C); see `check_comparable`.
    """
    if tuple(samples.shape[1:3]) == reals[:2]:
        return samples
    return to_squares(samples.cpu(), reals[0]).contiguous()


def _stacked(images: ImageDataset) -> bool:
    """Whether each channel is a digit of its own: stacked MNIST."""
    return len(images.class_names) == 1000 and images.image_shape[2] == 3


def _shuffled_ids(images: ImageDataset) -> np.ndarray:
    return np.random.default_rng(_SEED).permutation(len(images))


def read(data: DataConfig, images: ImageDataset, ids: np.ndarray) -> torch.Tensor:
    """ImageDataset as D is shown them, cropped and mirrored: uint8 (n, H, W, C) on the CPU."""
    pixels = torch.empty((len(ids), *images.image_shape), dtype=torch.uint8)
    # Shard by shard: the cache of far ones may have no room for all that hold some of these.
    order = np.argsort(ids // images.shard_rows, kind="stable")
    ends = np.flatnonzero(np.diff(ids[order] // images.shard_rows)) + 1
    for which in np.split(order, ends):
        part = torch.empty((len(which), *images.image_shape), dtype=torch.uint8)
        images.read_batch(ids[which], part)
        pixels[which] = part
    return augment(
        pixels,
        crop=data.crop,
        flip=data.flip,
        rng_seed=_SEED,
        step=0,
        batch_size=len(ids),
        mine=slice(0, len(ids)),
    )


# The images of a run and those that judge it: find them, lay them down, train the classifier.


@dataclass(frozen=True)
class RunDatasets:
    """What a run needs of images, found without reading any."""

    config: Config
    images: DatasetPlan
    """Those that are learned."""
    reference: DatasetPlan
    """Those that samples are compared with; `images` itself where they are the same."""

    @property
    def same(self) -> bool:
        """Whether samples are compared with what is learned, or with nothing."""
        return self.reference is self.images

    def judge(self, classifier: str) -> EvaluationAssets:
        """Who judges, by the classifier that `prepare_run_classifier` trained."""
        return EvaluationAssets(classifier, "" if self.same else self.reference.location)


def locate_datasets(config: Config) -> RunDatasets:
    """Find both sets.

    Raises:
        ValueError: they are not there, the disk has too little room for their shards, or samples
            cannot be brought to the size of the reals.
    """
    images = prepare.plan_dataset(config.data, config.home)
    reference, compares = config.reference_data(), config.evaluation.is_enabled()
    if reference == config.data or not compares or config.check_discriminator:
        return RunDatasets(config, images, images)
    try:
        reals = prepare.plan_dataset(reference, config.home)
    except ValueError as error:
        named = f"images to compare with, evaluation.reference={config.evaluation.reference}"
        raise UserError(f"{named}: {error}") from error
    if reference.split != config.data.split and reals.location == images.location:
        raise UserError(
            f"data.split={config.data.split}, and that of the images to compare with is"
            f" {reference.split}: but all of {reals.location} are used, whatever the split; make a"
            " set of each by jobs/shard.py"
        )
    check_comparable(images.image_shape, reals.image_shape)
    prepare.check_room([images, reals], config.home)
    return RunDatasets(config, images, reals)


def prepare_datasets(sets: RunDatasets) -> str:
    """Make the shards that are not there yet; returns 16 hex digits for those that are learned."""
    config = sets.config
    if not sets.same:
        prepare.prepare_dataset(config.reference_data(), sets.reference)
    return prepare.prepare_dataset(config.data, sets.images)


def prepare_run_classifier(sets: RunDatasets) -> str:
    """Train the classifier that samples are judged by, before a worker is held; its file."""
    with open_reference(sets) as images:
        return prepare_classifier(sets.config, images, reference_digest(sets), local_device())


def reference_digest(sets: RunDatasets) -> str:
    """16 hex digits for what samples are compared with, once it is laid down."""
    return prepare.prepare_dataset(sets.config.reference_data(), sets.reference)


def open_reference(sets: RunDatasets) -> closing[ImageDataset]:
    """Around the block: the images that samples are compared with."""
    config = sets.config
    return closing(prepare.open_dataset(config.reference_data(), sets.reference.location))


def dataset_info(sets: RunDatasets, digest: str) -> dict[str, str]:
    """What was learned, for the lineage: name, digest and path."""
    images = sets.images
    name = "procedural faces" if images.procedural else sets.config.data.source
    return {"name": name, "digest": digest, "path": images.location}
