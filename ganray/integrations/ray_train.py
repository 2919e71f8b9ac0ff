"""Ray Train: join or start Ray, check what it has, run the loop on every worker.

The only importer of ray.train. The driver opens everything it can before a worker is held.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Before ray is imported. Reports leave the machine otherwise; and a report would block for two
# seconds, the default interval at which Ray's controller looks for it.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# The resources were checked, so workers that do not start yet wait for a node that is booting.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "900")

import ray
import ray.train
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import UserCallback
from ray.train.torch import TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ganray.config.schema import Config, RayConfig
from ganray.errors import UserError
from ganray.evaluation.reference import EvaluationAssets
from ganray.training.context import keep_checkpoint, latest_checkpoint
from ganray.training.launch import append_error, run_worker
from ganray.training.loop import Diverged
from ganray.training.plan import Cluster, Workers, this_machine

ROOT = Path(__file__).resolve().parents[2]
_RAYS_LIST = "checkpoint_manager_snapshot.json"
"""Of checkpoints, in the folders of runs that told Ray of them, as ganray once did."""


def connect(config: RayConfig) -> Cluster:
    """Join the cluster that the config or $RAY_ADDRESS names, or start Ray on this machine.

    Raises:
        ValueError: there is no cluster at the address.
    """
    address = _address(config)
    if not ray.is_initialized():
        try:
            _knock(address)
            _init(address)
        except OSError as error:  # ConnectionError and a host without an address among them
            raise UserError(
                f"ray.address={address}: no cluster there; start one with `ray start --head`,"
                " or leave the address out to use this machine alone"
            ) from error
    return _resources()


def cluster_resources(config: RayConfig) -> Cluster:
    """What the workers can get: of the cluster that the run joins, else of this machine.

    Raises:
        ValueError: there is no cluster at the address.
    """
    return connect(config) if _address(config) != "local" else this_machine()


def _address(config: RayConfig) -> str:
    return config.address or os.environ.get("RAY_ADDRESS") or "local"


def _knock(address: str) -> None:
    """Ask the port whether anyone is there: Ray itself tries for five minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()


def check_nodes_see(folder: Path) -> None:
    """Look from every node that a folder is there, before workers are held for it.

    Raises:
        ValueError: a node does not see the folder.
    """

    @ray.remote(num_cpus=0)
    def sees(path: str) -> bool:
        return os.path.exists(path)

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        return
    asked = [
        sees.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            str(folder)
        )
        for node in nodes
    ]
    blind = [node for node, seen in zip(nodes, ray.get(asked), strict=True) if not seen]
    if blind:
        raise _unseen(folder, f"{len(blind)} of {len(nodes)} nodes (the first: {blind[0][:8]})")


def _unseen(folder: Path, who: str) -> UserError:
    return UserError(
        f"home: {folder} is not seen by {who}; put --home on storage that all nodes share"
    )


def launch(
    config: Config,
    images: str,
    assets: EvaluationAssets,
    workers: Workers,
    callbacks: Sequence[UserCallback] = (),
) -> Path:
    """Run the loop on the workers until it is done; returns the last checkpoint's folder.

    Checkpoints are the run folder's, as without Ray, and Ray is not told of them: it would go on
    from those that it has itself kept, and refuse a run where one of these is gone.

    Args:
        config: of the whole run.
        images: where the shards are: a URL, or a path that every node must see.
        assets: who compares samples with what.
        workers: as `resolve` chose them.
        callbacks: of Ray Train.

    Raises:
        Diverged: A loss is no longer finite.
        UserError: The user can fix the failure, or workers or their controller were killed more
            often than ray.max_failures.
        WorkerFailedError: A worker raised any other exception.
    """
    connect(config.ray)
    folder = config.run_folder()
    check_nodes_see(folder)
    if not config.data.is_remote():
        for where in filter(None, (images, assets.reference)):
            check_nodes_see(Path(where))
    (folder / _RAYS_LIST).unlink(missing_ok=True)
    trainer = TorchTrainer(
        _work,
        train_loop_config={"config": config, "images": images, "assets": assets},
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
            callbacks=list(callbacks),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _failure(error, folder) from error
    except _DEATHS as error:  # of the controller, which Ray does not restart
        raise _death("training failed", error, folder) from error
    if diverged := (result.return_value or {}).get("diverged"):
        raise Diverged(diverged)
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:
        raise UserError(f"run {config.name!r} ended without a checkpoint; see {folder}")
    return checkpoint


class RayContext:
    """A Ray Train worker as the loop sees it.

    Raises:
        ValueError: this node does not see the run's folder.
    """

    def __init__(self, run_folder: Path, keep: int) -> None:
        if not run_folder.is_dir():  # the node may have booted after `check_nodes_see`
            raise _unseen(run_folder, f"node {socket.gethostname()}")
        self.device = get_device()
        self._folder, self._keep = run_folder, keep

    def report(self, metrics: Mapping[str, float], step: int, checkpoint: Path | None) -> None:
        """A barrier of all ranks, once rank 0's checkpoint is kept."""
        if checkpoint is not None:
            keep_checkpoint(checkpoint, self._folder, step, self._keep)
        ray.train.report(dict(metrics))

    def latest_checkpoint(self) -> Path | None:
        """The run's own."""
        return latest_checkpoint(self._folder)


def _work(job: dict[str, Any]) -> dict[str, str]:
    """One worker's life.

    After an error Ray starts all workers again, which helps unless the error would come again.
    Divergence would, and all ranks meet it at the same step, so none is left waiting.
    """
    config = job["config"]
    context = RayContext(config.run_folder(), config.train.keep_checkpoints)
    try:
        run_worker(config, job["images"], job["assets"], context)
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
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = lines[0].partition(". ")[0]
    return UserError(
        f"{summary}: {reason}; the same --name resumes from the last checkpoint (details: {path})"
    )


def _job() -> dict[str, Any]:
    """What `ray job submit` told this driver; empty when it was started by hand."""
    return json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))


def job_tags() -> dict[str, str]:
    """Ray's own names for this job, to find it in the dashboard."""
    tags = {"ray.job_id": ray.get_runtime_context().get_job_id()}
    if submission := _job().get("metadata", {}).get("job_submission_id"):
        tags["ray.submission_id"] = submission
    return tags


def _runtime_env(joins: bool) -> dict[str, Any]:
    """Make `import ganray` work in every worker, and hand our switches on.

    A submitted job with a working directory brings ganray along; a driver that joins a cluster
    without one ships the package itself. A variable set twice makes Ray refuse.
    """
    given = _job().get("runtime_env", {})
    ours = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("RAY_TRAIN_", "RAY_USAGE_")) and name not in given.get("env_vars", {})
    }
    env: dict[str, Any] = {"env_vars": ours}
    if joins and "working_dir" not in given:
        env["py_modules"] = [str(ROOT / "ganray")]
    return env


def _init(address: str) -> None:
    """Start or join Ray. Workers print nothing: the driver follows the journal instead."""
    env = _runtime_env(joins=address != "local")
    if address != "local":
        ray.init(address, runtime_env=env, log_to_driver=False, logging_level=logging.ERROR)
        return
    # Ray Train's clean-up asks the dashboard. Where two Rays run on a machine it guesses the
    # wrong one, and each fit takes 12 s longer: so it is told.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env["env_vars"]["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    ray.init(
        "local",
        runtime_env=env,
        log_to_driver=False,
        logging_level=logging.ERROR,
        dashboard_port=port,
    )


def _resources() -> Cluster:
    have = ray.cluster_resources()
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    most = _most_resources()
    cpus, gpus = (max(int(have.get(k, 0)), int(most.get(k, 0))) for k in ("CPU", "GPU"))
    grows = cpus > int(have.get("CPU", 0)) or gpus > int(have.get("GPU", 0))
    return Cluster(cpus, gpus, nodes, grows)


def _most_resources() -> dict[str, int]:
    """What an autoscaler may grow the cluster to; empty on a cluster of fixed size.

    Ray Train sizes its own worker groups by the same call; Ray has no public one.
    """
    from ray._private.state import state

    return state.get_max_resources_from_cluster_config() or {}
