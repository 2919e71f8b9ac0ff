"""Augmentation of few training images: coverage of all faces, and memorization of the few.

    python -m tests.benchmarks.limited_data --images 500 2000 --seeds 1

Trains the preset cpu32 on the first of 8,000 procedural faces with each policy. Coverage is that of
the last evaluation, against all faces. Memorization is the share of samples that are nearer to a
training image than to the nearest of as many other faces: 0.5 for unseen faces, 1 for copies.
Distances are those of the classifier's features at unit length.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from ganray.data.transforms import to_uint8
from ganray.evaluation.datasets import locate_datasets
from ganray.evaluation.extractors import FeatureExtractor
from ganray.evaluation.reference import read
from ganray.gan import latents
from ganray.training.checkpoints import list_checkpoints
from ganray.training.journal import history
from ganray.training.state import generator_from_checkpoint, read_config
from tests.benchmarks.runs import CPU, mean

_JOB = Path(__file__).parents[2] / "jobs" / "celeba.py"
_SAMPLES = 2_000
POLICIES = {
    "none": "",
    "diffaugment": "--augment.policy diffaugment",
    "ada, p = 0.2": "--augment.policy ada --augment.p 0.2",
    "ada, target 0.6": "--augment.policy ada --augment.target 0.6 --augment.adapt_kimg 50",
}


def train(folder: Path, options: list[str]) -> None:
    """Run `jobs/celeba.py cpu32` without Ray on one core, into a folder of a home's runs."""
    command = [sys.executable, str(_JOB), "cpu32", "--launcher", "torch", "--name", folder.name]
    command += ["--home", str(folder.parents[1]), "--evaluation.report_samples", "0", *options]
    command += ["--evaluation.samples", str(_SAMPLES), "--evaluation.max_share", "1"]
    one_core = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=one_core)
    if result.returncode:
        raise RuntimeError(f"{folder.name}: {(result.stdout + result.stderr).strip()[-500:]}")


def memorization(folder: Path, count: int) -> float:
    """Return the share of a run's samples that are nearer to its `count` training images."""
    config = read_config(folder)
    datasets = locate_datasets(config)
    assets = datasets.assets(datasets.prepare_classifier())
    with datasets.open_reference() as faces:
        extractor = assets.reference_set(config, faces).extractor(CPU)
        seen, unseen = (
            _features(
                extractor, read(config.reference_data(), faces, np.arange(first, first + count))
            )
            for first in (0, count)
        )
    G = generator_from_checkpoint(list_checkpoints(folder)[-1])
    z = latents.fixed_latents(config.latent, 0, "memorization", _SAMPLES, 0, CPU)
    with torch.no_grad():
        samples = torch.cat([to_uint8(G(part), config.pixel_min()) for part in z.split(250)])
    features = _features(extractor, samples)
    nearest = [torch.cdist(features, others).amin(1) for others in (seen, unseen)]
    return (nearest[0] < nearest[1]).float().mean().item()


def _features(extractor: FeatureExtractor, images: torch.Tensor) -> torch.Tensor:
    return normalize(extractor.extract(images).features.double(), dim=1)


def main() -> None:
    """Train, measure, and print a row of the table for each number of images and policy."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--home", type=Path, default=Path("~/.cache/ganray-limited").expanduser())
    parser.add_argument("--images", type=int, nargs="+", default=[500, 2_000])
    parser.add_argument("--kimg", type=float, default=75)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    print("| images | augmentation | coverage | memorization |\n|---|---|---|---|")
    for count in options.images:
        for name in options.policies:
            coverages, shares = [], []
            for seed in range(options.seeds):
                slug = "".join(c if c.isalnum() else "-" for c in name)
                folder = options.home / "runs" / f"{count}-{slug}-{seed}-{options.kimg:g}"
                few = f"--data.images {count} --evaluation.reference.images null"
                lengths = f"--train.kimg {options.kimg} --train.rng_seed {seed}"
                train(folder, f"{few} {lengths} {POLICIES[name]}".split())
                coverages.append(history(folder, "collapse/coverage")[1][-1])
                shares.append(memorization(folder, count))
            print(f"| {count:,} | {name} | {mean(coverages, 2)} | {mean(shares, 2)} |", flush=True)


if __name__ == "__main__":
    main()
