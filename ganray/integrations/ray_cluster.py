"""Ray itself: join or start it, in the background; its resources, nodes and jobs.

It imports neither torch nor ray.train, so that Ray starts while those are imported.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime, timedelta
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ray
import yaml
from ray.exceptions import GetTimeoutError, RayError, RpcError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ganray.config.schema import RayConfig
from ganray.errors import UserError

if TYPE_CHECKING:
    from ganray.training.plan import Cluster, Workers

logger = logging.getLogger(__name__)

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]

_ends_with_driver = False
"""Whether this process has started Ray for itself alone."""
_starting: Future[None] | None = None
_dashboard: str | None = None
"""Host and port of the dashboard of the cluster that this process has joined."""

HEAD_NODE = "node:__internal_head__"
"""Resource that each head node has one of."""
_NODE_GROUP = "ray.io/node-group"
"""Label of nodes that KubeRay or `ray up` started, for which there may be an autoscaler."""
_LINE_S = 30
"""Seconds between two lines that say what a job waits for."""
_POLL_S = 5
"""Seconds between two looks at the autoscaler, which reports every 5 seconds."""
_ANSWER_S = 60
"""Seconds that a node has to run a task."""
_SETUP_S = 600
"""Seconds that Ray gives a node to install a runtime environment, unless the job says otherwise."""


def start(config: RayConfig, has_trials: bool = False) -> None:
    """Begin to join the cluster that the config or $RAY_ADDRESS names, or to start Ray here.

    This takes seconds; `connect` waits for the result. `has_trials`: whether Ray Tune will run
    drivers of their own.
    """
    global _starting
    if _starting is None and not ray.is_initialized():
        _starting = Future()
        work = _starting, _address(config), has_trials
        threading.Thread(target=_run, args=work, name="start-ray", daemon=True).start()


def _run(starting: Future[None], address: str, has_trials: bool) -> None:
    try:
        starting.set_result(_init(address, has_trials))
    except Exception as error:
        starting.set_exception(error)
    # Ray's processes are killed when the thread that started them ends, so it ends last.
    threading.Event().wait()


def connect(config: RayConfig, has_trials: bool = False) -> Cluster:
    """Wait until this process has joined or started Ray; return the resources of the cluster.

    The arguments are those of `start`.

    Raises:
        UserError: There is no cluster at the address, or it runs other versions.
    """
    global _starting
    start(config, has_trials)
    starting, _starting = _starting, None
    if starting is not None:
        source = "ray.address" if config.address else "$RAY_ADDRESS"
        try:
            starting.result()
        except ValueError as error:
            if "address format" not in str(error):
                raise
            raise UserError(f"{source}={_address(config)}: must be HOST:PORT") from error
        except OSError as error:  # including ConnectionError and an unknown host
            raise UserError(
                f"{source}={_address(config)}: no cluster there; start one with"
                " `ray start --head`, or leave the address out to use this machine alone"
            ) from error
        except RuntimeError as error:
            if not str(error).startswith("Version mismatch"):
                raise
            raise _other_versions("the cluster", *_ray_and_python(str(error))) from error
        _restore_signal_handlers()
    return _resources()


def _restore_signal_handlers() -> None:
    """Replace Ray's signal handlers by those that Python knows.

    After a SIGTERM, Ray's would print the stack and abort the process 3 seconds later.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.getsignal(number))


def cluster_resources(config: RayConfig) -> Cluster:
    """Return the resources of the cluster that the run joins, else of this machine.

    Raises:
        UserError: There is no cluster at the address.
    """
    from ganray.training.plan import this_machine

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
    if len(nodes()) == 1:
        return
    answers = _on_each_node(lambda: os.path.exists(folder))
    if missing := [node for node, found in answers.items() if not found]:
        raise not_shared(
            folder, f"{len(missing)} of {len(answers)} nodes (the first: {missing[0][:8]})"
        )


def check_versions(config: RayConfig) -> None:
    """Check that every node has the libraries of this driver, before workers are started.

    Ray itself compares its own version and Python's, when a driver joins.

    Raises:
        UserError: A node has another version of a library that the results depend on, or none.
    """
    if _address(config) == "local":
        return
    own = versions()
    for node, found in _on_each_node(versions).items():
        if found != own:
            raise _other_versions(f"node {node[:8]}", found, own)


def versions() -> dict[str, str]:
    """Return the versions, in this process, of the libraries that the results depend on.

    Without the label of a build: the CPU's and those for CUDA have one version.
    """
    found = {}
    for name in ("torch", "numpy"):
        try:
            found[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def _ray_and_python(message: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the versions of the cluster and of this driver from Ray's message."""
    names, numbers = ("ray", "python"), re.findall(r"(?:Ray|Python): (\S+)", message)
    return dict(zip(names, numbers[:2], strict=True)), dict(zip(names, numbers[2:], strict=True))


def _other_versions(place: str, found: Mapping[str, str], own: Mapping[str, str]) -> UserError:
    differences = [
        f"{name} {found[name]}, not {own[name]}" for name in own if found[name] != own[name]
    ]
    return UserError(
        f"{place} has {' and '.join(differences)} as this driver; install the same versions on all"
        " nodes, or submit the job with a runtime environment (ganray/integrations/README.md)"
    )


def nodes() -> list[str]:
    """Return the ids of the nodes of the cluster."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def _on_each_node(function: Callable[[], T]) -> dict[str, T]:
    """Return what a function returns on each node, by the id of the node."""
    task = ray.remote(num_cpus=0)(function)
    return _answers(
        {
            node: task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote()
            for node in nodes()
        }
    )


def _answers(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of each node's task. A node that is lost meanwhile has none.

    Raises:
        UserError: A node does not answer, although it may first have installed the job's runtime
            environment.
    """
    env = _submitted_job().get("runtime_env", {})
    timeout = _ANSWER_S + env.get("config", {}).get("setup_timeout_seconds", _SETUP_S)
    ray.wait([*tasks.values()], num_returns=len(tasks), timeout=timeout)
    answers, silent = {}, []
    for node, task in tasks.items():
        try:
            answers[node] = ray.get(task, timeout=0)
        except RayError as error:
            if node not in nodes():
                continue
            if not isinstance(error, GetTimeoutError):
                raise
            silent.append(node[:8])
    if silent:
        raise UserError(
            f"nodes {', '.join(silent)} did not answer within {timeout} s; see their logs, or"
            " remove them from the cluster"
        )
    return answers


def not_shared(folder: Path, nodes: str) -> UserError:
    """Return the error for a folder that some nodes do not see."""
    return UserError(
        f"home: {folder} does not exist on {nodes}; put --home on a disk that all nodes share, or"
        " give a URL that they all reach, such as --storage s3://bucket/ganray"
    )


def needs_cleaner() -> bool:
    """Return whether Ray may outlive a driver of Ray Train, whose placement group it must remove.

    Not if that driver has started Ray. A cluster lives on, and so does Ray when a trial stops.
    """
    return not _ends_with_driver


def _submitted_job() -> dict[str, Any]:
    """Return what `ray job submit` passed to this driver; empty if it was started by hand."""
    return json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))


def job_tags() -> dict[str, str]:
    """Return MLflow tags with Ray's ids of this job, which the dashboard lists."""
    tags = {"ray.job_id": ray.get_runtime_context().get_job_id()}
    if submission := _submitted_job().get("metadata", {}).get("job_submission_id"):
        tags["ray.submission_id"] = submission
    return tags


def job_url() -> str | None:
    """Return the page of this job in the cluster's dashboard; None if Ray was started for it."""
    if not _dashboard:
        return None
    tags = job_tags()
    return f"http://{_dashboard}/#/jobs/{tags.get('ray.submission_id', tags['ray.job_id'])}"


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


def _init(address: str, has_trials: bool) -> None:
    """Start or join Ray. Workers print nothing, because the driver follows the journal."""
    if address != "local":  # the dashboard lists runs of Ray Train then
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    env = _runtime_env(joins_cluster=address != "local")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address != "local":
        _check_port(address)
    else:
        env["env_vars"]["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # it watches for lost nodes
        if has_trials:
            # Ray's cleaner connects to the dashboard. If two Rays run on a machine, it guesses the
            # wrong one and each fit takes 12 s longer, so the dashboard gets a free port.
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                options["dashboard_port"] = probe.getsockname()[1]
            url = f"http://127.0.0.1:{options['dashboard_port']}"
            env["env_vars"]["RAY_API_SERVER_ADDRESS"] = url
        else:
            options["include_dashboard"] = False
    global _ends_with_driver
    _ends_with_driver = address == "local" and not has_trials
    context = ray.init(address, runtime_env=env, **options)
    global _dashboard
    _dashboard = getattr(context, "dashboard_url", None) if address != "local" else None


def _resources() -> Cluster:
    from ganray.training.plan import Cluster

    current, maximum = ray.cluster_resources(), _max_resources()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (max(int(current.get(k, 0)), int(maximum.get(k, 0))) for k in ("CPU", "GPU"))
    grows = cpus > int(current.get("CPU", 0)) or gpus > int(current.get("GPU", 0))
    is_open_ended = not maximum and any(_NODE_GROUP in node["Labels"] for node in nodes)
    sizes = tuple((_amount(node, "CPU"), _amount(node, "GPU")) for node in nodes)
    return Cluster(cpus, gpus, len(nodes), grows, is_open_ended, () if grows else sizes)


def _amount(node: Mapping[str, Any], resource: str) -> int:
    return int(node["Resources"].get(resource, 0))


def _max_resources() -> dict[str, int]:
    """Return what an autoscaler may grow the cluster to; empty if that is not known here.

    Only some platforms report it to Ray, which has no public call for it. `ray up` leaves its
    config on the head node, where submitted jobs run.
    """
    from ray._private.state import state

    if reported := state.get_max_resources_from_cluster_config():
        return reported
    path, own = Path("~/ray_bootstrap_config.yaml").expanduser(), ray.get_runtime_context()
    is_head = any(
        n["NodeID"] == own.get_node_id() and HEAD_NODE in n["Resources"] for n in ray.nodes()
    )
    if not is_head or not path.exists():
        return {}
    config = yaml.safe_load(path.read_text())
    kinds = dict(config["available_node_types"])
    head = kinds.pop(config["head_node_type"])
    return {name: _max_resource(name, head, [*kinds.values()], config) for name in ("CPU", "GPU")}


def _max_resource(
    name: str,
    head: Mapping[str, Any],
    kinds: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
) -> int:
    """Return how much of a resource a head has with the workers that have most of it."""

    def amount(kind: Mapping[str, Any]) -> int:
        return int(kind["resources"].get(name, 0))

    total, left = amount(head), config["max_workers"]
    for kind in sorted(kinds, key=amount, reverse=True):
        count = min(left, kind.get("max_workers", left))
        total, left = total + count * amount(kind), left - count
    return total


def worker_resources(config: RayConfig, workers: Workers) -> dict[str, float]:
    """Return the resources that Ray reserves for one worker."""
    gpu = {"GPU": 1} if workers.gpu else {}
    kind = {f"accelerator_type:{config.accelerator}": 0.001} if config.accelerator else {}
    return {"CPU": workers.cpus} | gpu | kind


def reserve(config: RayConfig, workers: Workers, count: int) -> PlacementGroup:
    """Return a placement group for some of the workers, which is ready when all of them fit."""
    return placement_group(
        [worker_resources(config, workers)] * count,
        strategy=config.placement.upper(),
        bundle_label_selector=[config.labels] * count,
    )


def wait_for_resources(config: RayConfig, workers: Workers) -> None:
    """Wait until the cluster has the resources for all workers, for which it may have to grow.

    An elastic run waits for its smallest number of workers.

    They are reserved and given back, because Ray Train, which reserves them itself, says neither
    what it waits for nor that it waits in vain.

    Raises:
        UserError: The cluster can never have the resources, or it lacks them after `ray.wait`.
    """
    began, start, line_at = datetime.now(), time.monotonic(), -math.inf
    needed, refusals = describe_workers(config, workers), set[float]()
    group = reserve(config, workers, workers.count)
    try:
        while not group.wait(_POLL_S):
            if _address(config) == "local":  # Ray on this machine alone never grows
                version, failure = time.monotonic(), ""
            else:
                version, failure = _autoscaler_refusal(group.id.hex())
            # What is refused while others use the cluster may fit when they have ended.
            refusals = refusals | {version} if version and not _is_in_use() else set()
            if len(refusals) > 1:
                raise UserError(
                    f"ray.workers={config.workers or workers.count}: the cluster cannot have"
                    f" {needed}, even after autoscaling ({describe_free()}); ask for less by"
                    " --ray.workers or --ray.cpus_per_worker, or for other nodes"
                )
            if time.monotonic() - start > 60 * config.wait:
                raise gave_up(config, workers)
            if time.monotonic() - line_at > _LINE_S:
                line_at = time.monotonic()
                end = began + timedelta(minutes=config.wait)
                logger.info(
                    f"waiting for {needed} since {began:%H:%M:%S}, until {end:%H:%M:%S}"
                    f" (--ray.wait {config.wait:g}); {describe_free()}{failure}"
                )
    finally:
        remove_placement_group(group)


def gave_up(config: RayConfig, workers: Workers) -> UserError:
    """Return the error for workers that the cluster had no resources for in time."""
    return UserError(
        f"ray.wait={config.wait:g}: the cluster had no room for"
        f" {describe_workers(config, workers)} within {config.wait:g} minutes; {describe_free()};"
        " `ray status` lists what its autoscaler starts; ask for less (--ray.workers), or run the"
        " same command again, with a longer --ray.wait"
    )


def describe_workers(config: RayConfig, workers: Workers) -> str:
    """Return what workers need, e.g. "2 workers with 1 CPU and 1 GPU (A100) each"."""
    gpu = " and 1 GPU" if workers.gpu else ""
    kind = f" ({config.accelerator})" if config.accelerator else ""
    labels = ", ".join(f"{name}={value}" for name, value in config.labels.items())
    number = f"at least {workers.count} of {workers.most}" if workers.most else workers.count
    return (
        f"{number} worker{'s' * ((workers.most or workers.count) > 1)} with {workers.cpus}"
        f" CPU{'s' * (workers.cpus > 1)}{gpu}{kind} each"
    ) + (f" on nodes with {labels}" if labels else "")


def describe_free() -> str:
    """Return the unused resources of all nodes, e.g. "free: 1 CPU and 0 GPU on 1 node"."""
    free, nodes = ray.available_resources(), sum(1 for node in ray.nodes() if node["Alive"])
    found = " and ".join(f"{free.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
    return f"free: {found} on {nodes} node{'s' * (nodes > 1)}"


def _is_in_use() -> bool:
    free, total = ray.available_resources(), ray.cluster_resources()
    return any(free.get(name, 0) < total.get(name, 0) for name in ("CPU", "GPU"))


@cache
def _gcs_client(address: str) -> Any:
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]

    return GcsClient(address=address)


def _autoscaler_refusal(group: str) -> tuple[int, str]:
    """Return the number of the autoscaler's report if it refuses a placement group, else 0.

    The text is why a node could not be started, '' if none failed. Ray has no public call for
    either, so both are unknown if its internals have changed or the head does not answer. Its older
    autoscaler (v1), which `ray start --head` starts without a config, reports neither.
    """
    try:
        from ray.core.generated import autoscaler_pb2

        messages: Any = autoscaler_pb2  # whose names are made at run time
        status = _gcs_client(ray.get_runtime_context().gcs_address).get_cluster_status()
        state = messages.GetClusterStatusReply.FromString(status).autoscaling_state
    except (ImportError, AttributeError, RpcError):
        return 0, ""
    refused = any(r.details.startswith(group) for r in state.infeasible_gang_resource_requests)
    failed = [f"{f.ray_node_type_name}: {f.reason}" for f in state.failed_instance_requests]
    reason = f"; a node could not be started: {failed[-1].splitlines()[0]}" if failed else ""
    return state.last_seen_cluster_resource_state_version if refused else 0, reason
