"""Read 100,000 spoilt files: shards, manifests, lists, journals, checkpoints, configs, plans.

    python -m tests.benchmarks.fuzz [--inputs 100000] [--first-seed 0]

Each reader runs in a process of its own with at most 4 GiB of memory, and is given 10 seconds per
file. Prints a line per target, and every failure with the seed that repeats it.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

MEMORY, SECONDS = 4 * 2**30, 10


def main() -> None:
    """Fuzz every target, or in a child process one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--target")
    options = parser.parse_args()
    if options.target:
        sys.exit(fuzz(options.target, options.inputs, options.first_seed))
    from tests.fuzzing import TARGETS

    share, failed = -(-options.inputs // len(TARGETS)), []
    for name in TARGETS:
        command = [sys.executable, "-m", "tests.benchmarks.fuzz", "--target", name]
        command += ["--inputs", str(share), "--first-seed", str(options.first_seed)]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def fuzz(name: str, inputs: int, first_seed: int) -> int:
    """Read spoilt files of one target; return 1 if any was neither read nor rejected."""
    from tests.fuzzing import TARGETS, Subject

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    failures, accepted, start = 0, 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(TARGETS[name], Path(folder) / "files")
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        for seed in range(first_seed, first_seed + inputs):
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            try:
                accepted += subject.read(seed)
            except Exception:
                failures += 1
                print(f"{name}: seed {seed}", traceback.format_exc(), flush=True)
    faulthandler.cancel_dump_traceback_later()
    rate, peak = inputs / (time.perf_counter() - start), peak_mib()
    print(
        f"{name:24s} {inputs:,} files, {accepted:,} accepted, {failures} failures,"
        f" {rate:,.0f} files/s, {peak:,.0f} MiB at most",
        flush=True,
    )
    return int(failures > 0)


def peak_mib() -> float:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
