"""`mlflow models serve` answers latents with images."""

import json
import sys
import urllib.request

import torch

from ganray.integrations import mlflow_runs
from ganray.training.state import generator_from_checkpoint
from tests.integrations.servers import free_port, serve


def test_a_served_generator_answers_latents_with_images(trained_run, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = mlflow_runs.store_uri(trained_run.config)
    url, z = f"http://127.0.0.1:{(port := free_port())}", torch.randn(3, 8)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", trained_run.model_uri]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    with serve(command, f"{url}/ping", tmp_path / "log", MLFLOW_TRACKING_URI=store):
        body = json.dumps({"inputs": z.tolist()}).encode()
        request = urllib.request.Request(
            f"{url}/invocations", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            images = torch.tensor(json.load(answer)["predictions"])
    torch.testing.assert_close(images, generator_from_checkpoint(trained_run.checkpoint)(z))
