"""Elastic runs of Ray Train: the number of workers follows the nodes that come and go.

Only these runs import it, because the classes that it extends are private to Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.train import FailureConfig, ScalingConfig
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ganray.config.schema import Config
from ganray.integrations import ray_cluster
from ganray.training import journal
from ganray.training.plan import Workers
from ganray.training.run_folder import RunFolder
from ganray.training.stopping import delete_stop_file, has_stop_file, request_stop

_PROBE_S = 3
"""Seconds that placement groups have to become ready while no workers run."""
_MAX_SPARE = 32
"""Workers that are asked for at a time."""
PAYBACK = 10
"""A run grows after it has trained for this many times as long as its workers took to start."""


class ElasticPolicy(ElasticScalingPolicy):
    """Ray's elastic scaling, which counts what is free and loses no steps when a run grows.

    Ray counts the resources of all nodes, which others may use, learns up to 20 s late that a node
    is lost, and restarts workers without a checkpoint. Here each worker that is missing has a
    placement group, which is ready when there is room for it, and the workers save a checkpoint
    before they are restarted.
    """

    def __init__(
        self, scaling_config: ScalingConfig, config: Config, workers: Workers, folder: RunFolder
    ) -> None:
        super().__init__(scaling_config)
        self._config, self._workers, self._folder = config.ray, workers, folder
        self._spare: dict[PlacementGroup, tuple[Any, Any]] = {}
        """Reservations for missing workers, each with its readiness, and a task that tells what the
        node has once the job's environment is installed there."""
        self._group: Any = None
        """Placement group of the running or last workers."""
        self._started_at = self._trains_at = 0.0
        """When these workers were first seen, and first seen to train; 0: not yet."""
        self._payback = PAYBACK
        self._decided_at = 0.0
        """When the running workers began to start."""
        self._shared = None if config.storage else config.run_folder()
        """Folder that all nodes must see; None: they share a storage."""
        self._hosts: dict[str, str] = {}
        """Addresses of the nodes of the running or last workers, by id."""
        self._held: list[str] = []
        """Ids of the nodes of the workers that hold resources, one for each worker."""
        self._last = 0
        """Number of the workers that run or ran last."""
        self._growth: ResizeDecision | None = None
        """The growth that follows when the workers have saved a checkpoint."""
        self._waits_since: float | None = None

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Decide to grow, and do so when the workers have saved a checkpoint."""
        nodes = [worker.metadata for worker in worker_group_state.workers]
        self._group = worker_group_state.placement_group_handle
        now, is_training = time.monotonic(), self._folder.call(journal.is_training)
        self._started_at = self._started_at or self._decided_at or now
        self._trains_at = self._trains_at or (now if is_training else 0.0)
        self._hosts = {node.node_id: node.node_ip for node in nodes}
        self._held, self._last = [node.node_id for node in nodes], len(nodes)
        self._waits_since = None
        self._reserve(self.scaling_config.max_workers - self._last)
        if self._growth is None:
            decision = super().make_decision_for_running_worker_group(
                worker_group_state, worker_group_status
            )
            if isinstance(decision, ResizeDecision) and is_training and self._has_paid(now):
                self._growth = decision
                self._folder.call(request_stop)
            return NoopDecision()
        if self._folder.call(has_stop_file):
            return NoopDecision()
        growth, self._growth = self._growth, None
        if not self._folder.call(journal.has_stopped):  # they ended before the request
            return NoopDecision()
        self._held = []
        more = growth.num_workers - self._last
        self._announce(
            f"resources for {more} more worker{'s' * (more > 1)} are free: growing to"
            f" {growth.num_workers}, from a checkpoint that was saved for this"
        )
        return growth

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Decide to start as many workers as fit, those included that still hold resources.

        Raises:
            UserError: The smallest number of workers did not fit within `ray.wait`.
        """
        self._growth = None
        self._folder.call(delete_stop_file)
        now = time.monotonic()
        self._waits_since = self._waits_since or now
        if now - self._waits_since > 60 * self._config.wait:
            raise ray_cluster.gave_up(self._config, self._workers)
        alive = ray_cluster.nodes()
        if self._group and any(node not in alive for node in self._held):
            # Ray would move the lost worker's reservation to whatever room appears.
            self._group.shutdown()
            self._group, self._held = None, []
        self._reserve(self.scaling_config.max_workers - len(self._held))
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, ResizeDecision):
            self._held = []  # if this start fails, all that hold resources have ended
            self._announce_size(decision.num_workers)
        return decision

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        del reserved_resources
        if self._waits_since is None:
            return len(self._held) + sum(self._is_fit(group) for group in [*self._spare])
        refs = [ready for ready, _ in self._spare.values()]
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=_PROBE_S)
        return len(self._held) + len(ready)

    def _is_fit(self, group: PlacementGroup) -> bool:
        """Return whether a worker can start in a placement group, and drop it if it never can."""
        try:
            found = ray.get(self._spare[group][1], timeout=0)
        except GetTimeoutError:
            return False
        except RayError:  # the job's environment cannot be installed there, or the node is lost
            found = None
        if found != (ray_cluster.versions(), True):
            remove_placement_group(group)
            del self._spare[group]
            return False
        return True

    def _has_paid(self, now: float) -> bool:
        """Return whether the workers have trained for long enough to be started again."""
        start_s = self._trains_at - self._started_at
        return now - self._trains_at >= self._payback * start_s

    def _reserve(self, missing: int) -> None:
        """Change the number of placement groups for missing workers, at most 32 at a time."""
        while len(self._spare) > missing:
            remove_placement_group(self._spare.popitem()[0])
        while len(self._spare) < min(missing, _MAX_SPARE):
            group = ray_cluster.reserve(self._config, self._workers, 1)
            place = PlacementGroupSchedulingStrategy(group)
            task = ray.remote(num_cpus=0)(_describe_node).options(scheduling_strategy=place)
            self._spare[group] = group.ready(), task.remote(self._shared)

    def on_controller_start_worker_group(self, **_: Any) -> None:
        """Give the reserved resources to the workers, whom Ray reserves them for next."""
        self._reserve(0)
        self._decided_at, self._started_at, self._trains_at = time.monotonic(), 0.0, 0.0

    def _announce_size(self, count: int) -> None:
        """Say how many workers go on, and which nodes are gone, if there are fewer than before."""
        if count >= self._last:
            return
        alive = ray_cluster.nodes()
        gone = [f"node {ip} ({node[:8]})" for node, ip in self._hosts.items() if node not in alive]
        verb = "are" if len(gone) > 1 else "is"
        why = f"{' and '.join(gone)} {verb} gone" if gone else "there is no room for more"
        self._announce(f"{why}: going on with {count} worker{'s' * (count > 1)} of {self._last}")
        self._last = count

    def _announce(self, text: str) -> None:
        self._folder.call(journal.add_status, text, is_training=False)

    async def before_controller_shutdown(self) -> None:
        """Give back what is reserved."""
        self._reserve(0)
        self._folder.call(delete_stop_file)
        await super().before_controller_shutdown()


def _describe_node(shared: Path | None) -> tuple[dict[str, str], bool]:
    """Return the versions that this node has, and whether it sees a folder, if one is given."""
    return ray_cluster.versions(), shared is None or shared.exists()


class ElasticFailurePolicy(DefaultFailurePolicy):
    """Ray's count of failures, which begins anew with each checkpoint.

    Otherwise a long run would end with the fourth node that it loses.
    """

    def __init__(self, failure_config: FailureConfig, has_progress: Callable[[], bool]) -> None:
        super().__init__(failure_config)
        self._has_progress = has_progress

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        """Decide whether to retry."""
        if self._has_progress():
            super().__init__(self.failure_config)
        return super().make_decision(training_failed_error)
