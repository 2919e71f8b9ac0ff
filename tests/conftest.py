"""Fixtures: small shards, tiny configs, a temporary home folder."""

import importlib.util
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

# One thread: sums in another order differ in their last bits, and the launchers that
# test_parity compares give their workers one thread each. NumPy reads it when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image

from ganray import log
from ganray.config.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    LatentConfig,
    LossConfig,
    NetworkConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from ganray.data.writer import write_shards

REAL_MNIST = Path(__file__).parents[2] / "shared/data/mnist"
needs_mnist = pytest.mark.skipif(not REAL_MNIST.exists(), reason=f"no MNIST in {REAL_MNIST}")


@dataclass(frozen=True)
class Squares:
    """Image source: `count` 16x16 images of a bright square on a dark background."""

    count: int = 100
    name = "squares"
    image_shape = (16, 16, 3)
    class_names = ("small", "large")
    attribute_names = ("big",)

    def __len__(self) -> int:
        return self.count

    @property
    def ids(self) -> np.ndarray:
        return np.arange(self.count)

    @property
    def labels(self) -> np.ndarray:
        return np.arange(self.count) % 2

    @property
    def attributes(self) -> np.ndarray:
        return (np.arange(self.count) % 2).astype(np.uint8)[:, None]

    @property
    def split(self) -> np.ndarray:
        return np.zeros(self.count, np.uint8)

    def read(self, index: int) -> Image.Image:
        image = np.full(self.image_shape, 30, np.uint8)
        side = 9 if index % 2 else 4
        top, left = index % 5, index % 7
        image[top : top + side, left : left + side] = 130 + index % 120
        return Image.fromarray(image)

    def fingerprint(self) -> str:
        return f"{self.count:064d}"


@pytest.fixture
def ganray_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Capture ganray's log, also of other threads, whose lines `capsys.readouterr` may lose."""
    logger = logging.getLogger("ganray")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture(autouse=True)
def _logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print log records on stdout, as jobs do, for a terminal of 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")
    log.configure()


@pytest.fixture(autouse=True)
def _no_ray(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a fast test that starts Ray, which would go on into the tests after it."""
    yield
    cluster = sys.modules.get("ganray.integrations.ray_cluster")
    if cluster and not request.node.get_closest_marker("ray"):
        started = cluster._starting is not None or cluster.ray.is_initialized()
        assert not started, "starts Ray: add --dry_run or --launcher torch, or mark it `ray`"


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 64 and 36 images of 16x16x3. Read-only."""
    folder = tmp_path_factory.mktemp("squares") / "set"
    write_shards(Squares(), folder, rows_per_shard=64, processes=1)
    return folder


def tiny_config(home: Path, *, name: str = "tiny", kimg: float = 0.24, **train: object) -> Config:
    """DCGAN with R1 and a few thousand weights, for 20 steps of 12 images."""
    settings = {"batch_size": 12, "log_every": 0.06, "sample_every": 0.12, "checkpoint_every": 0.12}
    return Config(
        preset="tiny",
        name=name,
        home=home,
        data=DataConfig(size=16),
        latent=LatentConfig(size=8),
        network=NetworkConfig(width_G=4, width_D=4),
        loss=LossConfig(r1_gamma=0.1),
        optimizer=OptimizerConfig(lr_G=1e-3, lr_D=1e-3),
        train=replace(TrainConfig(kimg=kimg, ema_kimg=0.05), **(settings | train)),
        evaluation=EvaluationConfig(samples=0, report_samples=0),
    )


def regularized_config(home: Path, **train: object) -> Config:
    """Tiny config with all regularizers that several ranks support."""
    config = tiny_config(home, name="regularized", **({"batch_size": 16, "G_every": 2} | train))
    network = replace(config.network, pack=2, minibatch_stddev=2, spectral_norm=True)
    loss = replace(config.loss, gp_weight=1.0, penalty_every=3)
    return replace(config, network=network, loss=loss)


def augmented_config(home: Path) -> Config:
    """Tiny config with an adaptive augmentation, schedules, and gradients of parts of the batch."""
    config = tiny_config(home, name="augmented", microbatch=5)
    augment = AugmentConfig("ada", target=0.6, adapt_kimg=0.5)
    schedule = ScheduleConfig(lr_factor=0.1, beta2=0.9, gamma_factor=0.5, ema_kimg=0.02)
    return replace(config, augment=augment, schedule=schedule)


@dataclass(frozen=True)
class TrainedRun:
    """A trained run, logged to MLflow."""

    config: Config
    checkpoint: Path
    run_id: str
    model_uri: str


@pytest.fixture(scope="session")
def trained_run(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """Run of the tiny config on the squares, logged to MLflow in its home. Read-only."""
    from ganray.integrations import mlflow_models, mlflow_runs
    from ganray.training.launch import create_run_folder, launch

    config = tiny_config(tmp_path_factory.mktemp("trained"))
    create_run_folder(config)
    checkpoint = launch(config, str(squares))
    dataset = {"name": "squares", "digest": "0" * 16, "path": str(squares)}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run = mlflow_runs.open_run(config, dataset, {})
    uri = mlflow_models.log_generator(run, checkpoint)
    return TrainedRun(config, checkpoint, run.run_id, uri)


@pytest.fixture
def mount_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Function that mounts a file system of a size such as "1m"; skips the test if it may not."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("needs permission to mount a tmpfs")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for a condition; fail if it does not become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited for {seconds} s"
        time.sleep(0.02)


def load_job(name: str) -> ModuleType:
    """Import a file of jobs, which is not a package, as a module."""
    path = Path(__file__).parents[1] / "jobs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_job", path)
    assert spec is not None
    assert spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    return job


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Home folder that jobs use by default; no MLflow server or Ray cluster is configured."""
    monkeypatch.setenv("GANRAY_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path / "home"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Tiny config with a temporary home."""
    return tiny_config(tmp_path)


@pytest.fixture(scope="session")
def moto():
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def bucket(moto, monkeypatch):
    """Return a bucket on the S3 server, which the environment names from then on."""
    with s3_environment(moto, monkeypatch):
        yield "images"


@contextmanager
def s3_environment(moto, monkeypatch):
    """Set the environment of clients of the S3 server, which has a bucket `images`."""
    import boto3
    import s3fs

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    settings = {
        "ACCESS_KEY_ID": "nobody",
        "SECRET_ACCESS_KEY": "nothing",
        "DEFAULT_REGION": "us-east-1",
        "EC2_METADATA_DISABLED": "true",
        "SHARED_CREDENTIALS_FILE": "/nowhere",
        "CONFIG_FILE": "/nowhere",
        "ENDPOINT_URL": f"http://{moto[0]}:{moto[1]}",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    boto3.client("s3").create_bucket(Bucket="images")
    yield
    s3fs.S3FileSystem.clear_instance_cache()
