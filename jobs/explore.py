"""Explore the latent space of a generator. `python jobs/explore.py --help` has the options."""

from ganray.commands.main import explore as main
from ganray.config import cli

if __name__ == "__main__":
    cli.run(main)
