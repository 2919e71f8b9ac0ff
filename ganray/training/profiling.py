"""Record of some steps by torch's profiler."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from ganray.distributed import rank
from ganray.files import write_file
from ganray.training.run_folder import RunFolder

FOLDER = "profile"
"""Subfolder of the run folder with the trace and its summary."""
TRACE, SUMMARY = "trace.json.gz", "summary.txt"
_WAIT, _WARM_UP = 10, 2
"""Steps without the profiler, and with its first records discarded."""
_ROWS = 40


@contextmanager
def profile_steps(
    count: int, device: torch.device, folder: RunFolder
) -> Iterator[Callable[[], None]]:
    """Yield a function to call at the end of each step, which records `count` of them.

    A run that ends earlier leaves what was recorded until then. Only rank 0 records.
    """
    if not count or rank():
        yield lambda: None
        return

    def write(profiler: profile) -> None:
        with TemporaryDirectory() as temporary:
            profiler.export_chrome_trace(f"{temporary}/{TRACE}")
            folder.call(write_file, f"{FOLDER}/{TRACE}", Path(temporary, TRACE).read_bytes())
        order = f"self_{device.type}_time_total"
        table = profiler.key_averages().table(order, row_limit=_ROWS, max_name_column_width=80)
        folder.call(write_file, f"{FOLDER}/{SUMMARY}", table.encode())

    # Kineto prints its own steps, and an ERROR if there is no GPU.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    steps = schedule(wait=_WAIT, warmup=_WARM_UP, active=count, repeat=1)
    with profile(activities=activities, schedule=steps, on_trace_ready=write) as profiler:
        yield profiler.step


def profile_files(folder: Path) -> list[Path]:
    """Return the summary and the trace of a run; [] if it was not profiled."""
    return [p for name in (SUMMARY, TRACE) if (p := folder / FOLDER / name).exists()]
