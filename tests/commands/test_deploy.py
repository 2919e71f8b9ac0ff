"""Printed manifests and scripts: their fields, their quoting, what they refuse."""

import json
import os
import re
import shlex
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ganray.commands import main
from ganray.commands.deploy import TEMPLATES, render
from ganray.config.commands import DeployConfig
from ganray.errors import UserError
from tests.conftest import wait_until
from tests.integrations.servers import free_port

STORES = {"rayjob": "shared", "slurm": "/scratch/ganray"}

# Fields of KubeRay's API ray.io/v1, as its reference lists them for version 1.6. KubeRay refuses
# manifests with others.
RAY_JOB = {"apiVersion", "kind", "metadata", "spec"}
RAY_JOB_SPEC = {
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint",
    "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy",
    "metadata", "preRunningDeadlineSeconds", "rayClusterSpec", "runtimeEnvYAML",
    "shutdownAfterJobFinishes", "submissionMode", "submitterConfig", "submitterPodTemplate",
    "suspend", "ttlSecondsAfterFinished",
}  # fmt: skip
RAY_CLUSTER_SPEC = {
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions",
    "headGroupSpec", "headServiceAnnotations", "managedBy", "rayVersion", "suspend",
    "upgradeStrategy", "workerGroupSpecs",
}  # fmt: skip
HEAD_GROUP_SPEC = {
    "enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType",
    "template",
}  # fmt: skip
WORKER_GROUP_SPEC = {
    "groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts",
    "rayStartParams", "replicas", "resources", "scaleStrategy", "suspend", "template",
}  # fmt: skip
POD_SPEC = {"securityContext", "tolerations", "containers", "volumes"}  # those that we use
CONTAINER = {"name", "image", "env", "envFrom", "resources", "volumeMounts"}


def options(target, **given):
    values = {"image": "r.io/ganray", "storage": STORES[target], "tracking_uri": "http://m:5000"}
    return DeployConfig(target=target, **(values | given))


def manifest(**given):
    return yaml.safe_load(render(options("rayjob", **given)))


def test_the_manifest_has_only_fields_that_kuberay_documents():
    job = manifest()
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(job) <= RAY_JOB
    assert set(job["spec"]) <= RAY_JOB_SPEC
    cluster = job["spec"]["rayClusterSpec"]
    assert set(cluster) <= RAY_CLUSTER_SPEC
    assert {"headGroupSpec", "rayVersion"} <= set(cluster)
    assert cluster["authOptions"] == {"mode": "token"}
    assert set(cluster["headGroupSpec"]) <= HEAD_GROUP_SPEC
    (group,) = cluster["workerGroupSpecs"]
    assert set(group) <= WORKER_GROUP_SPEC
    for pod in (cluster["headGroupSpec"]["template"], group["template"]):
        assert set(pod["spec"]) <= POD_SPEC
        (container,) = pod["spec"]["containers"]
        assert set(container) == CONTAINER
        assert {mount["name"] for mount in container["volumeMounts"]} == {
            volume["name"] for volume in pod["spec"]["volumes"]
        }


def test_the_manifest_is_filled_in():
    job = manifest(job="celeba dcgan64 --train.kimg 100", name="long", nodes=3, gpus=4, cpus=16)
    assert job["metadata"]["name"] == "long"
    spec = job["spec"]
    assert spec["entrypoint"] == "ganray celeba dcgan64 --train.kimg 100 --name long"
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert [group[key] for key in ("replicas", "minReplicas", "maxReplicas")] == [3] * 3
    (container,) = group["template"]["spec"]["containers"]
    assert container["image"] == "r.io/ganray"
    size = {"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": "4"}
    assert container["resources"] == {"requests": size, "limits": size}
    env = {variable["name"]: variable["value"] for variable in container["env"]}
    assert env["GANRAY_HOME"].startswith(container["volumeMounts"][0]["mountPath"])
    assert env["MLFLOW_TRACKING_URI"] == "http://m:5000"
    (volume,) = group["template"]["spec"]["volumes"]
    assert volume["persistentVolumeClaim"] == {"claimName": "shared"}


def test_nodes_without_a_common_disk_have_a_storage():
    job = manifest(storage="s3://bucket/ganray")
    cluster = job["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"]]
    for pod in pods:
        assert set(pod["spec"]) == POD_SPEC - {"volumes"} - ({"tolerations"} - set(pod["spec"]))
        (container,) = pod["spec"]["containers"]
        assert set(container) == CONTAINER - {"volumeMounts"}
    (driver,) = pods[0]["spec"]["containers"]
    assert {"name": "GANRAY_STORAGE", "value": "s3://bucket/ganray"} in driver["env"]
    with pytest.raises(UserError, match="PersistentVolumeClaim, or a URL"):
        manifest(storage="S3//bucket")


def test_pods_without_gpus_see_none():
    for gpus in (0, 4):
        cluster = manifest(gpus=gpus)["spec"]["rayClusterSpec"]
        assert cluster["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"
        pods = [cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"]]
        hidden = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}
        seen = [hidden not in pod["spec"]["containers"][0]["env"] for pod in pods]
        assert seen == [False, gpus > 0]
    assert "ENV" not in (TEMPLATES / "Dockerfile").read_text()


def test_a_failed_job_makes_no_second_cluster():
    assert manifest()["spec"]["backoffLimit"] == 0


def test_without_gpus_none_are_asked_for():
    assert "nvidia" not in render(options("rayjob", gpus=0))
    assert "gpu" not in render(options("slurm", gpus=0, image=None)).partition("set -euo")[2]


@pytest.mark.parametrize(
    "job",
    [
        "celeba --data.root '/data/it\"s: here # {{ gpus }}'",
        "celeba --data.root '/a; touch /tmp/x $(id) `id`'",
        "celeba --data.root '/a\n- x: y'",
        "celeba --data.root '/\N{GRINNING FACE}/\N{LATIN SMALL LETTER E WITH ACUTE}'",
    ],
)
def test_a_job_reaches_its_program_as_it_was_given(job, tmp_path):
    words = ["ganray", *shlex.split(job), "--name", "faces"]
    assert shlex.split(manifest(job=job)["spec"]["entrypoint"]) == words
    assert run_slurm(tmp_path, options("slurm", job=job, storage=str(tmp_path / "home"))) == 0
    assert calls(tmp_path, "ganray-n1")[0] == words[1:]


@pytest.mark.parametrize("target", ["rayjob", "slurm"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tracking_uri": None}, "--tracking_uri is missing"),
        ({"storage": None}, "--storage is missing"),
        ({"storage": "a b"}, r"--storage=a b must be"),
        ({"storage": "/a:/b"}, r"--storage=/a:/b must be"),
        ({"tracking_uri": "http://me:secret@m:5000"}, "contains a password"),
        ({"tracking_uri": "http://m:5000/?token=abc"}, "contains a password or token"),
        ({"tracking_uri": "http://m:5000/?x=abc"}, "must be an address .* without a query"),
        ({"tracking_uri": "m:5000"}, "must be an address"),
        ({"job": "celeba --data.root s3://k:secret@b/c"}, "contains a password"),
        ({"job": "celeba --data.root 'https://b/c?X-Amz-Signature=abc'"}, "contains a password"),
        ({"job": "celeba --data.root '/a\x85b'"}, "must contain no control characters"),
        ({"job": "rm -rf /"}, "begin with one of celeba, mnist, sweep"),
        ({"job": "celeba 'x"}, "No closing quotation"),
        ({"job": "celeba --train.kmig 9"}, "--train.kmig is not an option"),
        ({"job": "mnist dcgan64"}, "preset=dcgan64"),
        ({"job": "celeba --train.batch_size 0"}, "batch_size=0 must be"),
        ({"job": "sweep --sweep.axis latent.sise=1,10"}, "latent.sise"),
        ({"job": "sweep --sweep.seeds many"}, "sweep.seeds=many must be a whole number"),
        ({"job": "celeba --home /x"}, "leave out --home; use --storage"),
        ({"job": "celeba --storage /x"}, "leave out --storage; use --storage of this command"),
        ({"name": "Faces"}, "--name=Faces must be lower-case"),
        ({"name": "x\n#SBATCH --uid=0"}, "must be lower-case"),
        ({"image": "a b"}, "--image=a b must be an image"),
        ({"image": "--x"}, "--image=--x must be an image"),
    ],
)
def test_what_cannot_work_is_refused(target, given, message):
    with pytest.raises(UserError, match=message):
        render(options(target, **given))


def test_kubernetes_needs_an_image_and_slurm_does_not():
    with pytest.raises(UserError, match="--image is missing: rayjob needs it"):
        manifest(image=None)
    assert "container" not in render(options("slurm", image=None))


def test_the_command_prints_nothing_but_the_file(capsys, monkeypatch):
    argv = ["deploy", "slurm", "--storage", "/s", "--tracking-uri", "http://m:5000"]
    monkeypatch.setattr(sys, "argv", ["ganray", *argv])  # which _dispatch changes
    main._dispatch(argv)
    expected = render(options("slurm", image=None, storage="/s"))
    assert capsys.readouterr().out == expected
    assert expected.startswith("#!/usr/bin/env bash\n")


def stand_in(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
    (folder / name).chmod(0o755)


RAY = """
if [ $SLURMD_NODENAME = n1 ]; then
  while [ "$1" != -- ]; do shift; done
  shift
  "$@"
fi
"""


def run_slurm(folder: Path, given: DeployConfig, ray: str = RAY) -> int:
    """Run the script as Slurm would, on nodes n1 and n2; return its exit code.

    srun starts a command once for each node and writes its options to the file `srun`. Ray and
    ganray write their arguments and environment to the files `ray-NODE` and `ganray-n1`.
    """
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    stand_in(programs, "scontrol", '[ "$*" = "show hostnames n[1-2]" ] && printf "n1\\nn2\\n"')
    stand_in(programs, "hostname", '[ "$*" = --all-ip-addresses ] && echo "192.0.2.1 172.17.0.1 "')
    stand_in(
        programs,
        "srun",
        'options=; while [[ $1 == --* ]]; do options+="$1 "; shift; done\n'
        'echo "$options$1" >>$OUT/srun; nodes="n1 n2"\n'
        "[[ $options != *--nodelist=n1* ]] || nodes=n1\n"
        'for node in $nodes; do SLURMD_NODENAME=$node "$@" || exit; done',
    )
    dump = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
    for name, script in {"ray": ray, "ganray": ""}.items():
        record = f'python3 -c {shlex.quote(dump)} "$@" >$OUT/{name}-$SLURMD_NODENAME'
        stand_in(programs, name, f"{record}\n{script}")
    env = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "OUT": str(folder),
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_ID": "7",
    }
    return subprocess.run(["bash", "-c", render(given)], env=env, cwd=folder).returncode


def calls(folder: Path, name: str) -> tuple[list[str], dict[str, str]]:
    """Return arguments and environment of a program, such as ray-n2."""
    return tuple(json.loads((folder / name).read_text()))


def test_slurm_starts_one_ray_on_all_nodes_with_a_token_of_the_job(tmp_path):
    tokens = set()
    home = tmp_path / "home"
    given = options("slurm", nodes=2, gpus=8, cpus=64, storage=str(home))
    for _ in range(2):
        assert run_slurm(tmp_path, given) == 0
        arguments, second = calls(tmp_path, "ray-n2")
        assert arguments[: arguments.index("--")] == shlex.split(
            "symmetric-run --address 192.0.2.1:6379 --min-nodes 2 --num-cpus 64"
            " --disable-usage-stats"
        )
        first = calls(tmp_path, "ray-n1")[1]
        assert first["RAY_AUTH_TOKEN"] == second["RAY_AUTH_TOKEN"]
        assert second["RAY_AUTH_MODE"] == "token"
        assert second["GANRAY_RAY__ADDRESS"] == "192.0.2.1:6379"
        assert second["GANRAY_HOME"] == str(home)
        assert second["MLFLOW_TRACKING_URI"] == "http://m:5000"
        assert second["NVIDIA_VISIBLE_DEVICES"] == "all"  # without it Pyxis shows a container none
        assert calls(tmp_path, "ganray-n1")[0] == ["celeba", "--name", "faces"]
        tokens.add(second["RAY_AUTH_TOKEN"])
    assert all(re.fullmatch("[0-9a-f]{64}", token) for token in tokens)
    assert len(tokens) == 2
    assert not list(home.iterdir())
    step = (tmp_path / "srun").read_text().splitlines()[-1]
    assert {"--cpus-per-task=64", "--container-image=r.io#ganray"} <= set(step.split())
    assert f"--container-mounts={home}:{home}" in step


def test_slurm_reads_the_options_of_the_job():
    header = render(options("slurm", nodes=2, gpus=8, cpus=64, name="big"))
    given = re.findall(r"^#SBATCH --(\S+)$", header, re.M)
    assert {"nodes=2", "gpus-per-node=8", "cpus-per-task=64", "ntasks-per-node=1"} <= set(given)
    assert {"job-name=big", "exclusive", "requeue"} <= set(given)


@pytest.mark.parametrize(
    ("ray", "code"),
    [("exit 7", 7), ("exit 0", 1)],  # symmetric-run exits with 0 if Ray does not start
    ids=["the job fails", "Ray does not start"],
)
def test_slurm_fails_where_the_job_or_ray_fails(tmp_path, ray, code):
    assert run_slurm(tmp_path, options("slurm", storage=str(tmp_path / "home")), ray) == code


@pytest.mark.parametrize(
    ("image", "of_pyxis"),
    [
        ("ganray:1", "ganray:1"),
        ("me/ganray", "me/ganray"),
        ("registry.example.com/team/ganray:1", "registry.example.com#team/ganray:1"),
        ("localhost:5000/ganray", "localhost:5000#ganray"),
        ("me@registry.example.com#ganray", "me@registry.example.com#ganray"),
        ("/scratch/ganray.sqsh", "/scratch/ganray.sqsh"),
    ],
)
def test_slurm_names_the_image_as_pyxis_does(image, of_pyxis):
    script = render(options("slurm", image=image))
    assert f"--container-image={shlex.quote(of_pyxis)} " in script


def test_the_image_copies_what_exists_and_what_is_not_ignored():
    root = TEMPLATES.parents[2]
    copied = re.findall(
        r"^COPY --chown=\S+ (.*) \S+$", (TEMPLATES / "Dockerfile").read_text(), re.M
    )
    allowed = re.findall(r"^!(.*)$", (TEMPLATES / "Dockerfile.dockerignore").read_text(), re.M)
    for source in " ".join(copied).split():
        assert (root / source).exists()
        assert source.partition("/")[0] in allowed


SERVER = """
import http.server, pathlib, sqlite3, sys, threading, time
option = dict(zip(sys.argv[2::2], sys.argv[3::2]))
store = sqlite3.connect(option["--backend-store-uri"].removeprefix("sqlite:///"))
store.execute("create table if not exists runs (name)")
print(store.execute("select * from runs").fetchall(), flush=True)
store.execute("insert into runs values ('faces')")
store.commit()

class Health(http.server.BaseHTTPRequestHandler):
    log_message = lambda *_: None

    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

server = http.server.HTTPServer((option["--host"], int(option["--port"])), Health)
threading.Thread(target=server.serve_forever, daemon=True).start()
while not pathlib.Path("stop").exists():
    time.sleep(0.05)
"""


@pytest.fixture
def start_server(tmp_path):
    """A function that starts a stand-in for MLflow, which writes into its store, on a new head.

    It prints what it finds there. `cp` copies half of a file and fails, if there is a file `full`.
    """
    (tmp_path / "mlflow.py").write_text(SERVER)
    stand_in(tmp_path, "mlflow", f'exec python3 {tmp_path}/mlflow.py "$@"')
    stand_in(tmp_path, "sleep", f"[ ! -e {tmp_path}/stop ] && exec /bin/sleep 0.05")
    stand_in(
        tmp_path,
        "cp",
        f'[ -e {tmp_path}/full ] || exec /bin/cp "$@"\n'
        f'echo >>{tmp_path}/full; head -c 100 "$1" >"$2"; exit 1',
    )
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def start(head, port):
        script = (TEMPLATES / "mlflow-server.sh").read_text().replace("5000", str(port))
        command = ["bash", "-c", script, "mlflow-server.sh", tmp_path / head, tmp_path / "shared"]
        return subprocess.run(command, env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    yield start
    (tmp_path / "stop").touch()


def names_in(backup):
    return sqlite3.connect(backup).execute("select name from runs").fetchall()


def test_a_new_head_gets_the_copy_of_the_mlflow_store(tmp_path, start_server):
    backup, port = tmp_path / "shared" / "mlflow-backup.db", free_port()
    assert start_server("one", port).returncode == 0
    wait_until(lambda: backup.exists() and names_in(backup))
    start_server("one", port)  # does nothing, as the server runs
    assert (tmp_path / "one" / "server.log").read_text() == "[]\n"
    assert start_server("two", free_port()).returncode == 0
    assert (tmp_path / "two" / "server.log").read_text() == "[('faces',)]\n"


def test_a_copy_that_fails_leaves_the_last_one(tmp_path, start_server):
    backup = tmp_path / "shared" / "mlflow-backup.db"
    start_server("one", free_port())
    previous = backup.with_name("mlflow-backup.db.previous")
    wait_until(previous.exists)
    (tmp_path / "full").touch()
    wait_until(lambda: (tmp_path / "full").stat().st_size > 1)  # the first failure is dealt with
    assert names_in(backup) == names_in(previous) == [("faces",)]


def test_an_mlflow_server_that_has_ended_is_started_again(tmp_path, start_server):
    port = free_port()
    start_server("one", port)
    (tmp_path / "stop").touch()
    wait_until(lambda: flock_is_free(tmp_path / "one" / "lock"))
    (tmp_path / "stop").unlink()
    assert start_server("one", port).returncode == 0
    assert (tmp_path / "one" / "server.log").read_text() == "[('faces',)]\n"


def flock_is_free(path):
    return subprocess.run(["flock", "--nonblock", path, "true"]).returncode == 0


def test_an_mlflow_server_that_does_not_start_is_an_error_with_the_end_of_its_log(
    tmp_path, start_server
):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))  # and does not answer
        done = start_server("one", other.getsockname()[1])
    assert done.returncode == 1
    assert "server.log:\nTraceback" not in done.stderr  # the end only
    assert "Address already in use" in done.stderr
