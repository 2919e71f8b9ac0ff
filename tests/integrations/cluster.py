"""Helpers of tests on a real Ray: environments, output of drivers, a cluster of two nodes."""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FakeMultiNodeProvider,
)

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")
PORT, DASHBOARD = 6399, "http://127.0.0.1:8299"
METRICS = 8391, 8392
"""Ports at which the two nodes export metrics."""
TINY = ["cpu32", "--data.size", "16", "--data.faces", "300", "--latent.size", "8"]
TINY += ["--network.width_G", "4", "--network.width_D", "4", "--train.batch_size", "12"]
TINY += ["--evaluation.report_samples", "0"]
"""Options of a run that takes seconds. Options after these override them."""


def environment(home, **more):
    """Return the environment of a job: a home, and no cluster or server of the developer's."""
    env = os.environ | {"GANRAY_HOME": str(home), "PYTHONPATH": str(ROOT)} | more
    return {k: v for k, v in env.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}


def cluster_environment(home):
    """Return the environment of nodes and of submitted jobs, which import the submitted ganray."""
    env = environment(home, RAY_AUTH_MODE="disabled", RAY_API_SERVER_ADDRESS=DASHBOARD)
    env["RAY_metrics_report_interval_ms"] = "500"
    env["RAY_health_check_period_ms"] = "500"  # a lost node is noticed after 5 of them
    env.pop("PYTHONPATH")
    return env


def start_process(command, env, **more):
    """Start a process whose output, with errors, is read from its `stdout`."""
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=env, **output, **more)


def start_job(name, env, *options, **more):
    """Start a job as a user does."""
    return start_process([sys.executable, str(ROOT / "jobs" / f"{name}.py"), *options], env, **more)


@contextmanager
def two_nodes(env, worker_env=None, shift=0):
    """Start a head and a worker node; `ray stop` would stop every Ray on the machine.

    Yields the process of the worker node, and a function that starts another such node. A cluster
    beside that of other tests needs other ports, by a `shift`, and takes no jobs.
    """
    port, dashboard = PORT + shift, int(DASHBOARD.rpartition(":")[2]) + shift
    start = [RAY, "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
    head = ["--head", f"--port={port}", f"--dashboard-port={dashboard}"]
    # The agent takes jobs. On its default port it fails silently beside any other Ray, and on ports
    # above 32767 beside any connection that has got the same one.
    head += [f"--dashboard-agent-listen-port={28399 + shift}"]
    # Each node has its own folder, as on two machines, into which it unpacks the working directory.
    # They are directly under /tmp, because the path of a socket must be short.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as one,
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as two,
        started_node([*start, *head, *_node_options(METRICS[0] + shift, one)], env),
        ExitStack() as nodes,
    ):
        worker = [*start, f"--address=127.0.0.1:{port}", *_node_options(METRICS[1] + shift, two)]

        def start_node():
            return nodes.enter_context(started_node(worker, worker_env or env))

        node = start_node()
        if not shift:
            _wait_for_agent(env)
        yield node, start_node


def _node_options(port, folder):
    return [f"--metrics-export-port={port}", f"--temp-dir={folder}"]


def _wait_for_agent(env):
    """Wait until jobs are accepted, which on a busy machine takes longer than the head's start."""
    deadline = time.monotonic() + 120
    job = [RAY, "job", "submit", "--no-wait", "--", "true"]
    while True:
        submitted = subprocess.run(job, env=env, capture_output=True, text=True, check=False)
        if submitted.returncode == 0:
            return
        assert time.monotonic() < deadline, submitted.stdout + submitted.stderr


@contextmanager
def autoscaling_head(env, folder):
    """Start a head node with one CPU, whose autoscaler has nodes with a GPU that never come.

    Ray's own stand-in, `ray.cluster_utils.AutoscalingCluster`, needs a file that its wheel lacks.
    """
    commands = "setup_commands head_setup_commands worker_setup_commands initialization_commands"
    commands += " head_start_ray_commands worker_start_ray_commands cluster_synced_files"
    provider = {"type": "external", "module": "tests.integrations.cluster.IdleProvider"}
    config = {
        "cluster_name": "idle",
        "max_workers": 2,
        "provider": provider | {"head_node_id": FAKE_HEAD_NODE_ID, "launch_multiple": True},
        "auth": {"ssh_user": "nobody"},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "gpu": {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "max_workers": 2},
        },
        **{name: [] for name in [*commands.split(), "rsync_exclude", "rsync_filter"]},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
    }
    path = folder / "ray_bootstrap_config.yaml"
    path.write_text(json.dumps(config))
    env = env | {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": "ray.head.default",
    }
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as temp:
        command = [RAY, "start", "--block", "--num-cpus=1", "--disable-usage-stats", "--head"]
        command += [f"--port={PORT}", f"--dashboard-port={DASHBOARD.rpartition(':')[2]}"]
        with started_node([*command, f"--autoscaling-config={path}", f"--temp-dir={temp}"], env):
            yield


class IdleProvider(FakeMultiNodeProvider):
    """Accepts requests for nodes and never starts one."""

    def create_node_with_resources_and_labels(self, *_):
        """Do nothing."""


@contextmanager
def started_node(command, env):
    """Run a command that starts a node, and yield its process."""
    node = start_process(command, env, start_new_session=True)
    try:
        wait_for(lines_of(node), "Ray runtime started", 120)
        yield node
    finally:
        kill_session(node.pid)
        node.wait(60)
        wait_until_gone(node.pid)


def lines_of(process):
    """Return the process's output so far, as a list that grows."""
    lines: list[str] = []

    threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True).start()
    return lines


def wait_for(lines, pattern, timeout, after=0):
    """Wait for a line with the pattern, not before the line `after`; return its number."""
    deadline = time.monotonic() + timeout
    while True:
        for number in range(after, len(lines)):
            if re.search(pattern, lines[number]):
                return number
        assert time.monotonic() < deadline, "".join(lines[-20:])
        time.sleep(0.05)


def kill_session(session):
    """Kill a node with all that it has started, which by SIGTERM would take half a minute."""
    for process in _living(session):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def wait_until_gone(session):
    """Wait until the Ray of a killed driver has ended its own processes."""
    deadline = time.monotonic() + 60
    while _living(session):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _living(session):
    """Return the processes of a session without those that only wait for their parent."""
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
