"""The images of a run, and those that judge it: found, laid down, and who compares them trained."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

from ganray.config import Config
from ganray.data import prepare
from ganray.data.prepare import DataPlan
from ganray.training.context import local_device
from ganray.training.judge import Judge, check_fits, prepare_judge


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
        """Whether samples are compared with what is learned."""
        return self.reals is self.images


@dataclass(frozen=True)
class Given:
    """What a run's workers are given beside its config."""

    images: str
    """Where the shards are."""
    judge: Judge
    classes: int
    """Of the images; 0 for none."""


def find(config: Config) -> Sets:
    """Find both sets.

    Raises:
        ValueError: they are not there, the disk has too little room for their shards, or samples
            cannot be brought to the size of the reals.
    """
    images = reals = prepare.plan(config.data, config.home)
    if config.reference_data() != config.data:
        reals = prepare.plan(config.reference_data(), config.home)
        check_fits(images.image_shape, reals.image_shape)
    return Sets(config, images, reals)


def lay_down(sets: Sets) -> str:
    """Make the shards that are not there yet; returns 16 hex digits for those that are learned."""
    config = sets.config
    if not sets.same:
        prepare.prepare(config.reference_data(), sets.reals)
    return prepare.prepare(config.data, sets.images)


def judge_of(sets: Sets) -> Judge:
    """Train the classifier that samples are judged by, before a worker is held."""
    config, data, where = sets.config, sets.config.reference_data(), sets.reals.where
    digest = prepare.prepare(data, sets.reals)
    with closing(prepare.open_images(data, config.home, where)) as opened:
        classifier = prepare_judge(config, opened, digest, local_device())
    return Judge(classifier, "" if sets.same else where)


def dataset_of(sets: Sets, digest: str) -> dict[str, str]:
    """What was learned, for the lineage: name, digest and path."""
    images = sets.images
    name = "procedural faces" if images.drawn else sets.config.data.source
    return {"name": name, "digest": digest, "path": images.where}
