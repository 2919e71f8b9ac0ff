"""--power prints what the analysis of a sweep finds, without Torch or Ray."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from ganray.sweeps.analysis import compare
from ganray.sweeps.power import comparisons, measured_spreads, smallest_difference
from tests.conftest import load_job
from tests.sweeps.small import KINDS, SIZES, results
from tests.sweeps.test_analysis import noise, results_of


@pytest.fixture
def power(home, capsys, monkeypatch):
    """A function that runs the job and returns what it printed."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*options):
        load_job("sweep").main(["--power", *options])
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        return lines

    return run


def save(folder, sweep):
    """Save the plan and the runs of a sweep as its report does."""
    folder.mkdir(parents=True)
    sweep.plan.save(folder)
    runs = {name: {"status": r.status, "values": r.values} for name, r in sweep.by_trial.items()}
    (folder / "report.json").write_text(json.dumps({"runs": runs}))
    (folder / "config.json").write_text('{"preset": "normal-100"}')


def test_two_levels_have_the_power_of_a_paired_t_test():
    levels, settings = comparisons(["size"], [2], 2)
    assert (levels.alpha, settings.alpha) == pytest.approx((0.04 / 2, 0.01 / 4))
    difference = smallest_difference(levels, 6, 0.1)
    shift = difference / (0.1 * math.sqrt(2 / 6))
    limit = stats.t.ppf(1 - 0.02 / 2, 5)
    assert stats.nct.sf(limit, 5, shift) == pytest.approx(0.8, abs=1e-6)


def test_the_analysis_finds_the_smallest_difference_about_four_times_of_five():
    comparison = comparisons(["a", "b"], [3, 2], 6)[0]
    shift = np.array([smallest_difference(comparison, 5, 1), 0, 0])[:, None, None]
    found = []
    for i in range(100):
        values = results_of(
            coverage=noise(3, 2, 5, seed=i) + shift, recall=noise(3, 2, 5, seed=1000 + i)
        )
        first, second, *_ = compare(values, [(0, None), (1, None)])
        found += [first.significant, second.significant]
    assert 0.65 < np.mean(found) < 0.95


def test_more_seeds_and_more_settings_find_smaller_differences(power):
    rows = power()
    assert rows[1].endswith("3 seeds  5 seeds  10 seeds  20 seeds")
    # None: metrics in [0, 1] cannot differ by as much.
    table = [row.replace(" -  ", "1.0 ").split()[-4:] for row in rows[2:10]]
    for row in np.array(table, float):
        assert (np.diff(row) < 0).all()
    assert float(table[-2][1]) > float(table[0][1])  # settings, axis


def test_spreads_are_those_of_the_named_or_newest_sweep(home, power):
    assert "typical of MNIST" in " ".join(power())
    sweep = results(KINDS, SIZES)  # coverage differs by 0.02 from seed to seed, recall by half that
    save(home / "sweeps" / "s", sweep)
    spreads = measured_spreads(home / "sweeps" / "s")
    assert spreads == pytest.approx({"coverage": 0.02, "recall": 0.01})
    assert "those of the sweep s (preset normal-100)." in " ".join(power())
    save(home / "sweeps" / "unfinished", results(KINDS, seeds=1))
    assert "those of the sweep s (preset normal-100)." in " ".join(power())
    with pytest.raises(ValueError, match="no finished sweep named 'unfinished' with two seeds"):
        power("--name", "unfinished")


def test_a_sweep_that_cannot_be_read_is_skipped_unless_it_is_named(home, power):
    (home / "sweeps" / "odd").mkdir(parents=True)
    (home / "sweeps" / "odd" / "report.json").write_text('{"runs": {}}')  # and no plan
    assert "typical of MNIST" in " ".join(power())
    with pytest.raises(ValueError, match=r"plan\.json: missing"):
        power("--name", "odd")


@pytest.mark.parametrize("runs", ["", '"runs": []', '"runs": {"s.uniform-1-s0": 1}'])
def test_a_report_of_another_form_is_an_error(home, runs):
    folder = home / "sweeps" / "s"
    save(folder, results(KINDS, SIZES))
    (folder / "report.json").write_text(f"{{{runs}}}")
    with pytest.raises(ValueError, match=r"report\.json: damaged"):
        measured_spreads(folder)


def test_failed_runs_and_settings_are_no_spread(home):
    values = np.array([[0.1, 0.1, 0.4], [0.8, 0.8, 0.8]])
    sweep = results_of(coverage=values)
    failed = next(t.name for t in sweep.plan.trials if t.levels == ("a0",) and t.rng_seed == 2)
    save(home / "sweeps" / "s", sweep)
    data = json.loads((home / "sweeps" / "s" / "report.json").read_text())
    data["runs"][failed]["status"] = "failed"
    (home / "sweeps" / "s" / "report.json").write_text(json.dumps(data))
    assert measured_spreads(home / "sweeps" / "s") == {}  # the others do not vary


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sweep.design", "asha"], r"sweep\.design=asha compares no levels"),
        (["--sweep.axis", "latent.size=10"], r"latent\.size has one setting; nothing to compare"),
        (["--resume"], "leave out --resume"),
        (["--sweep.axis", "latent.size=1,many"], "many"),
    ],
)
def test_what_has_no_power_is_rejected(power, options, message):
    with pytest.raises(ValueError, match=message):
        power(*options)


def test_power_imports_neither_torch_nor_ray(tmp_path):
    code = (
        "import sys; from ganray.commands.main import sweep;"
        f"sweep(['--power', '--home', {str(tmp_path)!r}]);"
        "assert not {'torch', 'ray', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
