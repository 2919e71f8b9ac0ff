"""Memory and time of metrics of 50,000 x 50,000 images; a matrix of all pairs takes 19 GiB.

    python -m tests.benchmarks.memory

Each is measured in its own process: the report with all metrics, intervals and control images, on
features as wide as the classifier's; and its largest parts alone.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import torch

from ganray.evaluation.classifier import FEATURES
from ganray.evaluation.comparison import ImageStatistics
from ganray.evaluation.extractors import Features, PixelExtractor
from ganray.evaluation.suite import report
from ganray.metrics.diversity import count_duplicates
from ganray.metrics.frechet import kid
from ganray.metrics.memorization import TrainingNeighbors
from ganray.metrics.precision_recall import Manifold, manifold_scores

ROWS, WIDTH = 50_000, FEATURES
MOST_MIB = 2048


def report_of(reference: torch.Tensor, samples: torch.Tensor) -> object:
    """Return the report on features of samples, the reference images serving as control, too."""
    extractor = PixelExtractor(torch.device("cpu"))
    sets = (reference, samples, reference.flip(1))
    return report(*(ImageStatistics.of(extractor, Features(rows, rows)) for rows in sets))


CALLS = {
    "report": report_of,
    "precision, recall, density, coverage": lambda reference, samples: manifold_scores(
        Manifold.fit(reference, 5), Manifold.fit(samples, 3)
    ),
    "duplicates": lambda _, samples: count_duplicates([samples], [1e-3]),
    "memorization": lambda reference, samples: TrainingNeighbors.of(
        samples, reference, reference.flip(1)
    ),
    "kid": kid,
}
"""Metrics that need distances or kernels of all pairs."""


def main() -> None:
    """Measure every metric in a child process, or in the child the named one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("metric", nargs="?", choices=CALLS, help="print numbers of this one")
    if metric := parser.parse_args().metric:
        print(measure(metric))
        return
    print(f"| {ROWS:,} x {ROWS:,}, {WIDTH} wide | seconds | of all cores | growth |")
    print("|---|---|---|---|")
    for name in CALLS:
        command = [sys.executable, "-m", "tests.benchmarks.memory", name]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        seconds, busy, growth = map(float, output.split())
        print(f"| {name} | {seconds:.0f} | {busy:.0f} | {growth:.0f} MiB |", flush=True)
        if growth > MOST_MIB:
            raise SystemExit(f"{name} grew by {growth:.0f} MiB; must be at most {MOST_MIB}")


def measure(name: str) -> str:
    """Return seconds, seconds of all threads, and MiB by which the peak memory grew."""
    generator = torch.Generator().manual_seed(0)
    reference, samples = torch.randn(2, ROWS, WIDTH, generator=generator)
    before, start, busy = peak_mib(), time.perf_counter(), time.process_time()
    CALLS[name](reference, samples)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    return f"{seconds} {busy} {peak_mib() - before}"


def peak_mib() -> float:
    """Return the peak memory of this process in MiB; Linux reports KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
