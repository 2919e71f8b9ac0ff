"""Training and reference images of all runs of a sweep."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ganray.config.schema import Config
from ganray.data import prepare
from ganray.errors import UserError
from ganray.evaluation.datasets import RunDatasets, locate_datasets
from ganray.evaluation.reference import EvaluationAssets
from ganray.evaluation.suite import MIN_IMAGES
from ganray.training.plan import num_classes


@dataclass(frozen=True)
class RunAssets:
    """Images and evaluation assets of a run."""

    shards: str
    """Folder or URL of the training shards."""
    assets: EvaluationAssets
    num_classes: int
    """Classes of the training images; 0 if they have no labels."""


class SweepDatasets:
    """The image sets of a sweep, each shared by all runs that train on it."""

    def __init__(self, base: Config, configs: Iterable[Config]) -> None:
        """Locate the image sets of all runs.

        Args:
            base: Config that all runs have in common.
            configs: Configs of the runs.

        Raises:
            UserError: A set is missing, too small, equal to another one, lacks labels that a run
                needs, or the disk has too little space for its shards.
        """
        self._sets: dict[Hashable, RunDatasets] = {}
        self._digests: dict[Hashable, str] = {}
        for config in configs:
            key = config.images_identity()
            if key not in self._sets:
                _fetch(config)
                self._sets[key] = locate_datasets(config)
            num_classes(config.network, self._sets[key].images)
        for sets in self:
            if sets.reference.count < MIN_IMAGES:
                raise UserError(
                    f"{sets.reference} are too few to compare runs with: use at least {MIN_IMAGES},"
                    " by --evaluation.reference.images or other values of the axis"
                )
        _check_differ(self)
        prepare.check_room((plan for sets in self for plan in sets.plans()), base.home)
        self.shown = next(iter(self))
        """Sets to show in the plan: those of the base if a run uses them, else those of a run."""
        if base.images_identity() in self._sets:
            sets = self._sets[base.images_identity()]
            self.shown = RunDatasets(base, sets.images, sets.reference, sets.held_out)

    def __iter__(self) -> Iterator[RunDatasets]:
        """Iterate over the distinct image sets."""
        return iter(self._sets.values())

    def prepare_datasets(self) -> None:
        """Write the shards that do not exist yet."""
        self._digests = {key: sets.prepare() for key, sets in self._sets.items()}

    def identity(self) -> tuple[str, str]:
        """Return a description of all image sets and an identifier of their contents."""
        descriptions = {}
        for sets in self:
            data, reference = sets.config.data, sets.config.reference_data()
            for section, plan in ((data, sets.images), (reference, sets.reference)):
                descriptions[prepare.dataset_identity(section, plan)] = str(plan)
        return ", ".join(dict.fromkeys(descriptions.values())), "-".join(descriptions)

    def run_assets(self) -> dict[Hashable, RunAssets]:
        """Return the assets of all runs by `Config.images_identity`; trains missing classifiers."""
        classifiers: dict[Hashable, str] = {}
        given: dict[Hashable, RunAssets] = {}
        for key, sets in self._sets.items():
            reference_id = sets.config.reference_data().identity()
            if reference_id not in classifiers:
                classifiers[reference_id] = sets.prepare_classifier()
            location, assets = sets.publish(sets.assets(classifiers[reference_id]))
            given[key] = RunAssets(location, assets, sets.images.classes)
        return given

    def local_folders(self) -> list[Path]:
        """Return the shard folders that all nodes must be able to read."""
        local = [sets for sets in self if not sets.config.data.is_remote()]
        return sorted(
            {Path(plan.location) for sets in local for plan in (sets.images, sets.reference)}
        )

    def dataset_info(self, config: Config) -> dict[str, str]:
        """Return what MLflow records of a run's images; for the base, of the sets shown."""
        key = config.images_identity()
        if key not in self._sets:
            key = self.shown.config.images_identity()
        return self._sets[key].info(self._digests[key])


def _fetch(config: Config) -> None:
    """Download the images of a run; levels of an axis must not fall back to another dataset."""
    if not config.dry_run and prepare.fetch(config.data, config.home) != config.data:
        raise UserError(
            f"data.source={config.data.source}, a level of an axis, was neither found nor"
            " downloaded; give --data.root FOLDER"
        )


def _check_differ(datasets: Iterable[RunDatasets]) -> None:
    """Reject levels that give the same images."""
    known: dict[Hashable, Config] = {}
    for sets in datasets:
        data, images = sets.config.data, sets.images
        # For images of 28x28, a size of 28 equals the original size, and a crop of 28 no crop.
        crop = 0 if images.image_shape == _uncut(sets) else data.crop
        made_of = (images.source, data.source, data.split) if images.source else (images.location,)
        shape, form = images.image_shape, (data.encoding, data.flip)
        key = (*made_of, images.count, shape, crop, *form)
        if (other := known.setdefault(key, sets.config)) is not sets.config:
            pairs = zip(data.identity(), other.data.identity(), strict=True)
            values = ", ".join(f"{a} and {b}" for a, b in pairs if a != b)
            raise UserError(
                f"sweep.axis: two levels of data ({values}) give the same {sets.images}; remove one"
            )


def _uncut(sets: RunDatasets) -> tuple[int, int, int]:
    """Return the shape of the training images before the crop, (H, W, C)."""
    height, width, channels = sets.images.stored_shape
    size = sets.config.data.size
    return (size, size, channels) if size else (height, width, channels)
