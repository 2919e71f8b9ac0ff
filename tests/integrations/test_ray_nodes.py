"""Answers of nodes that are lost or silent, limits of `ray up`, an autoscaler that says nothing."""

import pytest
from ray.exceptions import GetTimeoutError, NodeDiedError, RaySystemError, RpcError

from ganray.errors import UserError
from ganray.integrations import ray_cluster


@pytest.fixture
def answers(monkeypatch):
    """A function from the answer or error of each node, and the nodes that live, to the answers."""

    def get(task, timeout):
        if isinstance(task, Exception):
            raise task
        return task

    def run(tasks, alive):
        monkeypatch.setattr(ray_cluster, "nodes", lambda: alive)
        return ray_cluster._answers(tasks)

    monkeypatch.setattr(ray_cluster.ray, "wait", lambda *_, **__: None)
    monkeypatch.setattr(ray_cluster.ray, "get", get)
    return run


def test_a_node_that_is_lost_meanwhile_is_not_asked(answers):
    assert answers({"a": 1, "b": NodeDiedError("lost"), "c": GetTimeoutError()}, ["a"]) == {"a": 1}


def test_a_node_that_does_not_answer_is_named(answers):
    with pytest.raises(UserError, match=r"^nodes bbbbbbbb did not answer within 660 s"):
        answers({"a" * 56: 1, "b" * 56: GetTimeoutError()}, ["a" * 56, "b" * 56])


def test_any_other_error_is_a_bug(answers):
    with pytest.raises(RaySystemError):
        answers({"a": RaySystemError("odd")}, ["a"])


@pytest.mark.parametrize(
    ("limit", "gpus"),
    [(8, 4 * 8 + 4 * 1), (3, 3 * 8), (100, 4 * 8 + 10 * 1)],
)
def test_all_types_of_nodes_share_the_limit_of_the_cluster(limit, gpus):
    head = {"resources": {"CPU": 8}}
    small = {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 10}
    large = {"resources": {"CPU": 4, "GPU": 8}, "max_workers": 4}
    config = {"max_workers": limit}
    assert ray_cluster._max_resource("GPU", head, [small, large], config) == gpus
    cpus = 8 + 8 * min(limit, 10) + 4 * min(max(limit - 10, 0), 4)
    assert ray_cluster._max_resource("CPU", head, [small, large], config) == cpus


@pytest.mark.parametrize("error", [RpcError("no answer"), ImportError(), AttributeError()])
def test_without_an_answer_of_the_autoscaler_nothing_is_refused(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(ray_cluster.ray, "get_runtime_context", fail)
    assert ray_cluster._autoscaler_refusal("group") == (0, "")
