"""The source text's path through MNIST, a preset for each step; Ray Train and MLflow as always.

Without a preset: normal-100. MNIST is looked for in --data.root, or fetched once (11 MB) into the
home folder; where there is no network either, scikit-learn's 8x8 digits stand in. The presets
stacked-* are of stacked MNIST: three digits an image, 1,000 modes to count.

    python jobs/mnist.py first
    python jobs/mnist.py normal-100 --data.root ~/mnist
    python jobs/mnist.py conditional --train.rng-seed 3
    python jobs/mnist.py first --check-discriminator
    python jobs/mnist.py stacked-t3-quarter
    ray job submit --working-dir . -- python jobs/mnist.py long
"""

from __future__ import annotations

from collections.abc import Sequence

from ganray.config import cli
from ganray.config.presets import MNIST, STACKED


def main(argv: Sequence[str]) -> None:
    """Parse, show the plan, check, run, say where to look."""
    config = cli.parse(
        argv, MNIST | STACKED, auto=lambda _: "normal-100", description=__doc__ or ""
    )
    from ganray.commands import train

    train.run(config)


if __name__ == "__main__":
    cli.run(main)
