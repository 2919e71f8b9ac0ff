"""The driver's node, for workers that do not share its disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ganray.config.schema import Config, absolute
from ganray.data.storage import fetch, open_storage
from ganray.evaluation.reference import EvaluationAssets
from ganray.training.run_folder import RunFolder

_CONCURRENCY = 64
"""Calls at a time: the uploads of some runs must not delay the heartbeats of others."""


class DriverNode:
    """Calls functions of workers on the node of the driver that made it, in an actor there."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options: dict[str, Any] = {
            "num_cpus": 0,
            "max_concurrency": _CONCURRENCY,
            "max_restarts": -1,  # it has no state, and Ray may kill it to free memory
            "max_task_retries": -1,
            "scheduling_strategy": here,
        }
        self._actor: Any = ray.remote(**options)(_Caller).remote()

    def __call__(self, function: Callable[[], Any]) -> Any:
        """Return the result of a function that is called there, or raise its error."""
        try:
            return ray.get(self._actor.call.remote(function))
        except RayTaskError as error:
            raise error.cause or error from None


class _Caller:
    def call(self, function: Callable[[], Any]) -> Any:
        return function()


def run_folder(config: Config, driver: DriverNode | None) -> RunFolder:
    """Return the folder of a run, which is on the driver's node, if one is given."""
    return RunFolder(config.run_folder(), driver) if driver else RunFolder(config.run_folder())


def on_this_node(config: Config) -> Config:
    """Return the config of a worker: with a storage, the home is one of this node.

    It is $GANRAY_HOME, if the node's Ray was started with it, else a folder of the same path.
    """
    own = os.environ.get("GANRAY_HOME")
    if not (config.storage and own):
        return config
    return replace(config, home=absolute("GANRAY_HOME", Path(own)))


def assets_on_this_node(
    assets: EvaluationAssets, driver_home: Path, config: Config
) -> EvaluationAssets:
    """Return evaluation assets with files of this node's home, downloaded from the storage."""
    files = {}
    for name in ("classifier", "held_out"):
        if file := getattr(assets, name):
            path = config.home / Path(file).relative_to(driver_home)
            fetch(path, config.home, config.storage)
            files[name] = str(path)
    return replace(assets, **files)


def ray_storage(config: Config, folder: Path) -> dict[str, Any]:
    """Return where Ray keeps the state of what runs in a subfolder of `folder`, for a RunConfig."""
    storage = open_storage(config.storage)
    if storage is None:
        return {"storage_path": str(folder)}
    path = storage.path(folder.relative_to(config.home).as_posix())
    system = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(storage.fs))
    return {"storage_path": path, "storage_filesystem": system}
