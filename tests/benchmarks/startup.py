"""Measure the phases of a short job, from its start to its first line of training and to its end.

    python -m tests.benchmarks.startup [--repeats 3] [--launchers ray torch] [-- JOB ARGUMENTS]

Runs a job again and again, the first time to prepare images and classifier, and prints the seconds
of each phase of the later runs (median), read off the lines that the job prints.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENDS = {
    "plan": r"^run +",
    "workers start": r"training on \d+ worker",
    "first line": r"^ *[\d.]+ / [\d.]+ kimg",
    "report": r"^diagnosis",
}
"""Phases and the line that ends each; training ends with its last line."""


def main() -> None:
    """Print a table of the phases of each launcher."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--launchers", nargs="+", default=["ray", "torch"])
    parser.add_argument("job", nargs="*", default=["celeba.py", "cpu32"])
    options = parser.parse_args()
    phases = ["plan", "workers start", "first line", "training", "report", "end", "total"]
    print(f"{' '.join(options.job)}, seconds\n{'':8s}" + "".join(f"{p:>15s}" for p in phases))
    with tempfile.TemporaryDirectory() as home:
        for launcher in options.launchers:
            command = [*options.job, "--launcher", launcher]
            runs = [phases_of(command, Path(home)) for _ in range(options.repeats + 1)][1:]
            medians = [statistics.median(run[phase] for run in runs) for phase in phases]
            print(f"{launcher:8s}" + "".join(f"{m:15.1f}" for m in medians), flush=True)


def phases_of(job: list[str], home: Path) -> dict[str, float]:
    """Run a job and return the seconds of its phases."""
    script, *arguments = job
    command = [sys.executable, str(ROOT / "jobs" / script), *arguments]
    environment = os.environ | {"GANRAY_HOME": str(home), "PYTHONPATH": str(ROOT)}
    ends: dict[str, float] = {}
    start = last_line = time.perf_counter()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        output = []
        for line in process.stdout:
            now = time.perf_counter()
            output.append(line)
            for phase, pattern in ENDS.items():
                if re.search(pattern, line):
                    ends.setdefault(phase, now)
            if re.search(ENDS["first line"], line):
                last_line = now
    end = time.perf_counter()
    assert process.returncode == 0, "".join(output[-30:])
    ends["training"] = last_line
    order = ["plan", "workers start", "first line", "training", "report"]
    ends.setdefault("workers start", ends["plan"])  # without Ray nothing starts
    times = [start, *(ends[phase] for phase in order), end]
    seconds = {phase: times[i + 1] - times[i] for i, phase in enumerate([*order, "end"])}
    return seconds | {"total": end - start}


if __name__ == "__main__":
    main()
