"""Ray Train: join or start Ray, check its resources, run the training loop on every worker.

The only importer of ray.train.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Set before ray is imported. Ray would send usage reports; and `ray.train.report` would block for 2
# seconds, the default interval at which Ray's controller polls.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# A driver that waits for Ray would notice SIGTERM after up to a second, of the 3 that
# `ray job stop` gives it.
os.environ.setdefault("RAY_get_check_signal_interval_milliseconds", "100")
# Resources are checked first, so workers that do not start yet wait for a node that is booting.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "900")

import ray
import ray.train
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import UserCallback
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ganray.config.schema import Config, RayConfig
from ganray.errors import UserError
from ganray.evaluation.reference import EvaluationAssets
from ganray.training import journal
from ganray.training.checkpoints import find_checkpoint
from ganray.training.context import DrivenContext
from ganray.training.error_file import append_error
from ganray.training.launch import run_worker
from ganray.training.loop import Diverged
from ganray.training.plan import Cluster, Workers, this_machine
from ganray.training.stopping import request_stop
from ganray.training.watchdog import ALLOWANCE

ROOT = Path(__file__).resolve().parents[2]


def connect(config: RayConfig) -> Cluster:
    """Join the cluster that the config or $RAY_ADDRESS names, or start Ray on this machine.

    Returns the resources of the cluster.

    Raises:
        UserError: There is no cluster at the address.
    """
    address = _address(config)
    if not ray.is_initialized():
        try:
            _check_port(address)
            _init(address)
        except OSError as error:  # including ConnectionError and an unknown host
            raise UserError(
                f"ray.address={address}: no cluster there; start one with `ray start --head`,"
                " or leave the address out to use this machine alone"
            ) from error
    return _resources()


def cluster_resources(config: RayConfig) -> Cluster:
    """Return the resources of the cluster that the run joins, else of this machine.

    Raises:
        UserError: There is no cluster at the address.
    """
    return connect(config) if _address(config) != "local" else this_machine()


def _address(config: RayConfig) -> str:
    return config.address or os.environ.get("RAY_ADDRESS") or "local"


def _check_port(address: str) -> None:
    """Connect to the port, because Ray itself would retry for five minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()


def check_shared(folder: Path) -> None:
    """Check that every node can read a folder, before workers are started.

    Raises:
        UserError: A node does not see the folder.
    """

    @ray.remote(num_cpus=0)
    def exists(path: str) -> bool:
        return os.path.exists(path)

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        return
    strategies = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    answers = ray.get(
        [exists.options(scheduling_strategy=s).remote(str(folder)) for s in strategies]
    )
    missing = [node for node, found in zip(nodes, answers, strict=True) if not found]
    if missing:
        raise _not_shared(
            folder, f"{len(missing)} of {len(nodes)} nodes (the first: {missing[0][:8]})"
        )


def _not_shared(folder: Path, nodes: str) -> UserError:
    return UserError(
        f"home: {folder} does not exist on {nodes}; put --home on storage that all nodes share"
    )


def launch(
    config: Config,
    images: str,
    assets: EvaluationAssets,
    workers: Workers,
    callbacks: Sequence[UserCallback] = (),
) -> Path:
    """Train on the workers and return the last checkpoint.

    Checkpoints are kept in the run folder, as without Ray. They are not reported to Ray, which
    would resume only from those that it keeps itself, and reject a run if one of these is gone.

    Args:
        config: Config of the run.
        images: `DatasetPlan.location`; a local path must exist on every node.
        assets: Evaluation assets.
        workers: Workers, from `resolve_workers`.
        callbacks: Callbacks of Ray Train.

    Raises:
        Diverged: A loss is no longer finite.
        UserError: The user can fix the failure, or workers or their controller were killed more
            often than ray.max_failures.
        WorkerFailedError: A worker raised any other exception.
    """
    # A stopped process does not answer Ray either. The watchdog, which knows more, comes first.
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(1.25 * config.train.hang_timeout)
    connect(config.ray)
    folder = config.run_folder()
    check_shared(folder)
    if not config.data.is_remote():
        for location in filter(None, (images, assets.reference)):
            check_shared(Path(location))
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "config": config,
            "images": images,
            "assets": assets,
            "reports": bool(callbacks),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpu,
            resources_per_worker={"CPU": workers.cpus} | ({"GPU": 1} if workers.gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name=config.name,
            storage_path=str(folder.parent),
            failure_config=ray.train.FailureConfig(
                max_failures=config.ray.max_failures, controller_failure_limit=3
            ),
            callbacks=[_FailureCallback(config, workers.count), *callbacks],
        ),
        torch_config=TorchConfig(timeout_s=math.ceil(ALLOWANCE * config.train.hang_timeout)),
    )
    try:
        result = _fit(trainer, folder)
    except ray.train.TrainingFailedError as error:
        raise _failure(error, folder) from error
    except _DEATHS as error:  # the controller died, which Ray does not restart
        raise _death("training failed", error, folder) from error
    if diverged := (result.return_value or {}).get("diverged"):
        raise Diverged(diverged)
    checkpoint = find_checkpoint(folder, config.train.strict_resume)
    if checkpoint is None:
        raise UserError(f"run {config.name!r} ended without a checkpoint; see {folder}")
    return checkpoint


def _fit(trainer: TorchTrainer, folder: Path) -> ray.train.Result:
    """Train. If this process is stopped, ask the workers for a checkpoint first.

    They live on while the exception propagates, whose frames refer to Ray's controller.
    """
    # Ray's handler of Ctrl-C kills the workers at once; there is no public way to leave it out.
    trainer._register_sigint_handler = lambda controller: None  # noqa: ARG005
    try:
        return trainer.fit()
    except (KeyboardInterrupt, SystemExit):
        request_stop([folder])
        raise


class _FailureCallback(UserCallback):
    """Tells the driver, from Ray's controller, that workers failed."""

    def __init__(self, config: Config, count: int) -> None:
        self._config, self._count, self._failures = config, count, 0

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Add a line to the journal."""
        del run_context
        self._failures += 1
        maximum, folder = self._config.ray.max_failures, self._config.run_folder()
        rank, error = min(worker_exceptions.items())
        path = append_error(folder, f"rank {rank} of {self._count}", str(error))
        text = f"rank {rank} failed ({_reason(error)}; details: {path})"
        if self._failures <= maximum:
            text += f"; restart {self._failures} of at most {maximum}, from the last checkpoint"
        journal.add_status(folder, text, is_training=False)


def describe_resources(workers: Workers) -> str:
    """Return what workers need that do not train yet, and what the cluster has."""
    free = ray.available_resources()
    needs = {"CPU": workers.count * workers.cpus} | ({"GPU": workers.count} if workers.gpu else {})
    needed = " and ".join(f"{count:g} {name}" for name, count in needs.items())
    found = " and ".join(f"{free.get(name, 0):g} {name}" for name in needs)
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    return f" (they need {needed}; free: {found} on {nodes} node{'s' * (nodes > 1)})"


class RayContext(DrivenContext):
    """Worker context of a Ray Train worker.

    Args:
        config: Config of the run.
        reports: Whether anything receives Ray's reports, each of which waits for Ray's controller.

    Raises:
        UserError: This node does not see the run folder.
    """

    def __init__(self, config: Config, reports: bool = True) -> None:
        folder = config.run_folder()
        if not folder.is_dir():  # the node may have booted after `check_shared`
            raise _not_shared(folder, f"node {socket.gethostname()}")
        super().__init__(config, get_device())
        self._reports = reports

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        """Report metrics to Ray, which waits for all ranks."""
        del checkpoint  # it is in the run folder, see `launch`
        if self._reports:
            ray.train.report(dict(metrics))


def _train_worker(arguments: dict[str, Any]) -> dict[str, str]:
    """Train on one worker.

    Divergence is returned, not raised: after an exception Ray would restart all workers, and the
    loss would diverge again. All ranks diverge at the same step, so none is left waiting.
    """
    config = arguments["config"]
    context = RayContext(config, arguments["reports"])
    try:
        run_worker(config, arguments["images"], arguments["assets"], context)
    except Diverged as error:
        return {"diverged": str(error)}
    return {}


class WorkerFailedError(RuntimeError):
    """A bug in a worker; `error.txt` in the run folder has its traceback."""


_DEATHS = (RayActorError, OutOfMemoryError)


def _failure(error: ray.train.TrainingFailedError, folder: Path) -> Exception:
    """Return what to raise for a failed run, after recording what Ray knows in `error.txt`.

    A UserError of any rank comes first: other ranks fail because that one is gone.
    """
    failures = dict(sorted(getattr(error, "worker_failures", {}).items()))
    # Ray wraps some exceptions of workers to keep their traceback.
    causes = {rank: getattr(failure, "_base_exc", failure) for rank, failure in failures.items()}
    for rank, cause in causes.items():
        if isinstance(cause, UserError):
            return UserError(f"training failed on rank {rank}: {cause}")
    for rank, cause in causes.items():
        if isinstance(cause, _DEATHS):
            return _death(f"training failed on rank {rank}", cause, folder)
    path = append_error(folder, "Ray Train", str(error))
    cause = next(iter(causes.values()), error)
    summary = "".join(traceback.format_exception_only(cause)).strip().splitlines()[-1]
    return WorkerFailedError(f"training failed: {summary}; the traceback is in {path}")


def _death(summary: str, error: Exception, folder: Path) -> UserError:
    """Return the error for a killed process; Ray's text begins with the reason."""
    path = append_error(folder, "Ray", str(error))
    return UserError(
        f"{summary}: {_reason(error)}; the same --name resumes from the last checkpoint"
        f" (details: {path})"
    )


def _reason(error: Exception) -> str:
    """Return an error as one line. Ray's texts begin with the reason, or say "because"."""
    cause = getattr(error, "_base_exc", error)  # Ray wraps exceptions to keep their traceback
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    because = [line for line in lines if line.startswith("The actor is dead because")]
    return (because or lines)[0].partition(". ")[0].rstrip(".")


def _submitted_job() -> dict[str, Any]:
    """Return what `ray job submit` passed to this driver; empty if it was started by hand."""
    return json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))


def job_tags() -> dict[str, str]:
    """Return MLflow tags with Ray's ids of this job, which the dashboard lists."""
    tags = {"ray.job_id": ray.get_runtime_context().get_job_id()}
    if submission := _submitted_job().get("metadata", {}).get("job_submission_id"):
        tags["ray.submission_id"] = submission
    return tags


def _runtime_env(joins_cluster: bool) -> dict[str, Any]:
    """Return a runtime environment in which workers can import ganray and have Ray's settings.

    A submitted job with a working directory contains ganray; a driver that joins a cluster without
    one ships the package itself. Variables that the job sets are left out: Ray rejects duplicates.
    """
    job_env = _submitted_job().get("runtime_env", {})
    variables = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("RAY_TRAIN_", "RAY_USAGE_")) and name not in job_env.get("env_vars", {})
    }
    env: dict[str, Any] = {"env_vars": variables}
    if joins_cluster and "working_dir" not in job_env:
        env["py_modules"] = [str(ROOT / "ganray")]
    return env


def _init(address: str) -> None:
    """Start or join Ray. Workers print nothing, because the driver follows the journal."""
    env = _runtime_env(joins_cluster=address != "local")
    if address != "local":
        with _own_signal_handlers():
            ray.init(address, runtime_env=env, log_to_driver=False, logging_level=logging.ERROR)
        return
    # Ray Train's clean-up connects to the dashboard. If two Rays run on a machine, it guesses the
    # wrong one and each fit takes 12 s longer, so the dashboard gets a free port that is named.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env["env_vars"]["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    with _own_signal_handlers():
        ray.init(
            "local",
            runtime_env=env,
            log_to_driver=False,
            logging_level=logging.ERROR,
            dashboard_port=port,
        )


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Keep the signal handlers of this process.

    After a SIGTERM, Ray's would print the stack and abort the process 3 seconds later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _resources() -> Cluster:
    current, maximum = ray.cluster_resources(), _max_resources()
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    cpus, gpus = (max(int(current.get(k, 0)), int(maximum.get(k, 0))) for k in ("CPU", "GPU"))
    grows = cpus > int(current.get("CPU", 0)) or gpus > int(current.get("GPU", 0))
    return Cluster(cpus, gpus, nodes, grows)


def _max_resources() -> dict[str, int]:
    """Return what an autoscaler may grow the cluster to; empty on a cluster of fixed size.

    Ray Train sizes its own worker groups by the same call; Ray has no public one.
    """
    from ray._private.state import state

    return state.get_max_resources_from_cluster_config() or {}
