"""Latent experiments on a trained generator: what lies between two latents, beyond, and near one.

Draws random samples, the images between pairs of latents (straight, and on the shell where the
generator has learned), sums, differences and products of latents, walks in the neighbourhood of
one, and an animated walk that closes; into PNGs and the artifacts of the run.

RUN is the name of a run, the folder of a run or of a checkpoint, an MLflow run id, or the URI of a
logged or registered model.

    python jobs/explore.py faces
    python jobs/explore.py ~/.ganray/runs/faces/checkpoint_0000004000 --out pictures
    python jobs/explore.py 9a4b6726c96d46158af271b9a0512236 --tracking-uri http://server:5000
    python jobs/explore.py models:/generator/1 --animation mp4 --seconds 20
    python jobs/explore.py digits --label 7 --rng-seed 3 --pairs 6
"""

from __future__ import annotations

from collections.abc import Sequence

from ganray.config import cli
from ganray.config.commands import ExploreConfig


def main(argv: Sequence[str]) -> None:
    """Parse, draw, say where the pictures are."""
    options = cli.parse_words(argv, ExploreConfig, ("run",), None, __doc__ or "")
    # Torch and MLflow take seconds to import, so --help and a typing error come before them.
    from ganray.commands.explore import explore

    explore(options)


if __name__ == "__main__":
    cli.run(main)
