"""Plans hold every setting with every seed, in a balanced order."""

from collections import Counter
from dataclasses import replace

import pytest

from ganray.sweeps import design
from ganray.sweeps.axes import Axis, Level
from ganray.sweeps.design import make_plan
from tests.sweeps.test_axes import BASE, axis


def test_two_axes_of_one_field_are_rejected():
    with pytest.raises(ValueError, match=r"optimizer\.name is set by both"):
        make_plan("s", [axis("optimizer=sgd,adam"), axis("optimizer.name=adam,sgd")], 1)


def test_grid_runs_every_setting_with_every_seed_in_the_outermost_loop():
    sweep = make_plan("s", [axis("latent.size=1,10,100"), axis("optimizer=sgd,adam")], 5)
    assert len(sweep.trials) == len({trial.name for trial in sweep.trials}) == 30
    assert len(sweep.settings) == 6
    for seed in range(5):
        replicate = sweep.trials[6 * seed : 6 * seed + 6]
        assert {trial.levels for trial in replicate} == set(sweep.settings)
        assert {trial.rng_seed for trial in replicate} == {seed}
    assert [t.levels for t in sweep.trials[:6]] != [t.levels for t in sweep.trials[6:12]]


def test_sobol_subset_takes_each_level_about_equally_often():
    axes = [axis("latent.size=1,2,4,8,16,32,64,128"), axis("optimizer=sgd,adam,lion,rmsprop")]
    sweep = make_plan("s", axes, 1, design="sobol", settings=16)
    assert len(sweep.settings) == 16
    for place, most in ((0, 3), (1, 5)):
        counts = Counter(setting[place] for setting in sweep.settings)
        assert max(counts.values()) <= most
        assert min(counts.values()) >= 1


def test_random_subset_has_distinct_settings_and_is_reproducible():
    axes = [axis("latent.size=1,2,4,8"), axis("optimizer=sgd,adam,lion")]
    sweep, again = (make_plan("s", axes, 2, design="random", settings=7) for _ in range(2))
    assert len(sweep.settings) == 7
    assert len(sweep.trials) == 14
    assert sweep == again
    with pytest.raises(ValueError, match=r"sweep\.settings=13 must lie in 1 \.\. 12"):
        make_plan("s", axes, 1, design="random", settings=13)


def test_name_of_a_trial_has_its_levels_and_seed():
    sweep = make_plan("mine", [axis("latent.distribution+latent.scaling=normal+centered")], 1)
    (trial,) = sweep.trials
    config = trial.config(replace(BASE, name="other"))
    assert config.name == trial.name == "mine.normal-centered-s0"
    assert trial.label == "normal-centered-s0"
    assert config.latent.scaling == "centered"


def test_invalid_combinations_of_levels_are_rejected():
    pack = Axis("network.pack", (Level("2", {"network.pack": 2}),))
    conditional = Axis("network.conditional", (Level("true", {"network.conditional": True}),))
    with pytest.raises(ValueError, match=r"network\.pack=2"):
        make_plan("s", [pack, conditional], 1).trials[0].config(BASE)


def test_plan_survives_saving(tmp_path):
    sweep = make_plan("s", [axis("latent.size=1,10"), axis("optimizer=sgd,adam")], 2)
    sweep.save(tmp_path)
    assert design.load_plan(tmp_path) == sweep
