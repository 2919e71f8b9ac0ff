"""cluster.yaml and its variants against Ray's own schema, and what an operator expects of them."""

import re
import socket
import subprocess
from pathlib import Path

import boto3
import pytest
import yaml
from jsonschema import ValidationError
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "ganray" / "integrations" / "deploy"
AWS, GCP, LOCAL = ROOT / "cluster.yaml", DEPLOY / "gcp.yaml", DEPLOY / "on-premise.yaml"
ALL = pytest.mark.parametrize("path", [AWS, GCP, LOCAL], ids=lambda path: path.stem)
CLOUDS = pytest.mark.parametrize("path", [AWS, GCP], ids=lambda path: path.stem)


def read(path):
    return yaml.safe_load(path.read_text())


@ALL
def test_ray_accepts_it(path):
    validate_config(prepare_config(read(path)))


def test_ray_would_refuse_a_misspelt_key():
    cluster = read(AWS)
    cluster["idle_timeout_min"] = cluster.pop("idle_timeout_minutes")
    with pytest.raises(ValidationError):
        validate_config(prepare_config(cluster))


@CLOUDS
def test_the_head_has_no_gpu_and_gpu_workers_come_only_when_needed(path):
    cluster = read(path)
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"]["GPU"] == 0
    workers = [kind for name, kind in types.items() if name != cluster["head_node_type"]]
    assert workers
    assert all(kind["resources"]["GPU"] > 0 == kind["min_workers"] for kind in workers)
    assert sum(kind["max_workers"] for kind in workers) == cluster["max_workers"]


@CLOUDS
def test_spot_nodes_are_for_elastic_runs(path):
    """A run of a fixed size would wait for each node that is taken away."""
    advice = re.search(r"# Spot nodes (.*?)\n +gpu_spot:", path.read_text(), re.DOTALL)
    assert advice
    assert "--ray.workers 2:8" in advice[1]


@ALL
def test_a_new_node_installs_nothing_with_pip(path):
    cluster = read(path)
    assert cluster["docker"]["image"] == "REGISTRY/ganray"
    assert not any(key.endswith("setup_commands") for key in cluster)


@ALL
def test_servers_listen_on_loopback_and_ray_asks_for_the_token_of_the_user(path):
    cluster = read(path)
    head, worker = (" ".join(cluster[f"{kind}_start_ray_commands"]) for kind in ("head", "worker"))
    assert "0.0.0.0" not in head
    assert "--dashboard-host=127.0.0.1" in head
    assert "--host 127.0.0.1" in (DEPLOY / "mlflow-server.sh").read_text()
    assert "RAY_AUTH_MODE=token ray start" in worker
    assert re.search(r"RAY_AUTH_MODE=token [^;&]*ray start --head", head)
    assert cluster["file_mounts"] == {"~/.ray": "~/.ray"}


@ALL
def test_no_file_is_open_to_everyone(path):
    assert not re.search(r"chmod|-m 7?7[1-7]7", path.read_text())


@ALL
def test_the_folder_of_the_mlflow_store_is_made_before_the_container_mounts_it(path):
    cluster = read(path)
    mounts = [option.split()[1] for option in cluster["docker"]["run_options"] if "-v " in option]
    (local,) = [mount.partition(":")[0] for mount in mounts if mount.endswith(":/home/ray/mlflow")]
    assert f" {local} " in cluster["initialization_commands"][-1]


@mock_aws
def test_aws_opens_no_port_beyond_the_security_group_that_the_user_has_made(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    ec2 = boto3.resource("ec2", region_name="us-west-2")
    (vpc,) = ec2.vpcs.all()
    own = ec2.create_security_group(GroupName="own", Description="own", VpcId=vpc.id)
    text = AWS.read_text().replace("sg-00000000000000000", own.id)
    cluster = prepare_config(yaml.safe_load(text))
    (tmp_path / ".ssh").mkdir()
    # As the comment in the file advises; Ray would make a role, and wait 15 seconds for it.
    role = {"Arn": "arn:aws:iam::123456789012:instance-profile/own"}
    cluster["available_node_types"]["head"]["node_config"]["IamInstanceProfile"] = role
    nodes = bootstrap_aws(cluster)["available_node_types"].values()
    assert {tuple(node["node_config"]["SecurityGroupIds"]) for node in nodes} == {(own.id,)}
    assert {node["node_config"]["ImageId"] for node in nodes} == {"ami-00000000000000000"}
    assert {group.group_name for group in ec2.security_groups.all()} == {"default", "own"}


@pytest.mark.parametrize(("path", "name"), [(AWS, "EFS"), (GCP, "FILESTORE")])
def test_a_file_system_that_refuses_the_node_ends_the_set_up_with_one_line(path, name):
    (command,) = [line for line in read(path)["initialization_commands"] if f"{name}=" in line]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        port = str(closed.getsockname()[1])
        command = re.sub(rf"{name}=\S+;", f"{name}=127.0.0.1;", command).replace("2049", port)
        # Where nothing is mounted, and where a mistake in the command cannot mount anything.
        command = command.replace("/mnt/shared", "/nowhere").replace("sudo", "false")
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"no answer from 127.0.0.1:{port}" in done.stderr
