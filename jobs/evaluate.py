"""Report how much of the data a generator covers. `python jobs/evaluate.py --help` has options."""

from ganray.commands.main import evaluate as main
from ganray.config import cli

if __name__ == "__main__":
    cli.run(main)
