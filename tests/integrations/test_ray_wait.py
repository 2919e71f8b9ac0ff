"""Jobs that ask for GPUs which an autoscaler has to start, or can never start."""

import subprocess
import sys

import pytest

from tests.integrations.cluster import (
    PORT,
    TINY,
    autoscaling_head,
    environment,
    lines_of,
    start_job,
    wait_for,
)

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    """Start the head node; return the environment of jobs, as far from it as a pod of KubeRay."""
    home = tmp_path_factory.mktemp("home")
    env = environment(home, HOME=str(home), RAY_AUTH_MODE="disabled")
    head = tmp_path_factory.mktemp("head")
    with autoscaling_head(env, head):
        yield env | {"RAY_ADDRESS": f"127.0.0.1:{PORT}", "HEAD": str(head)}


def start(env, *options):
    """Start a run on GPUs."""
    run = [*TINY, "--evaluation.samples", "0", "--ray.gpu", "true", "--name", "run"]
    return start_job("celeba", env, *run, *options)


def test_it_says_what_it_waits_for_and_since_when_and_gives_up(env):
    job = start(env, "--ray.workers", "2", "--ray.wait", "0.1")
    lines = lines_of(job)
    wait_for(
        lines,
        r"waiting for 2 workers with 1 CPU and 1 GPU each since \d\d:\d\d:\d\d, until .*"
        r"\(--ray.wait 0.1\); free: 1 CPU and 0 GPU on 1 node",
        120,
    )
    last = wait_for(lines, r"ray.wait=0.1: the cluster had no room for 2 workers", 60)
    assert "ask for less (--ray.workers)" in lines[last]
    assert job.wait(60) == 2
    assert "Traceback" not in "".join(lines)


def test_more_gpus_than_the_autoscaler_can_start_fail_at_once(env):
    """Long before --ray.wait, half an hour. The job knows no limits, only the autoscaler does."""
    output, _ = (job := start(env, "--ray.workers", "3")).communicate(timeout=120)
    assert job.returncode == 2, output[-3000:]
    assert "ray.workers=3: the cluster cannot have 3 workers with 1 CPU and 1 GPU each" in output
    assert "Traceback" not in output


SCRIPT = """
from ganray.config.schema import RayConfig
from ganray.errors import UserError
from ganray.integrations import ray_cluster
from ganray.training.plan import Workers

print(ray_cluster.connect(RayConfig()))
for config in (RayConfig(labels={"market": "spot"}), RayConfig(accelerator="H100")):
    try:
        ray_cluster.wait_for_resources(config, Workers(1, True, 1))
    except UserError as error:
        print(error)
"""


def test_nodes_that_no_group_has_fail_at_once_and_ray_ups_file_has_the_limits(env):
    """`ray up` leaves its config in the home of the head node, where submitted jobs run."""
    script = [sys.executable, "-c", SCRIPT]
    env = env | {"HOME": env["HEAD"]}
    output = subprocess.check_output(script, env=env, text=True, timeout=120)
    assert output.startswith("1 node, 3 CPUs, 2 GPUs after autoscaling\n")
    assert "cannot have 1 worker with 1 CPU and 1 GPU each on nodes with market=spot" in output
    assert "cannot have 1 worker with 1 CPU and 1 GPU (H100) each, even after" in output
