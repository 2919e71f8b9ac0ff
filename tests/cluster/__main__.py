"""Exercise what the cluster files promise, on a cluster of namespaces of this machine.

    python -m tests.cluster

On-premise: `ray up` over ssh, jobs refused without the token, a run with a worker on each node, a
node that is cut off in mid-run and comes back, `ray down`. Slurm: the printed script under a
stand-in for srun. It takes 11 minutes and needs root, openssh-server, rsync and iproute2.
"""

from __future__ import annotations

import argparse
import re
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from ganray.commands.deploy import TEMPLATES, render
from ganray.config.commands import DeployConfig
from tests.cluster.machines import ADDRESSES, HEAD, OPERATOR, WORKER, Machine, machines
from tests.integrations.cluster import lines_of, wait_for

WITH_TOKEN = {
    "RAY_AUTH_MODE": "token",
    "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265",
}
JOB = "celeba cpu32 --ray.workers 2 --ray.cpus_per_worker 2 --data.size 16 --data.faces 300"
JOB += " --latent.size 8 --network.width_G 4 --network.width_D 4 --train.batch_size 12"
JOB += " --train.log_every 0.3 --train.checkpoint_every 0.6 --evaluation.report_samples 0"
JOB += " --evaluation.samples 0"
NODES = """
import ray
ray.init("auto", logging_level="error")
print("alive", sum(node["Alive"] for node in ray.nodes()))
"""


def main() -> None:
    """Run all steps; an AssertionError tells which one failed, with its output."""
    argparse.ArgumentParser(
        "python -m tests.cluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="cluster-", dir="/tmp") as name,
        machines(folder := Path(name)) as nodes,
    ):
        run_on_premise(folder, nodes)
        run_slurm(folder, nodes)


def run_on_premise(folder: Path, nodes: dict[str, Machine]) -> None:
    """Follow the comments of on-premise.yaml and the README."""
    operator, head, worker = (nodes[name] for name in (OPERATOR, HEAD, WORKER))
    file = write_cluster_file(folder)
    with step("ray get-auth-token --generate"):
        expect(operator.run("ray", "get-auth-token", "--generate"))
    with step("ray up, until both nodes are there"):
        expect(operator.run("ray", "up", "--yes", file, RAY_UP_enable_autoscaler_v2="0"))
        wait_until(lambda: count_alive(head) == 2)
    tunnel = operator.start("ray", "dashboard", file)
    wait_until(lambda: operator.run("ray", "job", "list", **WITH_TOKEN).returncode == 0)
    with step("without the token, nothing"):
        check_refusals(operator, folder)
    with step("ray job submit: a run with a worker on each node"):
        job = submit(operator, "one", "--train.kimg", "1.2")
        output, _ = job.communicate(timeout=400)
        assert job.returncode == 0, output
        assert "1.2 / 1.2 kimg" in output, output
        assert mlflow_runs(head) == [("FINISHED", "2")]
    with step("a run in which a node is cut off"):
        cut_off_and_heal(submit(operator, "two", "--train.kimg", "60"), worker)
        assert mlflow_runs(head) == [("FINISHED", "2")] * 2
    tunnel.terminate()
    with step("ray down, until no node has a Ray"):
        expect(operator.run("ray", "down", "--yes", file))
        assert not is_running(head)
        # Ray leaves it to the workers to notice that the head is gone.
        wait_until(lambda: not is_running(worker))


def run_slurm(folder: Path, nodes: dict[str, Machine]) -> None:
    """Run the printed script as sbatch would; srun is a stand-in that starts it on both nodes."""
    options = DeployConfig(
        target="slurm",
        job=f"{JOB} --train.kimg 1.2",
        name="slurm",
        nodes=2,
        gpus=0,
        cpus=2,
        storage=f"{folder}/shared/slurm",  # which this machine sees, too
        tracking_uri="http://127.0.0.1:5000",  # that of the first node
    )
    write_program(folder / "bin" / "scontrol", f"printf '{HEAD}\\n{WORKER}\\n'")
    tasks = [
        f"[[ ${{only:-{name}}} != {name} ]] ||"
        f' HOME={nodes[name].home} nsenter --target {nodes[name].pid} --all -- "$@" & pids+=($!)'
        for name in (HEAD, WORKER)
    ]
    script = ["only= pids=()", "while [[ $1 == --* ]]; do"]
    script += ["  [[ $1 != --nodelist=* ]] || only=${1#*=}", "  shift", "done", *tasks]
    script += ['for pid in "${pids[@]}"; do wait "$pid" || exit; done']
    write_program(folder / "bin" / "srun", "\n".join(script))
    # The console script of an installation; the checkout may not be installed.
    write_program(
        folder / "bin" / "ganray", 'cd ~/ganray && exec python -m ganray.commands.main "$@"'
    )
    env = nodes[HEAD].environment(SLURM_JOB_NODELIST="n[1-2]", SLURM_JOB_ID="1")
    with step("Slurm's script: a run with a worker on each node"):
        done = subprocess.run(
            ["bash", "-c", render(options)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
        )
        expect(done)
        assert "1.2 / 1.2 kimg" in done.stdout, done.stdout
        assert mlflow_runs(nodes[HEAD]) == [("FINISHED", "2")] * 3
        assert not any(is_running(nodes[name]) for name in (HEAD, WORKER))


def write_cluster_file(folder: Path) -> Path:
    """Fill in on-premise.yaml; without its container, which these nodes cannot start."""
    cluster = yaml.safe_load((TEMPLATES / "on-premise.yaml").read_text())
    del cluster["docker"]
    cluster["provider"] |= {"head_ip": ADDRESSES[HEAD], "worker_ips": [ADDRESSES[WORKER]]}
    cluster["auth"] = {"ssh_user": "root", "ssh_private_key": str(folder / "key")}
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(cluster))
    return file


def check_refusals(operator: Machine, folder: Path) -> None:
    """Check that the job API wants the token, and exactly that token."""
    address = WITH_TOKEN["RAY_API_SERVER_ADDRESS"]
    status = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}"]
    assert operator.run(*status, f"{address}/api/jobs/").stdout == "401"
    wrong = operator.run("ray", "job", "list", **WITH_TOKEN, RAY_AUTH_TOKEN="0" * 64)
    assert wrong.returncode != 0
    assert "403" in wrong.stdout or "Invalid" in wrong.stdout, wrong.stdout
    token = (operator.home / ".ray" / "auth_token").read_text().strip()
    for log in folder.glob("n?/ray/session_*/logs/**/*"):
        assert not log.is_file() or token.encode() not in log.read_bytes(), log


def submit(operator: Machine, name: str, *options: str) -> subprocess.Popen[str]:
    words = JOB.split()
    command = ["python", f"jobs/{words[0]}.py", *words[1:], *options, "--name", name]
    submission = ["ray", "job", "submit", "--working-dir", ".", "--submission-id", name]
    return operator.start(*submission, "--", *command, **WITH_TOKEN)


def cut_off_and_heal(job: subprocess.Popen[str], worker: Machine) -> None:
    """Cut the worker's node off while the run trains; expect it to go on after it is back."""
    lines = lines_of(job)
    wait_for(lines, r"^ *([3-9]|\d\d)\.\d / 60 kimg", 200)
    worker.cut_off()
    start = time.monotonic()
    failed = wait_for(lines, "restart 1 of at most", 200)
    report(f"the run says after {time.monotonic() - start:.0f} s: {lines[failed].strip()}")
    worker.heal()
    start = time.monotonic()
    resumed = wait_for(lines, "training on 2 workers from", 400, after=failed)
    report(f"{time.monotonic() - start:.0f} s after the node is back: {lines[resumed].strip()}")
    assert float(re.search(r"from ([\d.]+) kimg", lines[resumed])[1]) >= 2.4
    assert job.wait(400) == 0, "".join(lines[-40:])


def count_alive(head: Machine) -> int:
    output = head.run("python", "-c", NODES, RAY_AUTH_MODE="token").stdout
    found = re.search(r"alive (\d+)", output)
    return int(found[1]) if found else 0


def mlflow_runs(head: Machine) -> list[tuple[str, str]]:
    """Return status and number of workers of the runs in the store on the head's own disk."""
    query = "select status, value from runs join tags using (run_uuid) where key = 'world_size'"
    store = sqlite3.connect(f"file:{head.home}/mlflow/mlflow.db?mode=ro", uri=True)
    return store.execute(query).fetchall()


def is_running(machine: Machine) -> bool:
    return machine.run("pgrep", "--exact", "raylet").returncode == 0


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


def expect(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(1)


@contextmanager
def step(name: str) -> Iterator[None]:
    report(name)
    start = time.monotonic()
    yield
    report(f"  done in {time.monotonic() - start:.0f} s")


def report(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    main()
