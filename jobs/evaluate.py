"""How much of the data a trained generator covers: the whole report, or two runs side by side.

Compares samples with real images through a classifier that is trained on the data's own labels
(once, then kept in the home): modes, recall and coverage, Vendi score, duplicates, distances;
each with its 95 % interval, with what other real images score, and what a perfect generator would.
Prints a table and a verdict, writes report.json and report.png, and puts both into the artifacts
of the run.

RUN is the name of a run, the folder of a run or of a checkpoint, an MLflow run id, or the URI of a
logged or registered model.

    python jobs/evaluate.py faces
    python jobs/evaluate.py faces --samples 10000
    python jobs/evaluate.py normal --against uniform
    python jobs/evaluate.py ~/.ganray/runs/faces/best_coverage --out report
"""

from __future__ import annotations

from collections.abc import Sequence

from ganray.config import cli
from ganray.config.commands import EvaluateConfig


def main(argv: Sequence[str]) -> None:
    """Parse, measure, say what was found and where it is."""
    options = cli.parse_words(argv, EvaluateConfig, ("run",), None, __doc__ or "")
    # Torch and MLflow take seconds to import, so --help and a typing error come before them.
    from ganray.commands.evaluate import evaluate

    evaluate(options)


if __name__ == "__main__":
    cli.run(main)
