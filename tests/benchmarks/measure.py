"""Run one variant in a process of its own, and measure it there.

Libraries change thread settings, allocators and signal handlers of the process they are in: FFCV,
DALI and numba in one process slow later variants down 5 to 60 times. The child is

    python -m tests.benchmarks.measure --variant "FFCV raw" --images '{...}' --result FILE ...

and its JSON goes to a file, because some peers print.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

from tests.benchmarks.images import BATCH, Images
from tests.benchmarks.variants import VARIANTS, Variant

ROOT = Path(__file__).parents[2]
QUIET = {
    "DALI_DISABLE_NVML": "1",
    "DO_NOT_TRACK": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "LITDATA_DISABLE_VERSION_CHECK": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""No peer reports its use, looks for a newer version of itself, or draws bars."""
WRITE_TIMEOUT, READ_TIMEOUT = 900, 180


@dataclass(frozen=True)
class Reading:
    """What one child measured."""

    rate: float
    """Images per second of wall time."""
    per_core: float
    """Images per second of CPU time, of the process and its descendants, user and system."""
    first_ms: float
    """From the first constructor call to the first batch."""
    anonymous: float
    """MiB of memory without a file behind it, beyond those before construction."""


def write_in_child(variant: Variant, images: Images, log: Path) -> str:
    """Write a variant's files; return why it cannot be done, or nothing."""
    return _run(variant, images, 0.0, log, WRITE_TIMEOUT).get("failed", "")


def measure_in_child(variant: Variant, images: Images, seconds: float, log: Path) -> Reading | str:
    """Measure a variant for about so long; return why it cannot be done instead, if so."""
    found = _run(variant, images, seconds, log, READ_TIMEOUT + seconds)
    return found["failed"] if "failed" in found else Reading(**found)


def _run(variant: Variant, images: Images, seconds: float, log: Path, timeout: float) -> dict:
    with tempfile.TemporaryDirectory() as folder, log.open("ab") as output:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "tests.benchmarks.measure", "--variant", variant.name]
        command += ["--images", json.dumps(asdict(images), default=str)]
        command += ["--seconds", str(seconds), "--result", str(result)]
        homes = {"HF_HOME": folder, "TMPDIR": folder}
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | QUIET | homes,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = child.wait(timeout)
        except subprocess.TimeoutExpired:
            return {"failed": f"not ready after {timeout:.0f} s"}
        finally:
            with contextlib.suppress(ProcessLookupError):  # workers that outlived it, too
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if not result.exists():
            return {"failed": f"ended with code {code}; see {log}"}
        return json.loads(result.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--images", required=True, type=json.loads)
    parser.add_argument("--seconds", required=True, type=float, help="0 writes the files")
    parser.add_argument("--result", required=True, type=Path)
    chosen = parser.parse_args()
    variant = next(v for v in VARIANTS if v.name == chosen.variant)
    images = Images(**chosen.images | {"folder": Path(chosen.images["folder"])})
    module = None
    try:
        module = importlib.import_module(f"tests.benchmarks.peers.{variant.module}")
        if chosen.seconds:
            found = asdict(_measure(variant, module, images, chosen.seconds))
        else:
            getattr(module, f"write_{variant.write}")(images)
            found = {}
    except Exception as error:
        traceback.print_exc()
        first, *_ = str(error).splitlines() or [""]
        found = {"failed": f"{type(error).__name__}: {first}"}
    chosen.result.write_text(json.dumps(found))
    if hasattr(module, "after"):
        module.after()


def _measure(variant: Variant, module: ModuleType, images: Images, seconds: float) -> Reading:
    import torch

    torch.set_num_threads(1)  # each peer has threads of its own where `threads` says so
    if variant.warm:
        _warm_page_cache(variant, images)
    before: Callable[[Images], None] = getattr(module, f"before_{variant.read}", lambda _: None)
    before(images)
    anonymous = _anonymous_bytes()
    began = time.perf_counter()
    batches: Iterator[torch.Tensor] = getattr(module, variant.read)(images, variant.threads)
    first = next(batches)
    first_s = time.perf_counter() - began
    _check(first, variant, images)
    del first

    epoch = images.count // BATCH * BATCH
    if variant.warm and not variant.whole_epoch:
        _read(batches, epoch, 0, seconds / 2)
    cpu, began = _cpu_seconds(), time.perf_counter()
    if variant.whole_epoch:  # from the second batch to the next epoch's first: one start
        seen = _read(batches, epoch, epoch, seconds)
    else:
        seen = _read(batches, sys.maxsize, 0, seconds)
    wall, cpu = time.perf_counter() - began, _cpu_seconds() - cpu
    return Reading(
        rate=seen / wall,
        per_core=seen / cpu,
        first_ms=1e3 * first_s,
        anonymous=(_anonymous_bytes() - anonymous) / 2**20,
    )


def _warm_page_cache(variant: Variant, images: Images) -> None:
    """Read all files of a variant, because its first batches need not touch them all."""
    if variant.write:
        root = images.at(f"{variant.module}-{variant.write}")
    else:
        root = images.jpeg_folder if variant.kind == "jpeg" else images.shards
    for path in [root, *root.rglob("*")]:
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(8 * 2**20):
                    pass


def _read(batches: Iterator, at_most: int, at_least: int, seconds: float) -> int:
    """Read until ``seconds`` are over; return how many images that were."""
    began, seen = time.perf_counter(), 0
    while seen < at_most and (seen < at_least or time.perf_counter() - began < seconds):
        batch = next(batches, None)
        if batch is None:
            break
        seen += len(batch)
    return seen


def _check(batch, variant: Variant, images: Images) -> None:
    """Refuse a variant that reads something else than the others."""
    import numpy as np
    import torch

    height, width, channels = images.shape
    shapes = [(height, width, channels), (channels, height, width)]
    rows = 1 if variant.kind == "book" else BATCH
    if batch.dtype != torch.uint8 or len(batch) != rows or tuple(batch.shape[1:]) not in shapes:
        raise ValueError(f"yields {batch.dtype} {tuple(batch.shape)}")
    if variant.kind != "jpeg":  # decoders differ by a few levels
        known = np.load(images.sums_file)[: images.count]
        if not np.isin(batch.flatten(1).sum(1).numpy(), known).all():
            raise ValueError("yields other pixels than the images have")


def _cpu_seconds() -> float:
    """CPU time of this process and all its descendants, those that ended included."""
    import psutil

    total = time.process_time() + sum(os.times()[2:4])
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += sum(child.cpu_times()[:4])
    return total


def _anonymous_bytes() -> int:
    """Anonymous memory of this process and its descendants.

    Proportional: a page that a forked worker shares with its parent counts once, not twice.
    """
    import psutil

    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss_Anon:"):
                    total += int(line.split()[1]) * 1024
    return total


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # some peers' threads never end
