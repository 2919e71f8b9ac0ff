"""cluster.yaml against Ray's own schema, and against what the job expects of a cluster."""

from pathlib import Path

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

PATH = Path(__file__).parents[1] / "cluster.yaml"


@pytest.fixture
def cluster():
    return yaml.safe_load(PATH.read_text())


def test_ray_accepts_it(cluster):
    validate_config(prepare_config(cluster))


def test_ray_would_refuse_a_misspelt_key(cluster):
    cluster["idle_timeout_min"] = cluster.pop("idle_timeout_minutes")
    with pytest.raises(ValidationError):
        validate_config(prepare_config(cluster))


def test_the_head_has_no_gpu_and_gpu_workers_come_only_when_needed(cluster):
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"]["GPU"] == 0
    workers = [kind for name, kind in types.items() if name != cluster["head_node_type"]]
    assert workers
    assert all(kind["resources"]["GPU"] > 0 == kind["min_workers"] for kind in workers)


def test_this_checkout_is_what_gets_installed(cluster):
    ((there, here),) = cluster["file_mounts"].items()
    assert here == "."
    assert any("pip install" in line and there in line for line in cluster["setup_commands"])


def test_servers_listen_on_loopback_only(cluster):
    lines = " ".join(cluster["head_start_ray_commands"])
    assert "0.0.0.0" not in lines
    assert "--dashboard-host=127.0.0.1" in lines
    assert "mlflow server --host 127.0.0.1" in lines
