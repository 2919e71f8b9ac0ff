"""The head of cluster.yaml, started here: it refuses requests without the token that is shipped."""

import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.integrations.cluster import RAY, ROOT, environment, started_node

PORTS = {"port": 6398, "dashboard-port": 8298, "dashboard-agent-listen-port": 52398}

pytestmark = pytest.mark.ray


@pytest.fixture
def token(tmp_path):
    """Start the head by the line of cluster.yaml, on free ports; yield the token of its user."""
    env = environment(tmp_path, HOME=str(tmp_path), PATH=f"{Path(RAY).parent}:/usr/bin:/bin")
    env = {name: value for name, value in env.items() if not name.startswith("RAY_AUTH")}
    subprocess.run([RAY, "get-auth-token", "--generate"], env=env, check=True, capture_output=True)
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    line = cluster["head_start_ray_commands"][-1].replace("--port=6379", "")
    line = line.replace("--autoscaling-config=~/ray_bootstrap_config.yaml", "")
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        options = [f"--{name}={port}" for name, port in PORTS.items()]
        options += ["--block", "--num-cpus=1", f"--temp-dir={folder}"]
        with started_node(["bash", "-c", " ".join([line, *options])], env):
            yield (tmp_path / ".ray" / "auth_token").read_text().strip()


def status(headers):
    """Return the status of a request to the job API, by which programs can be run."""
    url = f"http://127.0.0.1:{PORTS['dashboard-port']}/api/jobs/"
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers)).status
    except urllib.error.HTTPError as error:
        return error.code


def test_only_requests_with_the_token_are_answered(token):
    assert status({}) == 401
    assert status({"Authorization": f"Bearer {'0' * 64}"}) == 403
    assert status({"Authorization": f"Bearer {token}"}) == 200
