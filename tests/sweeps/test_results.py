"""Results of runs are recorded with their last evaluation and read back."""

import math

import numpy as np
import pytest

from ganray.sweeps import results
from ganray.sweeps.axes import Axis, Level
from ganray.sweeps.design import make_plan
from ganray.sweeps.results import Results, RunResult, collect, record
from ganray.training.journal import Journal
from ganray.training.run_folder import RunFolder

SIZES = Axis("latent.size", tuple(Level(str(n), {"latent.size": n}) for n in (1, 10)))
KINDS = Axis("optimizer.name", tuple(Level(n, {"optimizer.name": n}) for n in ("sgd", "adam")))


def write_journal(folder, *recalls):
    log = Journal(RunFolder(folder))
    for i, recall in enumerate(recalls):
        log.metrics(10 * i, {"speed/images_per_s": 100.0 * (i + 1), "loss/D": 0.5})
        log.collapse(10 * i, {"collapse/recall": recall, "collapse/kl_corrected": 0.4}, "")


def test_result_has_the_last_evaluation_and_the_median_speed(tmp_path):
    write_journal(tmp_path, 0.1, 0.3, 0.2)
    result = record(tmp_path, "finished")
    assert result.values == {"recall": 0.2, "kl_corrected": 0.4, "images_per_s": 200.0}
    assert results.read(tmp_path) == result


def test_diverged_run_has_the_worst_metrics(tmp_path):
    write_journal(tmp_path, 0.5)
    result = record(tmp_path, "diverged", "loss/D is nan", num_classes=10)
    assert result.values["recall"] == result.values["coverage"] == 0
    assert result.values["kl_corrected"] == pytest.approx(math.log(10))
    assert result.scored
    assert not RunResult("failed", {}).scored


def test_run_that_died_before_it_made_its_folder_is_recorded_as_failed(tmp_path):
    result = record(tmp_path / "runs" / "s.1-s0", "failed", "the actor died")
    assert (
        results.read(tmp_path / "runs" / "s.1-s0")
        == result
        == RunResult("failed", {}, result.reason)
    )


def test_results_as_an_array_of_axes_and_seeds(tmp_path):
    plan = make_plan("s", [SIZES, KINDS], 3, first_seed=7)
    for i, trial in enumerate(plan.trials[:9]):
        write_journal(tmp_path / trial.name, i / 10)
        record(tmp_path / trial.name, "failed" if i == 0 else "finished")
    (tmp_path / plan.trials[9].name).mkdir()
    result = collect(plan, tmp_path)
    recalls = result.array("recall")
    assert recalls.shape == (2, 2, 3)
    for i, trial in enumerate(plan.trials):
        value = recalls[
            SIZES.labels.index(trial.levels[0]),
            KINDS.labels.index(trial.levels[1]),
            trial.rng_seed - 7,
        ]
        expected = i / 10 if 0 < i < 9 else math.nan  # failed, or not yet run
        np.testing.assert_equal(value, expected)
    assert result.count("finished") == 8
    assert result.count("waiting") == 3
    assert result.get(plan.trials[11]).status == "waiting"


def test_unknown_metrics_are_nan():
    plan = make_plan("s", [SIZES], 1)
    result = Results(plan, {plan.trials[0].name: RunResult("finished", {"recall": 1.0})})
    assert np.isnan(result.array("half_life_kimg")).all()
    assert np.isnan(result.array("recall")).sum() == 1
