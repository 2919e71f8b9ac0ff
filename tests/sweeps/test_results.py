"""What is read back of runs: their last evaluation, and how they ended."""

import math

import numpy as np
import pytest

from ganray.sweeps import results
from ganray.sweeps.axes import Axis, Level
from ganray.sweeps.design import make_plan
from ganray.sweeps.results import Results, RunResult, collect, record
from ganray.training.journal import Journal

SIZES = Axis("latent.size", tuple(Level(str(n), {"latent.size": n}) for n in (1, 10)))
KINDS = Axis("optimizer.name", tuple(Level(n, {"optimizer.name": n}) for n in ("sgd", "adam")))


def journalled(folder, *recalls):
    log = Journal(folder)
    for i, recall in enumerate(recalls):
        log.metrics(10 * i, {"data/images_per_s": 100.0 * (i + 1), "D/loss": 0.5})
        log.collapse(10 * i, {"collapse/recall": recall, "collapse/kl_corrected": 0.4}, "")
    log.close()


def test_the_last_evaluation_and_the_median_pace_are_what_a_run_came_to(tmp_path):
    journalled(tmp_path, 0.1, 0.3, 0.2)
    found = record(tmp_path, "finished")
    assert found.values == {"recall": 0.2, "kl_corrected": 0.4, "images_per_s": 200.0}
    assert results.read(tmp_path) == found


def test_a_run_that_diverged_covers_nothing_whatever_it_had_reached(tmp_path):
    journalled(tmp_path, 0.5)
    found = record(tmp_path, "diverged", "D/loss is nan", classes=10)
    assert found.values["recall"] == found.values["coverage"] == 0
    assert found.values["kl_corrected"] == pytest.approx(math.log(10))
    assert found.scored
    assert not RunResult("failed", {}).scored


def test_a_run_whose_process_died_before_it_had_a_folder_is_marked_as_failed(tmp_path):
    found = record(tmp_path / "runs" / "s.1-s0", "failed", "the actor died")
    assert (
        results.read(tmp_path / "runs" / "s.1-s0") == found == RunResult("failed", {}, found.reason)
    )


def test_results_are_an_array_of_axes_and_replicates(tmp_path):
    study = make_plan("s", [SIZES, KINDS], 3, first_seed=7)
    for i, trial in enumerate(study.trials[:9]):
        journalled(tmp_path / trial.name, i / 10)
        record(tmp_path / trial.name, "failed" if i == 0 else "finished")
    (tmp_path / study.trials[9].name).mkdir()
    found = collect(study, tmp_path)
    recalls = found.array("recall")
    assert recalls.shape == (2, 2, 3)
    for i, trial in enumerate(study.trials):
        value = recalls[
            SIZES.labels.index(trial.levels[0]),
            KINDS.labels.index(trial.levels[1]),
            trial.rng_seed - 7,
        ]
        expected = i / 10 if 0 < i < 9 else math.nan  # failed, or not yet run
        np.testing.assert_equal(value, expected)
    assert found.count("finished") == 8
    assert found.count("waiting") == 3
    assert found.get(study.trials[11]).status == "waiting"


def test_what_was_not_measured_is_not_a_number():
    study = make_plan("s", [SIZES], 1)
    found = Results(study, {study.trials[0].name: RunResult("finished", {"recall": 1.0})})
    assert np.isnan(found.array("half_life_kimg")).all()
    assert np.isnan(found.array("recall")).sum() == 1
