"""Decisions of an elastic run, without Ray: when it grows and shrinks, and which failures count."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RuntimeEnvSetupError
from ray.train import FailureConfig, ScalingConfig
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
)
from ray.train.v2.api.exceptions import WorkerGroupError

from ganray.errors import UserError
from ganray.evaluation.reference import NO_ASSETS
from ganray.integrations import ray_cluster, ray_elastic, ray_train
from ganray.integrations.ray_elastic import ElasticFailurePolicy, ElasticPolicy
from ganray.training import journal
from ganray.training.context import DrivenContext
from ganray.training.launch import run_worker
from ganray.training.loop import Diverged
from ganray.training.plan import Workers
from ganray.training.run_folder import RunFolder
from ganray.training.stopping import STOP_FILE, record_stop, request_stop
from tests.conftest import tiny_config

WORKERS = Workers(1, False, 1, most=3)


def run_of(count):
    """Return a group of workers, each on a node of its own."""
    nodes = [SimpleNamespace(node_id=f"id-{n}", node_ip=f"10.0.0.{n}") for n in range(count)]
    workers = [SimpleNamespace(metadata=node) for node in nodes]
    return SimpleNamespace(workers=workers, placement_group_handle=Group())


class Group:
    """Stands for the placement group of running workers."""

    is_removed = False

    def shutdown(self):
        self.is_removed = True


@pytest.fixture
def config(tmp_path):
    config = tiny_config(tmp_path)
    config.run_folder().mkdir(parents=True)
    return replace(config, ray=replace(config.ray, workers="1:3", max_failures=2))


@pytest.fixture
def policy(config, monkeypatch):
    """A policy of a cluster with room for as many workers as `policy.room` says."""
    folder = RunFolder(config.run_folder())
    policy = ElasticPolicy(ScalingConfig(num_workers=(1, 3)), config, WORKERS, folder)

    policy._payback = 0

    def decide(policy, *_):
        return ResizeDecision(policy.room, {}) if policy.room else NoopDecision()

    for when in ("running", "non_running"):
        name = f"make_decision_for_{when}_worker_group"
        monkeypatch.setattr(ElasticScalingPolicy, name, decide)
    monkeypatch.setattr(ElasticPolicy, "_reserve", lambda *_: None)
    monkeypatch.setattr(ray_cluster, "nodes", lambda: ["id-0", "id-2"])
    return policy


def last_status(config):
    return [event for event, _ in journal.read(config.run_folder())][-1]["text"]


def test_it_grows_when_the_workers_have_saved_a_checkpoint(policy, config):
    request, policy.room = config.run_folder() / STOP_FILE, 3
    journal.add_status(config.run_folder(), "starting", is_training=False)
    assert isinstance(policy.make_decision_for_running_worker_group(run_of(1), None), NoopDecision)
    assert not request.exists()  # these workers have nothing to save yet
    journal.add_status(config.run_folder(), "training", is_training=True)
    for _ in range(2):
        decision = policy.make_decision_for_running_worker_group(run_of(1), None)
        assert isinstance(decision, NoopDecision)
        assert request.exists()
    record_stop(config.run_folder())
    request_stop(config.run_folder())
    assert not request.exists()  # nobody would save another checkpoint, which is waited for
    assert policy.make_decision_for_running_worker_group(run_of(1), None).num_workers == 3
    assert last_status(config).startswith("resources for 2 more workers are free: growing to 3")


def test_it_does_not_grow_for_a_run_that_has_just_ended(policy, config):
    request, policy.room = config.run_folder() / STOP_FILE, 3
    journal.add_status(config.run_folder(), "training", is_training=True)
    policy.make_decision_for_running_worker_group(run_of(1), None)
    journal.add_end(config.run_folder())
    request.unlink()
    assert isinstance(policy.make_decision_for_running_worker_group(run_of(1), None), NoopDecision)


class AskedContext(DrivenContext):
    """Context of a worker that knows of a request at once."""

    @contextmanager
    def stop_requests(self):
        with super().stop_requests():
            yield lambda: True

    def stop(self):
        pytest.fail("it stopped, as if there were a checkpoint")


def test_it_does_not_grow_for_a_run_that_diverges(policy, config, squares):
    """Nothing can be saved then, and the run would diverge again."""
    request, policy.room = config.run_folder() / STOP_FILE, 3
    journal.add_status(config.run_folder(), "training", is_training=True)
    policy.make_decision_for_running_worker_group(run_of(1), None)
    unstable = replace(config, optimizer=replace(config.optimizer, name="sgd", lr_D=1e30))
    with pytest.raises(Diverged):
        run_worker(unstable, squares, NO_ASSETS, AskedContext(config, torch.device("cpu")))
    assert not request.exists()
    assert isinstance(policy.make_decision_for_running_worker_group(run_of(1), None), NoopDecision)


def test_it_goes_on_with_what_is_left_and_says_what_is_gone(policy, config):
    """Also if it was about to grow: the workers that start must not stop for the request."""
    journal.add_status(config.run_folder(), "training", is_training=True)
    policy.room = 3
    policy.make_decision_for_running_worker_group(run_of(2), None)
    policy.room = 1
    assert policy.make_decision_for_non_running_worker_group().num_workers == 1
    assert not (config.run_folder() / STOP_FILE).exists()
    text = "node 10.0.0.1 (id-1) is gone: going on with 1 worker of 2"
    assert last_status(config) == text


def test_the_resources_of_a_lost_worker_are_not_kept_for_it(policy, config):
    """Ray would move them to a node that comes, on which nothing else could start then."""
    policy.room, group = 0, run_of(2)
    policy.make_decision_for_running_worker_group(group, None)
    assert policy._held == ["id-0", "id-1"]
    policy.make_decision_for_non_running_worker_group()  # id-1 is lost
    assert group.placement_group_handle.is_removed
    assert policy._held == []
    policy.make_decision_for_running_worker_group(group := run_of(1), None)
    policy.make_decision_for_non_running_worker_group()  # a failure without a lost node
    assert not group.placement_group_handle.is_removed
    assert policy._held == ["id-0"]


def test_it_grows_only_after_it_has_trained_for_long_enough(policy, config, monkeypatch):
    """For ten times as long as the workers took to start, so that starts cost a tenth at most."""
    clock, policy.room, policy._payback = [100.0], 3, 10
    monkeypatch.setattr(ray_elastic.time, "monotonic", lambda: clock[0])
    policy.on_controller_start_worker_group()
    clock[0] = 105.0
    policy.make_decision_for_running_worker_group(run_of(1), None)
    journal.add_status(config.run_folder(), "training", is_training=True)
    for clock[0], is_asked in ((110.0, False), (209.0, False), (210.0, True)):
        policy.make_decision_for_running_worker_group(run_of(1), None)
        assert (config.run_folder() / STOP_FILE).exists() == is_asked


def test_a_node_with_other_versions_or_without_the_folder_is_no_room(policy, monkeypatch):
    own, removed = ray_cluster.versions(), []
    monkeypatch.setattr(ray_elastic, "remove_placement_group", removed.append)
    found = {"good": (own, True), "old": (own | {"torch": "1"}, True), "alone": (own, False)}
    found |= {"busy": GetTimeoutError(), "broken": RuntimeEnvSetupError()}

    def get(name, timeout):
        if isinstance(found[name], Exception):
            raise found[name]
        return found[name]

    monkeypatch.setattr(ray_elastic.ray, "get", get)
    policy._spare = {name: (None, name) for name in found}
    assert policy._count_possible_workers(None) == 1
    assert removed == ["old", "alone", "broken"]
    assert [*policy._spare] == ["good", "busy"]


def test_it_gives_up_if_even_the_smallest_number_does_not_fit(config, policy, monkeypatch):
    monkeypatch.setattr(ray_cluster, "describe_free", lambda: "free: nothing")
    policy.room, policy._config = 0, replace(config.ray, wait=1e-9)
    assert isinstance(policy.make_decision_for_non_running_worker_group(), NoopDecision)
    with pytest.raises(UserError, match=r"no room for at least 1 of 3 workers with 1 CPU each"):
        policy.make_decision_for_non_running_worker_group()


def test_failures_count_from_the_last_checkpoint(config):
    """The line in the journal and Ray's decision agree."""
    has_progress = ray_train._Progress(config)
    policy = ElasticFailurePolicy(FailureConfig(max_failures=2), has_progress)
    failures = ray_train._Failures(config)
    seen = []
    for step in (0, 0, 10, 10, 10):
        if step:
            (config.run_folder() / f"checkpoint_{step:010d}").mkdir(exist_ok=True)
        decision = policy.make_decision(WorkerGroupError("lost", {0: RuntimeError("reset")}))
        seen.append((decision == FailureDecision.RETRY, failures.add()[:9]))
    first, second = (True, "restart 1"), (True, "restart 2")
    assert seen == [first, second, first, second, (False, "")]


def test_a_preempted_worker_is_told_once_and_not_counted(config):
    """Ray calls at each poll while it waits for the other workers, and restarts without a limit."""
    callback = ray_train._FailureCallback(config, 1, RunFolder(config.run_folder()))
    for actor in "aaabcd":
        died = RayActorError(actor, f"Actor {actor} died", preempted=True)
        errors = {0: WorkerHealthCheckFailedError("lost", failure=died)}
        callback.after_exception(None, errors | {1: RuntimeError("Connection reset")})
    callback.after_exception(None, {1: RuntimeError("a bug")})
    lines = [
        event["text"].partition("; restart")[2] for event, _ in journal.read(config.run_folder())
    ]
    assert lines == [" from the last checkpoint"] * 4 + [
        " 1 of at most 2, from the last checkpoint"
    ]
