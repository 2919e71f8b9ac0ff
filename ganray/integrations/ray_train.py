"""Ray Train: run the training loop on every worker.

The only importer of ray.train, with `ray_elastic`.
"""

from __future__ import annotations

import math
import os
import socket
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import UserCallback
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from ganray.config.schema import Config, RayConfig
from ganray.data.storage import open_storage
from ganray.errors import UserError
from ganray.evaluation.reference import EvaluationAssets
from ganray.integrations import ray_cluster
from ganray.integrations.ray_driver import (
    DriverNode,
    assets_on_this_node,
    on_this_node,
    ray_storage,
    run_folder,
)
from ganray.integrations.ray_metrics import Gauges
from ganray.training import journal
from ganray.training.checkpoints import find_checkpoint, resume_kimg
from ganray.training.context import DrivenContext
from ganray.training.error_file import append_error
from ganray.training.launch import run_worker
from ganray.training.loop import Diverged
from ganray.training.plan import Workers
from ganray.training.run_folder import RunFolder
from ganray.training.run_storage import (
    BEST_FOLDER,
    download_checkpoint,
    fetch_initial,
    share_initial,
)
from ganray.training.stopping import Wait, request_stop
from ganray.training.watchdog import ALLOWANCE

_CONTROLLER_FAILURES = 3
"""Times that Ray starts the workers again after a start that failed or took too long."""
_RESIZE_S = 30
"""Seconds between two looks for resources of more workers, as each change restarts all."""
_START_S = 15
"""Seconds for which an elastic run tries to start as many workers as before. By then Ray knows if a
node is lost."""


def launch(
    config: Config,
    images: str,
    assets: EvaluationAssets,
    workers: Workers,
    callbacks: Sequence[UserCallback] = (),
    driver: DriverNode | None = None,
) -> Path:
    """Train on the workers and return the last checkpoint.

    Checkpoints are kept in the run folder and the storage, as without Ray. They are not reported to
    Ray, which would resume only from those that it keeps itself, reject a run if one of these is
    gone, and end an attempt whose upload fails.

    Args:
        config: Config of the run.
        images: `DatasetPlan.location`; a local path must exist on every node.
        assets: Evaluation assets.
        workers: Workers, from `resolve_workers`.
        callbacks: Callbacks of Ray Train.
        driver: Node of the run folder if there is a storage; None: this one.

    Raises:
        Diverged: A loss is no longer finite.
        UserError: The user can fix the failure, or workers or their controller were killed more
            often than ray.max_failures.
        WorkerFailedError: A worker raised any other exception.
    """
    _set_timeouts(config)
    ray_cluster.connect(config.ray)
    ray_cluster.check_versions(config.ray)
    here = on_this_node(config) if driver else config
    given = config
    if config.storage:
        driver = driver or DriverNode()
        if "://" not in config.storage:
            ray_cluster.check_shared(Path(config.storage))
        if config.init_from:
            given = replace(config, init_from=share_initial(config.init_from, config.storage))
    else:
        _check_shared(config, images, assets)
    folder, maximum = run_folder(config, driver), config.ray.max_failures
    trainer = _Trainer(
        _train_worker,
        train_loop_config={
            "config": given,
            "images": images,
            "assets": assets,
            "driver": driver,
            "reports": bool(callbacks),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=(workers.count, workers.most) if workers.most else workers.count,
            elastic_resize_monitor_interval_s=_RESIZE_S,
            use_gpu=workers.gpu,
            resources_per_worker=ray_cluster.worker_resources(config.ray, workers),
            placement_strategy=config.ray.placement.upper(),
            label_selector=config.ray.labels or None,
        ),
        run_config=ray.train.RunConfig(
            name=config.name,
            **ray_storage(config, config.run_folder().parent),
            failure_config=ray.train.FailureConfig(
                max_failures=maximum,
                # After each loss of a node, an elastic run may start as many workers as before.
                controller_failure_limit=_CONTROLLER_FAILURES + bool(workers.most) * maximum,
            ),
            callbacks=[_FailureCallback(config, workers.count, folder), *callbacks],
        ),
        torch_config=TorchConfig(timeout_s=math.ceil(ALLOWANCE * config.train.hang_timeout)),
    )
    trainer.elastic, trainer.folder = workers if workers.most else None, folder
    result = _fit(trainer, config, workers, folder)
    if diverged := (result.return_value or {}).get("diverged"):
        raise Diverged(diverged)
    storage = open_storage(config.storage)
    checkpoint = find_checkpoint(here.run_folder(), config.train.strict_resume, storage)
    if checkpoint is None:
        raise UserError(f"run {config.name!r} ended without a checkpoint; see {folder.path}")
    if storage:
        download_checkpoint(storage, checkpoint.with_name(BEST_FOLDER))
    return checkpoint


def _check_shared(config: Config, images: str, assets: EvaluationAssets) -> None:
    ray_cluster.check_shared(config.run_folder())
    if config.init_from:
        ray_cluster.check_shared(Path(config.init_from))
    if not config.data.is_remote():
        for location in filter(None, (images, assets.reference)):
            ray_cluster.check_shared(Path(location))


def _set_timeouts(config: Config) -> None:
    """Set the times that Ray Train reads from the environment, and its detector of NCCL's hangs."""
    hang_s = config.train.hang_timeout
    # A stopped process does not answer Ray either. The watchdog, which knows more, comes first.
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(1.25 * hang_s)
    # For the nodes of workers that restart. Ray tries again after each failed start.
    wait_s = 60 * config.ray.wait / (1 + _CONTROLLER_FAILURES)
    if config.ray.is_elastic():  # then with the nodes that are left
        wait_s = _START_S
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(wait_s)
    # It only records what NCCL knows, before the watchdog ends the attempt.
    os.environ.setdefault("RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR", "1")
    os.environ.setdefault("RAY_TRAIN_NCCL_RAS_CONFIRM_DURATION_S", str(0.75 * hang_s))


def _fit(
    trainer: TorchTrainer, config: Config, workers: Workers, folder: RunFolder
) -> ray.train.Result:
    """Train. If this process is stopped, ask the workers for a checkpoint first.

    They live on while the exception propagates, whose frames refer to Ray's controller.
    """
    failures = _Failures(config)
    # Ray's handler of Ctrl-C kills the workers at once; there is no public way to leave it out.
    trainer._register_sigint_handler = lambda controller: None  # noqa: ARG005
    while True:
        try:
            return trainer.fit()
        except (KeyboardInterrupt, SystemExit):
            request_stop(folder.path)
            raise
        except _DEATHS as error:  # the controller died, and Ray keeps the resources of its workers
            raise _death("training failed", error, folder) from error
        except ray.train.TrainingFailedError as error:
            # Ray does not restart workers of which one dies while it calls them at their start.
            cause = _cause(getattr(error, "controller_failure", error))
            if type(cause).__name__ == "WorkerGroupStartupTimeoutError":  # private to Ray
                raise ray_cluster.gave_up(config.ray, workers) from error
            if isinstance(cause, UserError):
                raise cause from error
            if not isinstance(cause, _DEATHS):
                raise _failure(error, folder) from error
            if not (restart := failures.add()):
                raise _death("training failed", cause, folder) from error
            path = folder.call(append_error, "Ray", str(cause))
            folder.call(
                journal.add_status,
                f"a worker died at its start ({_reason(cause)}; details: {path}); {restart}",
                is_training=False,
            )


class _Progress:
    """Tells whether a run has saved a checkpoint since the last call."""

    def __init__(self, config: Config) -> None:
        self._config, self._kimg = config, resume_kimg(config)

    def __call__(self) -> bool:
        """Return whether there is a new checkpoint; False if the storage does not answer."""
        before = self._kimg
        with suppress(UserError):
            self._kimg = resume_kimg(self._config)
        return self._kimg != before


class _Failures:
    """Counts the failures of a run, of an elastic one those since its last checkpoint."""

    def __init__(self, config: Config) -> None:
        self._maximum, self._count = config.ray.max_failures, 0
        self._has_progress = _Progress(config) if config.ray.is_elastic() else lambda: False

    def add(self) -> str:
        """Count a failure and return which restart follows; '' if the run ends."""
        self._count = 1 if self._has_progress() else self._count + 1
        if self._count > self._maximum:
            return ""
        return f"restart {self._count} of at most {self._maximum}, from the last checkpoint"


class _Trainer(TorchTrainer):
    """Ray's trainer without actors that serve Ray Data and a driver without its own Ray.

    Each is a process that starts before the workers. On a cluster, whose Ray outlives the driver,
    the cleaner stays, and on GPUs NCCL's detector of hangs. If Ray renames them, they start again,
    and nothing else changes. An elastic run has policies of its own.
    """

    elastic: Workers | None = None
    """Workers of an elastic run."""
    folder: RunFolder
    """The run folder."""

    def _initialize_and_run_controller(self, **options: Any) -> ray.train.Result:
        if self.elastic:
            from ganray.integrations.ray_elastic import ElasticFailurePolicy, ElasticPolicy

            config = (self.train_loop_config or {})["config"]
            options["scaling_policy"] = ElasticPolicy(
                self.scaling_config, config, self.elastic, self.folder
            )
            options["failure_policy"] = ElasticFailurePolicy(
                options["failure_policy"].failure_config, _Progress(config)
            )
        return super()._initialize_and_run_controller(**options)

    def _create_default_callbacks(self) -> list[Any]:
        unused = {"DatasetsCallback"}
        if not self.scaling_config.use_gpu:
            unused.add("NCCLRASCallback")
        if not ray_cluster.needs_cleaner():
            unused.add("PlacementGroupCleanerCallback")
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ not in unused]


class _FailureCallback(UserCallback):
    """Tells the driver, from Ray's controller, that workers failed."""

    def __init__(self, config: Config, count: int, folder: RunFolder) -> None:
        self._folder, self._failures = folder, _Failures(config)
        self._world = "" if config.ray.is_elastic() else f" of {count}"
        self._preempted: set[str | None] = set()
        """Ids of the workers that a preemption of their node has killed."""

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Add a line to the journal."""
        del run_context
        causes = map(_cause, worker_exceptions.values())
        deaths = [cause for cause in causes if isinstance(cause, RayActorError)]
        preempted = {death.actor_id for death in deaths if death.preempted}
        if preempted & self._preempted:  # Ray waits for the other workers, and calls at each poll
            return
        self._preempted |= preempted
        rank, error = min(worker_exceptions.items())
        path = self._folder.call(append_error, f"rank {rank}{self._world}", str(error))
        text = f"rank {rank} failed ({_reason(error)}; details: {path})"
        unlimited = "restart from the last checkpoint" if preempted else ""
        if restart := unlimited or self._failures.add():
            text += f"; {restart}"
        self._folder.call(journal.add_status, text, is_training=False)


def describe_resources(config: RayConfig, workers: Workers) -> str:
    """Return what workers need that do not train yet, and what the cluster has."""
    needed = ray_cluster.describe_workers(config, workers)
    return f" ({needed}; {ray_cluster.describe_free()})"


class RayContext(DrivenContext):
    """Worker context of a Ray Train worker.

    Args:
        config: Config of the run.
        reports: Whether anything receives Ray's reports, each of which waits for Ray's controller.
        folder: The run folder, if it is on another node.

    Raises:
        UserError: This node does not see the run folder.
    """

    def __init__(
        self, config: Config, reports: bool = True, folder: RunFolder | None = None
    ) -> None:
        path = config.run_folder()
        if not (config.storage or path.is_dir()):  # the node may have booted after `check_shared`
            raise ray_cluster.not_shared(path, f"node {socket.gethostname()}")
        super().__init__(config, get_device(), folder)
        self._reports = reports
        self._gauges = Gauges(config.name)

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Set gauges, which Ray exports to Prometheus."""
        self._gauges.set(metrics)

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None, wait: Wait) -> None:
        """Report metrics to Ray, which waits for all ranks."""
        del checkpoint, wait  # it is in the run folder, see `launch`
        if self._reports:
            ray.train.report(dict(metrics))


def _train_worker(arguments: dict[str, Any]) -> dict[str, str]:
    """Train on one worker.

    Divergence is returned, not raised: after an exception Ray would restart all workers, and the
    loss would diverge again. All ranks diverge at the same step, so none is left waiting.
    """
    given, assets = arguments["config"], arguments["assets"]
    config = fetch_initial(on_this_node(given))
    folder = run_folder(given, arguments["driver"])
    context = RayContext(config, arguments["reports"], folder)
    try:
        if config.storage:
            assets = assets_on_this_node(assets, given.home, config)
        run_worker(config, arguments["images"], assets, context)
    except Diverged as error:
        return {"diverged": str(error)}
    return {}


class WorkerFailedError(RuntimeError):
    """A bug in a worker; `error.txt` in the run folder has its traceback."""


_DEATHS = (RayActorError, OutOfMemoryError)


def _failure(error: ray.train.TrainingFailedError, folder: RunFolder) -> Exception:
    """Return what to raise for a failed run, after recording what Ray knows in `error.txt`.

    A UserError of any rank comes first: other ranks fail because that one is gone.
    """
    failures = dict(sorted(getattr(error, "worker_failures", {}).items()))
    causes = {rank: _cause(failure) for rank, failure in failures.items()}
    for rank, cause in causes.items():
        if isinstance(cause, UserError):
            return UserError(f"training failed on rank {rank}: {cause}")
    for rank, cause in causes.items():
        # The name of the class of a worker that no longer answers is private to Ray.
        if isinstance(cause, _DEATHS) or type(cause).__name__ == "WorkerHealthCheckTimeoutError":
            return _death(f"training failed on rank {rank}", cause, folder)
    path = folder.call(append_error, "Ray Train", str(error))
    cause = next(iter(causes.values()), error)
    summary = "".join(traceback.format_exception_only(cause)).strip().splitlines()[-1]
    return WorkerFailedError(f"training failed: {summary}; the traceback is in {path}")


def _cause(error: Exception) -> Exception:
    """Return the exception that Ray has wrapped, to keep its traceback or to name the worker."""
    for name in ("_base_exc", "health_check_failure"):
        error = getattr(error, name, error)
    return error


def _death(summary: str, error: Exception, folder: RunFolder) -> UserError:
    """Return the error for a killed process; Ray's text begins with the reason."""
    path = folder.call(append_error, "Ray", str(error))
    return UserError(
        f"{summary}: {_reason(error)}; the same --name resumes from the last checkpoint"
        f" (details: {path})"
    )


def _reason(error: Exception) -> str:
    """Return an error as one line. Ray's texts begin with the reason, or say "because"."""
    cause = _cause(error)
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    because = [line for line in lines if line.startswith("The actor is dead because")]
    return (because or lines)[0].partition(". ")[0].rstrip(".")
