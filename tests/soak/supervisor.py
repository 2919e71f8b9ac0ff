"""The supervisor of a soak test: starts the driver, injects faults, checks what is left."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from mlflow import MlflowClient

from ganray.training import journal
from ganray.training.checkpoints import list_checkpoints
from ganray.training.state import read_state
from tests.integrations.cluster import ROOT, environment
from tests.soak.proxy import Proxy, mlflow_behind_proxy
from tests.training.test_resume import states_equal

logger = logging.getLogger(__name__)

BATCH, LOG_EVERY = 12, 1_200
HANG_TIMEOUT_S, OUTAGE_S, DISK_S = 5, 15, 20
LONGEST_PAUSE_S, LEAST_FAULTS = 20.0, 3
OPTIONS = {
    "ray.workers": 2,
    "data.size": 16,
    "data.faces": 200,
    "latent.size": 8,
    "network.width_G": 4,
    "network.width_D": 4,
    "train.batch_size": BATCH,
    "train.log_every": LOG_EVERY / 1000,
    "train.sample_every": 12,
    "train.checkpoint_every": 2.4,
    "train.hang_timeout": HANG_TIMEOUT_S,
    "evaluation.samples": 0,
    "evaluation.report_samples": 0,
    "tracking.patience": 20,
}


@dataclass
class Job:
    """A training job of two workers that is started by the same command again and again."""

    home: Path
    launcher: str
    uri: str
    name: str = "soak"
    kimg: float = 1e6
    process: subprocess.Popen[bytes] | None = None
    codes: Counter[int] = field(default_factory=Counter)
    _family: list[psutil.Process] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.home / "runs" / self.name

    @property
    def log(self) -> Path:
        """Everything that the drivers print."""
        return self.home.with_name(f"{self.name}.log")

    def start(self) -> None:
        """Start the driver."""
        command = [sys.executable]
        if self.launcher == "torch":
            command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command += [str(ROOT / "jobs" / "celeba.py"), "cpu32", "--launcher", self.launcher]
        options = OPTIONS | {"train.kimg": self.kimg, "name": self.name, "tracking.uri": self.uri}
        command += [f"--{name}={value}" for name, value in options.items()]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env=environment(self.home, OMP_NUM_THREADS="1"),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def is_running(self) -> bool:
        """Return whether the driver runs; note its exit code if it has ended."""
        if self.process is None:
            return False
        with suppress(psutil.NoSuchProcess):
            self._family = psutil.Process(self.process.pid).children(recursive=True) or self._family
        code = self.process.poll()
        if code is not None:
            self.codes[code] += 1
            self.kill()
        return code is None

    def kill(self) -> None:
        """Kill the driver and all that it has started."""
        if self.process is None:
            return
        family = [*self._family, *session(self.process.pid)]  # torchrun's ranks lead sessions
        with suppress(psutil.NoSuchProcess):
            family += psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, 10)
        self.process.wait()
        self.process, self._family = None, []

    def workers(self) -> list[psutil.Process]:
        """Return the processes that train."""
        assert self.process is not None
        name = "RayTrainWorker" if self.launcher == "ray" else "celeba.py"
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if name in " ".join(child.cmdline())]

    def images(self) -> int:
        """Return the number of images at the last log line."""
        events = [event for event, _ in journal.read(self.folder) if event["name"] == "metrics"]
        return events[-1]["images"] if events else 0


def session(leader: int) -> list[psutil.Process]:
    """Return the living processes of a session."""
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill_worker(job: Job, rng: random.Random, _: Proxy) -> None:
    """Kill a worker: out of memory, or a lost node."""
    rng.choice(job.workers()).kill()


def stop_worker(job: Job, rng: random.Random, _: Proxy) -> None:
    """Stop a worker without ending it: a dead network, or a stuck disk."""
    rng.choice(job.workers()).suspend()
    wait_until(lambda: not job.is_running() or "no longer answers" in job_text(job), 60)


def kill_driver(job: Job, _: random.Random, __: Proxy) -> None:
    """Kill the driver with its workers: a lost head node."""
    job.kill()


def terminate_driver(job: Job, _: random.Random, __: Proxy) -> None:
    """Stop the driver as `ray job stop` does: SIGKILL 3 s after SIGTERM."""
    assert job.process is not None
    job.process.terminate()
    wait_until(lambda: not job.is_running(), 3, required=False)
    job.kill()


def fill_disk(job: Job, _: random.Random, __: Proxy) -> None:
    """Fill the disk for a while."""
    ballast = job.home / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))
    wait_until(lambda: not job.is_running(), DISK_S, required=False)
    ballast.unlink()


def fail_mlflow(_: Job, __: random.Random, proxy: Proxy) -> None:
    """Let MLflow answer every request with status 500 for a while."""
    proxy.fails = True
    time.sleep(OUTAGE_S)
    proxy.fails = False


def spoil_checkpoint(job: Job, rng: random.Random, _: Proxy) -> None:
    """Kill the driver and flip a bit of the newest checkpoint."""
    job.kill()
    checkpoints = list_checkpoints(job.folder)
    if len(checkpoints) > 1:
        path = checkpoints[-1] / "state.pt"
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)


Fault = Callable[[Job, random.Random, Proxy], None]
FAULTS: tuple[Fault, ...] = (
    kill_worker,
    stop_worker,
    kill_driver,
    terminate_driver,
    fill_disk,
    fail_mlflow,
    spoil_checkpoint,
)


def job_text(job: Job) -> str:
    """Return error.txt of the run, which names ranks that hang."""
    path = job.folder / "error.txt"
    return path.read_text() if path.exists() else ""


def wait_until(condition: Callable[[], bool], timeout_s: float, *, required: bool = True) -> bool:
    """Wait for a condition; raise AssertionError if it is required and does not become true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            assert not required, f"{condition} is not true after {timeout_s} s"
            return False
        time.sleep(0.1)
    return True


def soak(
    folder: Path,
    minutes: float,
    launcher: str,
    seed: int = 0,
    names: Sequence[str] = (),
    longest_pause_s: float = LONGEST_PAUSE_S,
) -> str:
    """Run the soak test in a folder and return a report; with these faults only if some are named.

    `longest_pause_s` is the longest time between the start of training and the next fault.

    Raises:
        AssertionError: Something was lost, doubled, leaked, or did not go on.
    """
    rng, before = random.Random(seed), set(Path("/dev/shm").iterdir())
    with small_disk(folder / "home") as is_small, mlflow_behind_proxy(folder / "mlflow") as proxy:
        job = Job(folder / "home", launcher, proxy.url)
        faults = [fault for fault in FAULTS if fault.__name__ in names or not names]
        faults = [fault for fault in faults if is_small or fault is not fill_disk]
        injected = disturb(job, proxy, faults, rng, minutes * 60, longest_pause_s)
        job.kimg = (job.images() // LOG_EVERY + 2) * LOG_EVERY / 1000
        for _ in range(3):  # the first may end with code 3, or resume past a spoilt checkpoint
            job.start()
            wait_until(lambda: not job.is_running(), 600)
            if job.codes[0]:
                break
        assert job.codes[0], f"{dict(job.codes)}: {job.log.read_text()[-3000:]}"
        reference = Job(folder / "home", "torch", proxy.url, "reference", job.kimg)
        slopes = undisturbed(reference)
        compare(job, reference, proxy)
    left = {path for path in Path("/dev/shm").iterdir() if path not in before}
    assert not left, f"shared memory is left: {left}"
    lines = [f"{minutes:g} minutes, launcher {launcher}, seed {seed}: {job.kimg:g} kimg"]
    lines += [f"faults: {sum(injected.values())} ({format_counts(injected)})"]
    lines += [f"exit codes of the drivers: {dict(sorted(job.codes.items()))}"]
    lines += [f"requests that MLflow rejected: {proxy.rejected}", *slopes]
    lines += ["weights equal bit for bit; journal and MLflow complete, each point once"]
    return "\n".join(lines)


def format_counts(counts: Counter[str]) -> str:
    """Return e.g. "kill_driver 3, kill_worker 2"."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount 64 MiB of memory at the folder; yield whether that was permitted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def disturb(
    job: Job,
    proxy: Proxy,
    faults: list[Fault],
    rng: random.Random,
    seconds: float,
    longest_pause_s: float,
) -> Counter[str]:
    """Run the job and inject faults until the time is over, at least a few; return their counts."""
    injected: Counter[str] = Counter()
    end, order = time.monotonic() + seconds, []
    while time.monotonic() < end or sum(injected.values()) < LEAST_FAULTS:
        images = job.images()
        deadline = time.monotonic() + 300
        while job.images() <= images:
            if not job.is_running():
                # torchrun ends with 1 whatever the exit codes of the ranks are.
                has_bug = job.codes[1] and job.launcher == "ray"
                assert not has_bug, f"a driver ended with a bug: {job.log.read_text()[-3000:]}"
                job.start()
            assert time.monotonic() < deadline, f"no progress: {job.log.read_text()[-3000:]}"
            time.sleep(0.5)
        time.sleep(rng.uniform(0, longest_pause_s))
        if not job.is_running():
            continue
        if not order:  # all of them, in another order each time
            order = rng.sample(faults, len(faults))
        fault = order.pop()
        logger.info("%7.1f kimg: %s", job.images() / 1000, fault.__name__)
        with suppress(psutil.NoSuchProcess, IndexError):  # it is restarting
            fault(job, rng, proxy)
            injected[fault.__name__] += 1
    job.kill()
    return injected


def undisturbed(job: Job) -> list[str]:
    """Run a job to its end; return how memory and open files of its processes grow."""
    job.start()
    samples: dict[int, list[tuple[float, int, int]]] = {}
    while job.is_running():
        with suppress(psutil.NoSuchProcess):
            for worker in job.workers():
                values = time.monotonic(), worker.memory_info().rss, worker.num_fds()
                samples.setdefault(worker.pid, []).append(values)
        time.sleep(1)
    assert job.codes[0], job.log.read_text()[-3000:]
    lines = []
    for number, values in enumerate(samples.values()):
        times, memory, files = np.array(values[len(values) // 4 :]).T  # after the start
        slope = np.polyfit(times - times[0], memory / 2**20, 1)[0] * 3600 if len(times) > 9 else 0
        lines.append(
            f"undisturbed, process {number}, {times[-1] - times[0]:.0f} s: memory"
            f" {memory[0] / 2**20:.0f} -> {memory[-1] / 2**20:.0f} MiB ({slope:+.0f} MiB/h),"
            f" open files {files[0]:.0f} -> {files[-1]:.0f}"
        )
    return lines


def compare(job: Job, reference: Job, proxy: Proxy) -> None:
    """Check weights, journal, MLflow and what is left over."""
    state, expected = (read_state(list_checkpoints(one.folder)[-1]) for one in (job, reference))
    assert states_equal(state, expected), "the weights differ from those of the uninterrupted run"
    events = [event for event, _ in journal.read(job.folder) if event["name"] == "metrics"]
    steps = list(range(LOG_EVERY, int(job.kimg * 1000) + 1, LOG_EVERY))
    assert [event["images"] for event in events] == steps
    client = MlflowClient(proxy.url)
    experiment = client.get_experiment_by_name("celeba")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "tags.`ganray.name` = 'soak'")
    assert run.info.status == "FINISHED", run.info.status
    for name in ("loss/D", "loss/G"):
        points = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        assert sorted(points) == [(event["images"], event["values"][name]) for event in events]
    leftovers = [path for path in job.folder.rglob("*.part")]
    assert not leftovers, leftovers
    assert not (job.folder / "driver.json").exists()
