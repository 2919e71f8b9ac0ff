"""Shared parts of benchmarks with many seeds: runs on one core, MNIST classifier, means."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ganray.data.sources.mnist import MNIST
from ganray.evaluation import classifier
from ganray.metrics.intervals import replicate_interval

CPU = torch.device("cpu")
_JOB = Path(__file__).parents[2] / "jobs" / "mnist.py"


def train(folder: Path, preset: str, seed: int, root: Path, options: Sequence[str]) -> None:
    """Run `jobs/mnist.py PRESET` without Ray on one core, into a folder of a home's runs."""
    command = [sys.executable, str(_JOB), preset, "--launcher", "torch", "--name", folder.name]
    command += ["--home", str(folder.parents[1]), "--data.root", str(root)]
    command += ["--train.rng_seed", str(seed), *options]
    one_core = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=one_core)
    if result.returncode:
        raise RuntimeError(f"{folder.name}: {result.stderr.strip()[-500:]}")


def reference(root: Path, home: Path) -> classifier.Classifier:
    """Return the reference classifier of MNIST, trained on first use."""
    mnist = MNIST.open(root)
    held_out = mnist.split == 2
    return classifier.reference_classifier(
        mnist.images[~held_out][..., None],
        mnist.labels[~held_out],
        mnist.images[held_out][..., None],
        mnist.labels[held_out],
        data_digest=mnist.fingerprint(),
        cache=home / "classifiers",
        device=CPU,
    )


def mean(values: Sequence[float], digits: int) -> str:
    """Return the mean over seeds, with the half width of its 95 % interval for two or more."""
    estimate = replicate_interval(values)
    if estimate.n == 1:
        return f"{estimate.value:.{digits}f}"
    return f"{estimate.value:.{digits}f} ± {estimate.high - estimate.value:.{digits}f}"
