"""Other versions on the cluster than the driver's are one line, before workers are started."""

from concurrent.futures import Future
from importlib import metadata

import pytest
import ray
from ray._private.utils import check_version_info

from ganray.config.schema import RayConfig
from ganray.errors import UserError
from ganray.integrations import ray_cluster

CLUSTER = RayConfig(address="10.0.0.1:6379")


@pytest.fixture
def nodes(monkeypatch):
    """What each node of the cluster answers; starts equal to this process."""
    found = {"a" * 56: ray_cluster.versions(), "b" * 56: ray_cluster.versions()}
    monkeypatch.setattr(ray_cluster, "_on_each_node", lambda function: found)
    return found


def test_equal_versions_pass(nodes):
    ray_cluster.check_versions(CLUSTER)


def test_a_node_with_another_torch_is_named(nodes):
    own = ray_cluster.versions()["torch"]
    nodes["b" * 56]["torch"] = "1.0.0"
    with pytest.raises(
        UserError, match=f"^node bbbbbbbb has torch 1.0.0, not {own} as this driver"
    ):
        ray_cluster.check_versions(CLUSTER)


def test_a_ray_of_this_driver_alone_has_its_versions(nodes):
    nodes["b" * 56]["torch"] = "1.0.0"
    ray_cluster.check_versions(RayConfig())


def test_a_library_that_is_not_installed_has_no_version_and_a_build_is_not_one(monkeypatch):
    def version(name):
        if name == "torch":
            raise metadata.PackageNotFoundError
        return "2.4.1+cpu"

    monkeypatch.setattr(metadata, "version", version)
    assert ray_cluster.versions() == {"torch": "none", "numpy": "2.4.1"}


def test_another_ray_on_the_cluster_is_one_line(monkeypatch):
    """The message is Ray's own, which it raises when the driver joins."""
    with pytest.raises(RuntimeError) as raised:
        check_version_info({"ray_version": "2.0.0", "python_version": "3.9.1"}, "driver")
    starting: Future[None] = Future()
    starting.set_exception(raised.value)
    monkeypatch.setattr(ray_cluster, "_starting", starting)
    with pytest.raises(UserError) as refused:
        ray_cluster.connect(CLUSTER)
    assert str(refused.value).startswith(f"the cluster has ray 2.0.0, not {ray.__version__} and")
    assert "python 3.9.1, not 3." in str(refused.value)
    assert "\n" not in str(refused.value)
