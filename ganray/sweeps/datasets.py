"""The images of a study: the sets that its runs learn, and those that judge them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ganray.config.schema import Config
from ganray.data import prepare
from ganray.errors import UserError
from ganray.evaluation import reference
from ganray.evaluation.reference import EvaluationAssets, RunDatasets, comparable
from ganray.evaluation.suite import MIN_IMAGES
from ganray.training.plan import num_classes


@dataclass(frozen=True)
class RunAssets:
    """What the workers of a run are given beside its config."""

    shards: str
    """Where the shards are."""
    assets: EvaluationAssets
    num_classes: int
    """Of the images; 0 for none."""


class SweepDatasets:
    """What all runs learn, and what their samples are compared with: few sets for many runs."""

    def __init__(self, base: Config, configs: Iterable[Config]) -> None:
        """Find them.

        Args:
            base: what the configs depart from.
            configs: of the runs.

        Raises:
            ValueError: some are not there, are the same as others, have no labels where a run needs
                them, or no room.
        """
        self._sets: dict[Hashable, RunDatasets] = {}
        self._digests: dict[Hashable, str] = {}
        for config in configs:
            key = config.images_identity()
            if key not in self._sets:
                _fetch(config)
                self._sets[key] = reference.locate_datasets(config)
            num_classes(config, self._sets[key].images)
        for one in self:
            _check_enough(one, halved=one.reals.classes > 0)
        _check_differ(self)
        prepare.check_room((plan for one in self for plan in (one.images, one.reals)), base.home)
        self.shown = next(iter(self))
        """Those of the base where a run learns them, with its networks; else all of a run's own."""
        if base.images_identity() in self._sets:
            found = self._sets[base.images_identity()]
            self.shown = RunDatasets(base, found.images, found.reals)

    def __iter__(self) -> Iterator[RunDatasets]:
        """One for each choice of images."""
        return iter(self._sets.values())

    def prepare_datasets(self) -> None:
        """Make the shards that are not there yet."""
        self._digests = {key: reference.prepare_datasets(one) for key, one in self._sets.items()}

    def identity(self) -> tuple[str, str]:
        """All that is learned and compared with, in words, and what tells it from others."""
        told = {}
        for one in self:
            data, reference, home = one.config.data, one.config.reference_data(), one.config.home
            for what, found in ((data, one.images), (reference, one.reals)):
                told[prepare.dataset_identity(what, found, home)] = str(found)
        return ", ".join(dict.fromkeys(told.values())), "-".join(told)

    def run_assets(self) -> dict[Hashable, RunAssets]:
        """What runs are given, by `Config.images_identity`; trains the classifiers that judge.

        Raises:
            ValueError: some have too few images to compare with.
        """
        classifiers: dict[Hashable, str] = {}
        given: dict[Hashable, RunAssets] = {}
        for key, one in self._sets.items():
            reference_id = one.config.reference_data().identity()
            if reference_id not in classifiers:
                classifiers[reference_id] = reference.prepare_run_classifier(one)
                _check_enough(one, halved=bool(classifiers[reference_id]))
            judge = one.judge(classifiers[reference_id])
            given[key] = RunAssets(one.images.location, judge, one.images.classes)
        return given

    def local_folders(self) -> list[Path]:
        """What all nodes must see."""
        near = [one for one in self if not one.config.data.is_remote()]
        return sorted({Path(plan.location) for one in near for plan in (one.images, one.reals)})

    def dataset_info(self, config: Config) -> dict[str, str]:
        """What MLflow is told of the images of a run; of the base, of those that are shown."""
        key = config.images_identity()
        if key not in self._sets:
            key = self.shown.config.images_identity()
        return reference.dataset_info(self._sets[key], self._digests[key])


def _fetch(config: Config) -> None:
    """Let torchvision download what a run needs; a stand-in will not do for an axis."""
    if not config.dry_run and prepare.fetch(config.data, config.home) != config.data:
        raise UserError(
            f"data.source={config.data.source} is asked for by an axis, but was not found or"
            " fetched; give --data.root FOLDER"
        )


def _check_differ(found: Iterable[RunDatasets]) -> None:
    """Refuse levels that would compare a set with itself."""
    known: dict[Hashable, Config] = {}
    for one in found:
        data, images = one.config.data, one.images
        # Sides of 0 and 28 are the same for images of 28x28, and a crop of 28 is none.
        crop = 0 if images.image_shape == _uncut(one) else data.crop
        made_of = (images.source, data.source, data.split) if images.source else (images.location,)
        shape, form = images.image_shape, (data.encoding, data.flip)
        key = (*made_of, images.count, shape, crop, *form)
        if (other := known.setdefault(key, one.config)) is not one.config:
            pairs = zip(data.identity(), other.data.identity(), strict=True)
            values = ", ".join(f"{a} and {b}" for a, b in pairs if a != b)
            raise UserError(
                f"sweep.axis: two levels of data ({values}) come to the same {one.images}; leave"
                " one out"
            )


def _uncut(one: RunDatasets) -> tuple[int, int, int]:
    """(H, W, C) of what is learned before a crop."""
    height, width, channels = one.images.stored_shape
    size = one.config.data.size
    return (size, size, channels) if size else (height, width, channels)


def _check_enough(one: RunDatasets, *, halved: bool) -> None:
    if not comparable(one.reals.count, halved, one.config.evaluation.samples):
        half = ", once a classifier has learned half of them" if halved else ""
        raise UserError(
            f"{one.reals} are too few to compare runs with: {MIN_IMAGES} must be left{half};"
            " compare with more of them, by --evaluation.reals.images or other values of the axis"
        )
