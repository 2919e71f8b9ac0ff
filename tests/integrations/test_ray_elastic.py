"""Decisions of an elastic run, without Ray: when it grows and shrinks, and which failures count."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from ray.train import FailureConfig, ScalingConfig
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
)
from ray.train.v2.api.exceptions import WorkerGroupError

from ganray.errors import UserError
from ganray.integrations import ray_cluster, ray_train
from ganray.integrations.ray_elastic import ElasticFailurePolicy, ElasticPolicy
from ganray.training import journal
from ganray.training.plan import Workers
from ganray.training.run_folder import RunFolder
from ganray.training.stopping import STOP_FILE
from tests.conftest import tiny_config

WORKERS = Workers(1, False, 1, most=3)


def run_of(count):
    """Return a group of workers, each on a node of its own."""
    nodes = [SimpleNamespace(node_id=f"id-{n}", node_ip=f"10.0.0.{n}") for n in range(count)]
    return SimpleNamespace(workers=[SimpleNamespace(metadata=node) for node in nodes])


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
    request.unlink()  # by rank 0, see `confirm_stop`
    assert policy.make_decision_for_running_worker_group(run_of(1), None).num_workers == 3
    assert last_status(config).startswith("resources for 2 more workers are free: growing to 3")


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
