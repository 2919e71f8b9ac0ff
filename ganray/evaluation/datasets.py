"""Training, reference and held-out images of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ganray.config.schema import Config
from ganray.config.serialization import without_secrets
from ganray.data import prepare
from ganray.data.loader import ImageDataset
from ganray.data.prepare import DatasetPlan
from ganray.data.storage import name_of, open_storage
from ganray.distributed import local_device
from ganray.errors import UserError
from ganray.evaluation.held_out import HeldOutImages, locate_held_out, prepare_held_out
from ganray.evaluation.reference import (
    EvaluationAssets,
    ReadImages,
    check_comparable,
    prepare_classifier,
    read,
)


@dataclass(frozen=True)
class RunDatasets:
    """Training and reference images of a run, located without reading any."""

    config: Config
    images: DatasetPlan
    """Training images."""
    reference: DatasetPlan
    """Reference images; `images` itself if they are the same."""
    held_out: HeldOutImages | None = None
    """Images that G is not trained on; None if memorization cannot be measured."""

    def plans(self) -> list[DatasetPlan]:
        """Return the plans of all images."""
        return [self.images, self.reference, *([self.held_out.plan] if self.held_out else [])]

    @property
    def same(self) -> bool:
        """Whether the reference images are the training images."""
        return self.reference is self.images

    def prepare(self) -> str:
        """Write missing shards and return the digest of the training images, 16 hex digits."""
        if not self.same:
            self.reference_digest()
        return prepare.prepare_dataset(self.config.data, self.images)

    def reference_digest(self) -> str:
        """Return the digest of the reference images, 16 hex digits; write missing shards."""
        return prepare.prepare_dataset(self.config.reference_data(), self.reference)

    def open_reference(self) -> closing[ImageDataset]:
        """Return a context manager of the opened reference images."""
        data = self.config.reference_data()
        return closing(prepare.open_dataset(data, self.reference.location))

    @contextmanager
    def open_training(self) -> Iterator[ReadImages]:
        """Open the training images, and yield a function that reads those of some ids."""
        data = replace(self.config.data, flip=False)
        with closing(prepare.open_dataset(data, self.images.location)) as images:
            yield lambda ids: read(data, images, ids)

    def prepare_classifier(self) -> str:
        """Train the classifier for evaluation before workers start, and return its file."""
        with self.open_reference() as images:
            return prepare_classifier(self.config, images, self.reference_digest(), local_device())

    def assets(self, classifier: str) -> EvaluationAssets:
        """Return what workers need, with the file of the classifier; write missing shards."""
        reference = "" if self.same else self.reference.location
        held_out = self.held_out and prepare_held_out(self.config, self.images, self.held_out)
        return EvaluationAssets(classifier, reference, held_out or "")

    def publish(self, assets: EvaluationAssets) -> tuple[str, EvaluationAssets]:
        """Return where workers find the training images and what `assets` names.

        All of it is uploaded to the storage first, if there is one and it is not there yet.
        """
        storage, home = open_storage(self.config.storage), self.config.home
        if storage is None:
            return self.images.location, assets
        images = prepare.publish(self.config.data, self.images, storage)
        if assets.reference:
            data = self.config.reference_data()
            reference = prepare.publish(data, self.reference, storage)
            assets = replace(assets, reference=reference)
        if self.held_out:  # not for the workers, but for a driver elsewhere
            prepare.publish(self.held_out.data, self.held_out.plan, storage)
        for file in filter(None, (assets.classifier, assets.held_out)):
            name = name_of(Path(file), home)
            if name not in storage.sizes(name):
                storage.upload(Path(file), name)
        return images, assets

    def info(self, digest: str) -> dict[str, str]:
        """Return name, digest and path of the training images for MLflow's lineage."""
        name = "procedural faces" if self.images.procedural else self.config.data.source
        path = without_secrets(self.images.location)
        return {"name": name, "digest": digest, "path": path}


def locate_datasets(config: Config) -> RunDatasets:
    """Locate the training and reference images.

    Raises:
        UserError: They are not there, the disk has too little room for their shards, or samples
            cannot be resized to the reference images.
    """
    storage = open_storage(config.storage)
    images = prepare.plan_dataset(config.data, config.home, storage)
    data, is_used = config.reference_data(), config.evaluation.is_enabled()
    if not is_used or config.check_discriminator:
        return RunDatasets(config, images, images)
    if data == config.data:
        return _with_held_out(config, images, images)
    try:
        reference = prepare.plan_dataset(data, config.home, storage)
    except UserError as error:
        option = f"evaluation.reference={config.evaluation.reference}"
        raise UserError(f"reference images, {option}: {error}") from error
    if data.split != config.data.split and reference.location == images.location:
        raise UserError(
            f"data.split={config.data.split} and evaluation.reference.split={data.split}:"
            f" all of {reference.location} is used, whatever the split;"
            " convert each split with jobs/shard.py"
        )
    check_comparable(images.image_shape, reference.image_shape)
    return _with_held_out(config, images, reference)


def _with_held_out(config: Config, images: DatasetPlan, reference: DatasetPlan) -> RunDatasets:
    datasets = RunDatasets(config, images, reference, locate_held_out(config, images, reference))
    prepare.check_room(datasets.plans(), config.home)
    return datasets
