"""Print the file that runs a job on a cluster. `python jobs/deploy.py --help` has the options."""

from ganray.commands.main import deploy as main
from ganray.config import cli

if __name__ == "__main__":
    cli.run(main)
