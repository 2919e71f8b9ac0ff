"""The README's recipe of a team server, and eight jobs that log to it at once."""

import os
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import boto3
import pytest
import torch
from mlflow import MlflowClient

from ganray.integrations import mlflow_models, mlflow_runs
from ganray.integrations.mlflow_registry import register
from ganray.training.state import generator_from_checkpoint
from tests.commands.test_train import TINY
from tests.conftest import load_job
from tests.integrations.servers import free_port, serve

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]

README = Path(__file__).parents[2] / "ganray/integrations/README.md"
BINARIES = [str(path) for path in Path("/usr/lib/postgresql").glob("*/bin")]
JOBS = 8
SECRETS = {
    name: f"{name.lower()}-0123456789"
    for name in (
        "PGPASSWORD",
        "MLFLOW_AUTH_ADMIN_PASSWORD",
        "MLFLOW_FLASK_SERVER_SECRET_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "ANN_PASSWORD",
    )
}
ENVIRONMENT = SECRETS | {"AWS_ACCESS_KEY_ID": "mlflow"}


def recipe(folder: Path, ports: dict[str, int]) -> list[str]:
    """Return the README's blocks of commands, with this folder and these ports."""
    text = README.read_text().partition("### A team server")[2]
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    for old, new in {"/srv/mlflow": folder, **ports}.items():
        assert any(old in block for block in blocks), old
        blocks = [block.replace(old, str(new)) for block in blocks]
    return [f"set -e\n{block}" for block in blocks]


@pytest.fixture(scope="module")
def server():
    """Address and folder of a server that was started by the README's commands."""
    pytest.importorskip("psycopg", reason="pip install -e .[server]")
    pytest.importorskip("flask_wtf", reason="pip install -e .[server]")
    path = os.pathsep.join([os.environ["PATH"], *BINARIES])
    if not shutil.which("postgres", path=path):
        pytest.skip("no postgres; apt-get install -y postgresql")
    folder = Path(tempfile.mkdtemp())  # PostgreSQL's user cannot enter pytest's
    user = []
    if os.geteuid() == 0:  # whom PostgreSQL refuses
        shutil.chown(folder, "postgres")
        user = ["runuser", "-u", "postgres", "--"]
    ports = {name: free_port() for name in ("5433", "9000", "5000")}
    databases, start, add_user = recipe(folder, ports)
    url = f"http://127.0.0.1:{ports['5000']}"
    run = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder}
    try:
        subprocess.run([*user, "bash", "-c", databases], env=os.environ | ENVIRONMENT, **run)
        log = folder / "server.log"
        with serve(["bash", "-c", start], f"{url}/health", log, **ENVIRONMENT):
            subprocess.run(["bash", "-c", add_user], env=os.environ | ENVIRONMENT, **run)
            yield url, folder, f"http://127.0.0.1:{ports['9000']}"
    finally:
        stop = ["pg_ctl", "-D", str(folder / "db"), "-m", "fast", "stop"]
        subprocess.run([*user, *stop], env=os.environ | {"PATH": path}, check=False, cwd=folder)
        shutil.rmtree(folder)


def log_in(name: str = "ann", password: str = SECRETS["ANN_PASSWORD"]) -> None:
    os.environ |= {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}


def run_job(home: Path, squares: Path, url: str, name: str) -> None:
    log_in()
    options = {"--name": name, "--home": home, "--data.root": squares, "--tracking.uri": url}
    words = [str(word) for option in options.items() for word in option]
    load_job("celeba").main([*TINY, *words, "--tracking.patience", "300"])


def test_eight_jobs_at_once_are_complete_and_leave_no_password(
    server, squares, tmp_path, forkserver, monkeypatch
):
    url, folder, s3 = server
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # restored at the end, whatever `log_in` sets
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    names = [f"job{i}" for i in range(JOBS)]
    jobs = [
        forkserver.Process(target=run_job, args=(tmp_path, squares, url, name)) for name in names
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0] * JOBS

    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{url}/api/2.0/mlflow/experiments/search?max_results=1")
    log_in()
    client = MlflowClient(tracking_uri=url)
    experiment = client.get_experiment_by_name("celeba")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == names
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        assert [m.step for m in client.get_metric_history(run.info.run_id, "loss/D")] == [60, 120]
        assert [output.step for output in run.outputs.model_outputs] == [120]

    keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}
    files = boto3.client("s3", endpoint_url=s3, **keys).list_objects_v2(Bucket="mlflow")["Contents"]
    assert sum(file["Key"].endswith("/state.pt") for file in files) == JOBS

    first, config = mlflow_runs.get_run(url, runs[0].info.run_id)
    model = mlflow_models.newest_generator(first)
    assert register(first, model, "faces", 0.5, {}) == (
        "models:/faces/1 has coverage 0.5 and is @best"
    )
    loaded = mlflow_models.load_generator(url, "models:/faces@best")
    (checkpoint,) = config.run_folder().glob("checkpoint_*10")
    z = torch.randn(2, config.latent.size)
    assert torch.equal(loaded.G(z), generator_from_checkpoint(checkpoint)(z))

    written = [path for root in (tmp_path, folder) for path in root.rglob("*") if path.is_file()]
    content = [path.read_bytes() for path in written]
    content += [repr(run.to_dictionary()).encode() for run in runs]
    assert any(b"scram-sha-256" in text.lower() for text in content)  # the database was read, too
    for secret in SECRETS.values():
        assert not any(secret.encode() in text for text in content), secret
