"""The images of a study: a set for each choice of them among its runs, and who judges by which."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from ganray.config import Config
from ganray.data import prepare
from ganray.training import sets
from ganray.training.plan import classes_of
from ganray.training.sets import Given, Sets


class StudyImages:
    """What all runs learn, and what their samples are compared with: few sets for many runs."""

    def __init__(self, base: Config, configs: Iterable[Config]) -> None:
        """Find them.

        Args:
            base: what the configs depart from.
            configs: of the runs.

        Raises:
            ValueError: some are not there, have no labels where a run needs them, or no room.
        """
        self._sets: dict[Hashable, Sets] = {}
        self._digests: dict[Hashable, str] = {}
        for config in configs:
            key = config.images_identity()
            if key not in self._sets:
                _fetch(config)
                self._sets[key] = sets.find(config)
            classes_of(config, self._sets[key].images)
        key = base.images_identity()
        self._first = key if key in self._sets else next(iter(self._sets))
        self.shown = replace(self._sets[self._first], config=base)
        """Those of the base, where a run learns them, else of the first run."""

    def __iter__(self) -> Iterator[Sets]:
        """One for each choice of images."""
        return iter(self._sets.values())

    def lay_down(self) -> None:
        """Make the shards that are not there yet."""
        self._digests = {key: sets.lay_down(one) for key, one in self._sets.items()}

    def identity(self) -> tuple[str, str]:
        """All that is learned and compared with, in words, and what tells it from others."""
        told = {}
        for one in self:
            data, reference, home = one.config.data, one.config.reference_data(), one.config.home
            for what, found in ((data, one.images), (reference, one.reals)):
                told[prepare.identity(what, found, home)] = str(found)
        return ", ".join(dict.fromkeys(told.values())), "-".join(told)

    def given(self) -> dict[Hashable, Given]:
        """What runs are given, by `Config.images_identity`; trains the classifiers that judge."""
        return {
            key: Given(one.images.where, sets.judge_of(one), one.images.classes)
            for key, one in self._sets.items()
        }

    def local(self) -> list[Path]:
        """What all nodes must see."""
        near = [one for one in self if not one.config.data.is_remote()]
        return sorted({Path(plan.where) for one in near for plan in (one.images, one.reals)})

    def dataset_of(self, config: Config) -> dict[str, str]:
        """What MLflow is told of the images of a run; of the base, of those that are shown."""
        key = config.images_identity()
        key = key if key in self._sets else self._first
        return sets.dataset_of(self._sets[key], self._digests[key])


def _fetch(config: Config) -> None:
    """Let torchvision download what a run needs; a stand-in will not do for an axis."""
    if not config.dry_run and prepare.fetch(config.data, config.home) != config.data:
        raise ValueError(
            f"data.source={config.data.source} is asked for by an axis, but was not found or"
            " fetched; give --data.root FOLDER"
        )
