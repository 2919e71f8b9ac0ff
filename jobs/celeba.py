"""Train a GAN on faces, distributed by Ray Train, and log everything to MLflow.

Without options: CelebA where --data.root gives it, else procedural faces; every GPU of the
cluster, else 2 CPU workers; the preset that fits the hardware.

    python jobs/celeba.py
    python jobs/celeba.py dcgan64 --data.root ~/celeba
    ray job submit --working-dir . -- python jobs/celeba.py
    torchrun --nproc-per-node 2 jobs/celeba.py --launcher torch
"""

from __future__ import annotations

from collections.abc import Sequence

from ganray.config import cli
from ganray.config.presets import CELEBA
from ganray.config.schema import Config


def main(argv: Sequence[str]) -> None:
    """Parse, show the plan, check, run, say where to look."""
    config = cli.parse(argv, CELEBA, auto=preset_for_hardware, description=__doc__ or "")
    # Torch, Ray and MLflow take seconds to import, so --help and a typing error come before them.
    from ganray.commands import train

    train.run(config)


def preset_for_hardware(config: Config) -> str:
    """The full-width net where there is a GPU, the narrow one on CPU."""
    from ganray.integrations import ray_train

    return "dcgan64" if ray_train.cluster_resources(config.ray).gpus else "cpu32"


if __name__ == "__main__":
    cli.run(main)
