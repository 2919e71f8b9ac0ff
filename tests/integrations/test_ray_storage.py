"""Runs and sweeps on two nodes without a common disk, which share a bucket of an S3 server."""

import json
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from ganray.data.storage import Storage
from ganray.training import journal
from ganray.training.checkpoints import list_checkpoints
from tests.conftest import s3_environment
from tests.data.remote_servers import cutting_proxy
from tests.integrations.cluster import (
    PORT,
    ROOT,
    TINY,
    cluster_environment,
    kill_session,
    lines_of,
    start_job,
    two_nodes,
    wait_for,
)

SMALL = [*TINY, "--data.faces", "600", "--network.width_G", "8", "--network.width_D", "8"]
SMALL += ["--train.log_every", "0.3", "--train.sample_every", "1.2", "--evaluation.max_share", "1"]
SMALL += ["--evaluation.samples", "80", "--evaluation.report_samples", "100"]
SECRET = "NeverWriteThisDown"
STORAGE = "s3://images/ganray"

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """Return the homes of two nodes."""
    return [tmp_path_factory.mktemp(f"node-{i}") for i in range(2)]


@pytest.fixture(scope="module")
def cluster(moto, nodes):
    """Start the nodes and return an environment of drivers, and upload budgets."""
    uploads: list[int] = []
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        s3_environment(moto, monkeypatch),
        cutting_proxy(moto, [], uploads) as port,
    ):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        environments = [cluster_environment(home) for home in nodes]
        with two_nodes(*environments, shift=-10):
            address = f"127.0.0.1:{PORT - 10}"
            env = environments[0] | {"RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}
            yield env, uploads


def start(job, env, home, *options):
    """Start a driver whose home is its own, as that of another machine."""
    place = ["--home", str(home), "--storage", STORAGE]
    return start_job(job, env, *options, *place, cwd=ROOT, start_new_session=True)


def finish(driver):
    output, _ = driver.communicate(timeout=200)
    assert driver.returncode == 0, output[-6000:]
    return output


@pytest.mark.timeout(600)
def test_a_run_resumes_and_is_evaluated_from_the_storage_alone(cluster, nodes, tmp_path):
    """The first driver is killed, and the connection drops in the midst of some uploads."""
    env, uploads = cluster
    run = [*SMALL, "--name", "one", "--ray.workers", "2", "--train.checkpoint_every", "1.2"]
    uploads += [80_000, 100_000, 150_000]
    first = start("celeba", env, tmp_path / "first", *run, "--train.kimg", "3600")
    wait_for(lines_of(first), r"^ +4\.\d / 3600 kimg", 200)
    kill_session(first.pid)
    assert not uploads
    one = tmp_path / "first" / "runs" / "one"
    assert not list_checkpoints(one)  # they are on the nodes and in the storage
    assert sum(len(list_checkpoints(node / "runs" / "one")) > 0 for node in nodes) == 1

    Storage(STORAGE).delete("runs/one/driver.json")  # its heartbeat would be waited for
    output = finish(start("celeba", env, tmp_path / "second", *run, "--train.kimg", "8.4"))
    assert "(goes on from" in output
    assert not (tmp_path / "second" / "data").exists()  # nor are faces drawn again
    folder = tmp_path / "second" / "runs" / "one"
    seen, _ = journal.history(folder, "loss/D")
    assert seen.tolist() == list(range(300, 8_401, 300))
    before, _ = journal.history(one, "loss/D")
    assert 0 < len(before) < len(seen)
    assert len([*(folder / "samples").iterdir()]) == 7

    arguments = ["one", "--samples", "80", "--home", str(tmp_path / "third")]
    evaluate = [sys.executable, "jobs/evaluate.py", *arguments, "--storage", STORAGE]
    subprocess.run(evaluate, env=env, cwd=ROOT, check=True, timeout=100)
    report = json.loads((tmp_path / "third/runs/one/evaluation/report.json").read_text())
    assert report["run"] == "one"
    check_no_secret(tmp_path, *nodes)


@pytest.mark.timeout(600)
def test_a_sweep_is_interrupted_and_resumed_from_the_storage(cluster, nodes, tmp_path):
    env, _ = cluster
    # A shell starts background commands, and so perhaps these tests, with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    axes = ["--sweep.axis", "loss.name=bce,hinge", "--sweep.seeds", "2", "--name", "two"]
    first = start("sweep", env, tmp_path / "first", *SMALL, *axes, "--train.kimg", "3.6")
    lines = lines_of(first)
    wait_for(lines, r"1 / 4 runs", 200)
    first.send_signal(signal.SIGINT)
    assert first.wait(90) == 130, "".join(lines)
    assert "Traceback" not in "".join(lines)
    output = finish(start("sweep", env, tmp_path / "second", "--resume"))
    assert "2 at a time" in output
    assert "4 runs: 4 finished" in output
    assert "/#/jobs/" in output
    results = [*(tmp_path / "second" / "runs").glob("two.*/result.json")]
    assert len(results) == 4
    check_no_secret(tmp_path, *nodes)


def check_no_secret(*homes: Path):
    """Look into every file of the homes and of the nodes' Ray, its logs among them."""
    folders = [*homes, *(p for p in Path("/tmp").glob("ray-*") if p.is_dir())]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 50
    for path in files:
        with suppress(FileNotFoundError):  # of another cluster
            assert SECRET.encode() not in path.read_bytes(), path
