"""Run and compare many training runs. `python jobs/sweep.py --help` has the options."""

from ganray.commands.main import sweep as main
from ganray.config import cli

if __name__ == "__main__":
    cli.run(main)
