"""What the terminal is told of a study as it goes on."""

from ganray.sweeps.progress import SweepProgress
from ganray.sweeps.results import RunResult
from tests.sweeps.small import KINDS, SIZES, results


def test_a_study_that_goes_on_counts_its_failed_runs_as_left(capsys):
    known = results(KINDS, SIZES, seeds=1, failed=["normal-1-s0"], waiting=["uniform-1-s0"])
    board = SweepProgress(known.plan, known)
    assert "6 runs: 4 finished, 0 running, 2 left; time left about ?" in board.table()
    trials = {trial.label: trial for trial in known.plan.trials}
    board.begin(trials["normal-1-s0"])
    assert "4 finished, 1 running, 1 left" in board.table()
    board.end(trials["normal-1-s0"], RunResult("finished", {"coverage": 0.9}))
    assert "5 / 6 runs" in capsys.readouterr().out
    assert board.table().splitlines()[1].startswith("  coverage 0.900 (n=1)  distribution normal")
