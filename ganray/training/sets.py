"""The images of a run and those that judge it: find them, lay them down, train the classifier."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

from ganray.config import Config
from ganray.data import prepare
from ganray.data.loader import Images
from ganray.data.prepare import DataPlan
from ganray.training.context import local_device
from ganray.training.judge import Judge, check_fits, prepare_classifier


@dataclass(frozen=True)
class Sets:
    """What a run needs of images, found without reading any."""

    config: Config
    images: DataPlan
    """Those that are learned."""
    reals: DataPlan
    """Those that samples are compared with; `images` itself where they are the same."""

    @property
    def same(self) -> bool:
        """Whether samples are compared with what is learned, or with nothing."""
        return self.reals is self.images

    def judge(self, classifier: str) -> Judge:
        """Who judges, by the classifier that `classifier_of` trained."""
        return Judge(classifier, "" if self.same else self.reals.where)


def find(config: Config) -> Sets:
    """Find both sets.

    Raises:
        ValueError: they are not there, the disk has too little room for their shards, or samples
            cannot be brought to the size of the reals.
    """
    images = prepare.plan(config.data, config.home)
    reference, compares = config.reference_data(), config.evaluation.compares()
    if reference == config.data or not compares or config.check_discriminator:
        return Sets(config, images, images)
    try:
        reals = prepare.plan(reference, config.home)
    except ValueError as error:
        named = f"images to compare with, evaluation.reals={config.evaluation.reals}"
        raise ValueError(f"{named}: {error}") from error
    if reference.split != config.data.split and reals.where == images.where:
        raise ValueError(
            f"data.split={config.data.split}, and that of the images to compare with is"
            f" {reference.split}: but all of {reals.where} are used, whatever the split; make a"
            " set of each by jobs/shard.py"
        )
    check_fits(images.image_shape, reals.image_shape)
    prepare.check_room([images, reals], config.home)
    return Sets(config, images, reals)


def lay_down(sets: Sets) -> str:
    """Make the shards that are not there yet; returns 16 hex digits for those that are learned."""
    config = sets.config
    if not sets.same:
        prepare.prepare(config.reference_data(), sets.reals)
    return prepare.prepare(config.data, sets.images)


def classifier_of(sets: Sets) -> str:
    """Train the classifier that samples are judged by, before a worker is held; its file."""
    with opened(sets) as images:
        return prepare_classifier(sets.config, images, digest_of_reals(sets), local_device())


def digest_of_reals(sets: Sets) -> str:
    """16 hex digits for what samples are compared with, once it is laid down."""
    return prepare.prepare(sets.config.reference_data(), sets.reals)


def opened(sets: Sets) -> closing[Images]:
    """Around the block: the images that samples are compared with."""
    config = sets.config
    return closing(prepare.open_images(config.reference_data(), config.home, sets.reals.where))


def dataset_of(sets: Sets, digest: str) -> dict[str, str]:
    """What was learned, for the lineage: name, digest and path."""
    images = sets.images
    name = "procedural faces" if images.drawn else sets.config.data.source
    return {"name": name, "digest": digest, "path": images.where}
