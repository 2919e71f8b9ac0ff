"""Train for hours while everything that can fail does, then compare with an undisturbed run.

    python -m tests.soak --minutes 120 [--launcher ray] [--seed 0]

A supervisor starts the driver again and again by the same command. Some seconds after training goes
on, a random fault is injected: see FAULTS. In the end the weights equal those of an uninterrupted
run bit for bit, journal and MLflow have every point once, and nothing is left over.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

from tests.soak.supervisor import soak


def main() -> None:
    """Run a soak test and print what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--launcher", choices=("ray", "torch"), default="ray")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", nargs="+", default=(), help="inject only these")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        report = soak(Path(folder), options.minutes, options.launcher, options.seed, options.faults)
    print(report)


if __name__ == "__main__":
    main()
