"""Make HDF5 shards of an image set, the form in which ganray reads images, or verify them.

A run makes its shards by itself; do it here to choose what it does not, to make them once for many
machines (any URL can serve them: --data.root s3://...), or to check a copy. An interrupted call
goes on where it stopped, and the result does not depend on how many processes make it.

    python jobs/shard.py celeba ~/celeba --out ~/celeba-64 --size 64
    python jobs/shard.py celeba ~/celeba --out ~/celeba-jpeg --encoding jpeg
    python jobs/shard.py folder ~/pictures --out ~/pictures-128 --size 128
    python jobs/shard.py verify ~/celeba-64
"""

from __future__ import annotations

from collections.abc import Sequence

from ganray.commands.shard import SOURCES, pack
from ganray.config import cli
from ganray.config.commands import ShardConfig


def main(argv: Sequence[str]) -> None:
    """Parse, then make or verify."""
    words = "\n".join(f"  {name:14s} {about}" for name, about in SOURCES.items())
    description = f"{__doc__}\nSOURCE is one of:\n{words}"
    pack(cli.parse_words(argv, ShardConfig, ("source", "path"), SOURCES, description))


if __name__ == "__main__":
    cli.run(main)
