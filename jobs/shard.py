"""Convert images to shards, or verify shards. `python jobs/shard.py --help` has the options."""

from ganray.commands.main import shard as main
from ganray.config import cli

if __name__ == "__main__":
    cli.run(main)
