"""Memory of metrics over all pairs of 50,000 x 50,000 images; a full matrix would take 19 GiB.

    python -m tests.benchmarks.memory

Each metric is measured in its own process. Features have 4 columns, as the blocks take the memory:
wider features add themselves and their float64 copies, and take longer.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import torch

from ganray.metrics.diversity import birthday_support
from ganray.metrics.frechet import kid
from ganray.metrics.precision_recall import Manifold, manifold_scores

ROWS, WIDTH = 50_000, 4
MOST_MIB = 2048

CALLS = {
    "precision, recall, density, coverage": lambda reference, samples: manifold_scores(
        Manifold.fit(reference, 5), Manifold.fit(samples, 3)
    ),
    "birthday": lambda _, samples: birthday_support(samples, 1e-3),
    "kid": kid,
}
"""Metrics that need distances or kernels of all pairs."""


def main() -> None:
    """Measure every metric in a child process, or in the child the named one."""
    if len(sys.argv) > 1:
        print(measure(sys.argv[1]))
        return
    print(f"| {ROWS:,} x {ROWS:,}, {WIDTH} wide | seconds | growth |\n|---|---|---|")
    for name in CALLS:
        command = [sys.executable, "-m", "tests.benchmarks.memory", name]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        seconds, growth = map(float, output.split())
        print(f"| {name} | {seconds:.0f} | {growth:.0f} MiB |", flush=True)
        if growth > MOST_MIB:
            raise SystemExit(f"{name} grew by {growth:.0f} MiB; must be at most {MOST_MIB}")


def measure(name: str) -> str:
    """Return the seconds and the MiB by which the peak memory of this process grew."""
    generator = torch.Generator().manual_seed(0)
    reference, samples = torch.randn(2, ROWS, WIDTH, generator=generator)
    before, start = peak_mib(), time.perf_counter()
    CALLS[name](reference, samples)
    return f"{time.perf_counter() - start} {peak_mib() - before}"


def peak_mib() -> float:
    """Return the peak memory of this process in MiB; Linux reports KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
