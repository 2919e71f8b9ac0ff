"""Cells and replicates in a balanced order."""

from collections import Counter
from dataclasses import replace

import pytest

from ganray.sweeps import design
from ganray.sweeps.axes import Axis, Level
from ganray.sweeps.design import make_plan
from tests.sweeps.test_axes import BASE, axis


def test_two_axes_of_one_field_are_refused():
    with pytest.raises(ValueError, match=r"optimizer\.name is set by both"):
        make_plan("s", [axis("optimizer=sgd,adam"), axis("optimizer.name=adam,sgd")], 1)


def test_a_grid_runs_every_cell_with_every_seed_replicates_outermost():
    study = make_plan("s", [axis("latent.size=1,10,100"), axis("optimizer=sgd,adam")], 5)
    assert len(study.trials) == len({trial.name for trial in study.trials}) == 30
    assert len(study.settings) == 6
    for seed in range(5):
        replicate = study.trials[6 * seed : 6 * seed + 6]
        assert {trial.levels for trial in replicate} == set(study.settings)
        assert {trial.rng_seed for trial in replicate} == {seed}
    assert [t.levels for t in study.trials[:6]] != [t.levels for t in study.trials[6:12]]


def test_a_sobol_subset_takes_each_level_about_as_often():
    axes = [axis("latent.size=1,2,4,8,16,32,64,128"), axis("optimizer=sgd,adam,lion,rmsprop")]
    study = make_plan("s", axes, 1, design="sobol", settings=16)
    assert len(study.settings) == 16
    for place, most in ((0, 3), (1, 5)):
        counts = Counter(cell[place] for cell in study.settings)
        assert max(counts.values()) <= most
        assert min(counts.values()) >= 1


def test_a_random_subset_is_of_different_cells_and_repeatable():
    axes = [axis("latent.size=1,2,4,8"), axis("optimizer=sgd,adam,lion")]
    study, again = (make_plan("s", axes, 2, design="random", settings=7) for _ in range(2))
    assert len(study.settings) == 7
    assert len(study.trials) == 14
    assert study == again
    with pytest.raises(ValueError, match=r"sweep\.settings=13 must lie in 1 \.\. 12"):
        make_plan("s", axes, 1, design="random", settings=13)


def test_a_trial_is_a_run_with_a_name_that_tells():
    study = make_plan("mine", [axis("latent.distribution+latent.scaling=normal+centred")], 1)
    (trial,) = study.trials
    config = trial.config(replace(BASE, name="other"))
    assert config.name == trial.name == "mine.normal-centred-s0"
    assert trial.label == "normal-centred-s0"
    assert config.latent.scaling == "centred"


def test_settings_that_do_not_go_together_are_refused():
    pack = Axis("network.pack", (Level("2", {"network.pack": 2}),))
    told = Axis("network.conditional", (Level("true", {"network.conditional": True}),))
    with pytest.raises(ValueError, match=r"network\.pack=2"):
        make_plan("s", [pack, told], 1).trials[0].config(BASE)


def test_a_study_is_read_as_it_was_written(tmp_path):
    study = make_plan("s", [axis("latent.size=1,10"), axis("optimizer=sgd,adam")], 2)
    study.save(tmp_path)
    assert design.load_plan(tmp_path) == study
