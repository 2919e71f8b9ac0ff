"""Augmentation of few training images: coverage of all faces, and memorization of the few.

    python -m tests.benchmarks.limited_data --images 500 2000 --seeds 1

Trains the preset cpu32 on the first of 8,000 procedural faces with each policy. Coverage and
memorization are those of the last evaluation, against all faces and with the rest of them held out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from ganray.training.journal import history
from tests.benchmarks.runs import mean

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
    command += ["--data.split", "all", "--evaluation.reference.images", "null"]
    one_core = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=one_core)
    if result.returncode:
        raise RuntimeError(f"{folder.name}: {(result.stdout + result.stderr).strip()[-500:]}")


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
                length = f"--train.kimg {options.kimg} --train.rng_seed {seed}"
                train(folder, f"--data.images {count} {length} {POLICIES[name]}".split())
                coverages.append(history(folder, "collapse/coverage")[1][-1])
                shares.append(history(folder, "collapse/memorization")[1][-1])
            print(f"| {count:,} | {name} | {mean(coverages, 2)} | {mean(shares, 2)} |", flush=True)


if __name__ == "__main__":
    main()
