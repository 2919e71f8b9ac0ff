"""Progress of a sweep in the terminal."""

from ganray.sweeps.progress import SweepProgress
from ganray.sweeps.results import RunResult
from tests.sweeps.small import KINDS, SIZES, results


def test_resumed_sweep_counts_failed_runs_as_left(capsys):
    known = results(KINDS, SIZES, seeds=1, failed=["normal-1-s0"], waiting=["uniform-1-s0"])
    progress = SweepProgress(known, set())
    assert "6 runs: 4 finished, 0 running, 2 left; time left about ?" in progress.table()
    trials = {trial.label: trial for trial in known.plan.trials}
    progress.begin(trials["normal-1-s0"])
    assert "4 finished, 1 running, 1 left" in progress.table()
    progress.retry(trials["normal-1-s0"], "out of memory")
    progress.end(trials["normal-1-s0"], RunResult("finished", {"coverage": 0.9}))
    output = capsys.readouterr().out
    assert "normal-1-s0: crashed, retrying: out of memory" in output
    assert "5 / 6 runs, left 0:00:0" in output
    assert "normal-1-s0: coverage 0.90" in output
    assert max(map(len, output.splitlines())) <= 100
    best = progress.table().splitlines()[1]
    assert best.startswith("  coverage 0.900 (n=1)  distribution normal")
