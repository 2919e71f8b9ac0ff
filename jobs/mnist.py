"""Train the source text's GANs on MNIST. `python jobs/mnist.py --help` has the options."""

from ganray.commands.main import mnist as main
from ganray.config import cli

if __name__ == "__main__":
    cli.run(main)
