"""Train a GAN on faces. `python jobs/celeba.py --help` has the options."""

from ganray.commands.main import celeba as main
from ganray.config import cli

if __name__ == "__main__":
    cli.run(main)
