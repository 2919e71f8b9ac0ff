"""Axes as people type them; cells and replicates in a balanced order."""

from collections import Counter
from dataclasses import replace

import pytest

from ganray.cli import value_of
from ganray.config import Config, OptimizerConfig
from ganray.config_json import flatten
from ganray.study import design
from ganray.study.design import Axis, Level, judged_alike, parse_axis, plan

BASE = Config(optimizer=OptimizerConfig("adam", 1e-3, 2e-3))


def sizes_whole(field, value):
    return int(value) if field == "latent.size" else value


def axis(text, read=sizes_whole):
    return parse_axis(text, BASE, read)


def test_an_axis_of_one_field():
    sizes = axis("latent.size=1,10,100")
    assert sizes.labels == ("1", "10", "100")
    assert sizes.levels[1].settings == {"latent.size": 10}
    assert sizes.title == "size"
    assert axis("loss.name=bce,hinge").title == "loss"


def test_fields_that_move_together_are_one_axis():
    shapes = axis("latent.distribution+latent.scaling=uniform+raw,uniform+centred")
    assert shapes.labels == ("uniform", "uniform centred")
    assert shapes.levels[1].settings == {
        "latent.distribution": "uniform",
        "latent.scaling": "centred",
    }
    assert shapes.title == "distribution scaling"


def test_a_label_leaves_out_what_is_plain():
    moved = axis("latent.distribution+latent.scaling+latent.offset=normal+raw+0,normal+raw+2")
    assert moved.labels == ("normal", "normal 2")
    assert axis("latent.scaling=raw,centred").labels == ("raw", "centred")


def test_an_optimizer_brings_a_rate_of_its_own_and_rate_multiplies_it():
    sgd = axis("optimizer=sgd").levels[0]
    assert sgd.settings["optimizer.lr_G"] == pytest.approx(0.1)
    assert sgd.settings["optimizer.lr_D"] == pytest.approx(0.2)
    study = plan("s", [axis("optimizer=sgd,lion"), axis("rate=0.5,2")], 1)
    configs = {trial.levels: trial.config(BASE).optimizer for trial in study.trials}
    assert configs["sgd", "2"] == OptimizerConfig("sgd", 0.2, 0.4, beta1=0.0)
    assert configs["lion", "0.5"].lr_G == pytest.approx(5e-5)


@pytest.mark.parametrize("name", design.OPTIMIZERS)
def test_every_named_optimizer_is_a_valid_one(name):
    config = plan("s", [axis(f"optimizer={name}")], 1).trials[0].config(BASE)
    assert config.optimizer.lr_D == pytest.approx(2 * config.optimizer.lr_G)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latent.sise=1", "'latent.sise' is not a field that can be varied"),
        ("home=a,b", "'home' is not a field that can be varied; name one of data.*"),
        ("tracking.uri=a,b", "tracking says where their figures go, and is the same for all runs"),
        ("evaluation.samples=80,90", "evaluation says how runs are measured"),
        ("latent.size+ray.workers=1+1,2+2", "ray says where they run, which changes nothing"),
        ("latent.size", "must be FIELD=VALUE"),
        ("latent.size=1,1", "values that differ"),
        ("latent.size+latent.scaling=1,10", "'1' must hold 2 values joined by +"),
        ("optimizer=sdg", "optimizer='sdg' is not one of sgd, momentum"),
        ("rate=fast", "rate=fast must be a positive number"),
        ("train.rng_seed=1,2", "use --sweep.seeds"),
        ("data.images=200..1700", "shards are made before a run begins, so name the values"),
    ],
)
def test_a_mistyped_axis_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=r"sweep\.axis") as error:
        axis(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_two_axes_of_one_field_are_refused():
    with pytest.raises(ValueError, match=r"optimizer\.name is set by both"):
        plan("s", [axis("optimizer=sgd,adam"), axis("optimizer.name=adam,sgd")], 1)


def test_a_grid_runs_every_cell_with_every_seed_replicates_outermost():
    study = plan("s", [axis("latent.size=1,10,100"), axis("optimizer=sgd,adam")], 5)
    assert len(study.trials) == len({trial.name for trial in study.trials}) == 30
    assert len(study.cells) == 6
    for seed in range(5):
        replicate = study.trials[6 * seed : 6 * seed + 6]
        assert {trial.levels for trial in replicate} == set(study.cells)
        assert {trial.rng_seed for trial in replicate} == {seed}
    assert [t.levels for t in study.trials[:6]] != [t.levels for t in study.trials[6:12]]


def test_a_sobol_subset_takes_each_level_about_as_often():
    axes = [axis("latent.size=1,2,4,8,16,32,64,128"), axis("optimizer=sgd,adam,lion,rmsprop")]
    study = plan("s", axes, 1, order="sobol", cells=16)
    assert len(study.cells) == 16
    for place, most in ((0, 3), (1, 5)):
        counts = Counter(cell[place] for cell in study.cells)
        assert max(counts.values()) <= most
        assert min(counts.values()) >= 1


def test_a_random_subset_is_of_different_cells_and_repeatable():
    axes = [axis("latent.size=1,2,4,8"), axis("optimizer=sgd,adam,lion")]
    study, again = (plan("s", axes, 2, order="random", cells=7) for _ in range(2))
    assert len(study.cells) == 7
    assert len(study.trials) == 14
    assert study == again
    with pytest.raises(ValueError, match=r"sweep\.cells=13 must lie in 1 \.\. 12"):
        plan("s", axes, 1, order="random", cells=13)


def test_a_trial_is_a_run_with_a_name_that_tells():
    study = plan("mine", [axis("latent.distribution+latent.scaling=normal+centred")], 1)
    (trial,) = study.trials
    config = trial.config(replace(BASE, name="other"))
    assert config.name == trial.name == "mine.normal-centred-s0"
    assert trial.label == "normal-centred-s0"
    assert config.latent.scaling == "centred"


def test_settings_that_do_not_go_together_are_refused():
    pack = Axis("network.pack", (Level("2", {"network.pack": 2}),))
    told = Axis("network.conditional", (Level("true", {"network.conditional": True}),))
    with pytest.raises(ValueError, match=r"network\.pack=2"):
        plan("s", [pack, told], 1).trials[0].config(BASE)


def test_a_study_is_read_as_it_was_written(tmp_path):
    study = plan("s", [axis("latent.size=1,10"), axis("optimizer=sgd,adam")], 2)
    study.save(tmp_path)
    assert design.load(tmp_path) == study


def test_every_field_of_what_and_how_a_gan_learns_can_be_varied():
    sections = {"data", "latent", "network", "loss", "optimizer", "train"}
    fields = {name for name in flatten(BASE) if name.partition(".")[0] in sections}
    for field in fields - {"train.rng_seed"}:
        assert axis(f"{field}=1,2").labels == ("1", "2"), field


def trials_of(*texts, base=BASE):
    axes = [axis(text, value_of) for text in texts]
    return [trial.config(judged_alike(base, axes)) for trial in plan("s", axes, 1).trials]


def test_runs_on_other_images_are_judged_by_the_same():
    few, all_ = sorted(
        trials_of("data.images+latent.size=500+1,null+2"), key=lambda one: one.latent.size
    )
    assert few.data.images == 500
    assert all_.data.images is None
    assert few.reference_data() == all_.reference_data() == all_.data
    texts = ("data.flip=true", "data.split=test", "data.drawn=9", "data.encoding=jpeg")
    (other,) = trials_of("data.size=32", *texts)
    assert other.reference_data() == BASE.data != other.data
    small = replace(BASE, evaluation=replace(BASE.evaluation, reals={"size": 8}))
    (other,) = trials_of("data.size=32", base=small)  # unless others are asked for
    assert other.reference_data() == replace(BASE.data, size=8)


def test_what_images_show_is_judged_by_images_that_show_it():
    for text in ("data.source+data.images=digits+5", "data.root=/a", "data.crop=24"):
        (other,) = trials_of(text)
        assert other.reference_data() == other.data
        assert axis(text).shows_others
    (few,) = trials_of("data.source=digits", "data.images=5")
    assert few.reference_data() == replace(few.data, images=None)
    assert not axis("data.images=1,2").shows_others


def test_all_images_are_called_so():
    assert axis("data.images=5,null", value_of).labels == ("5", "all")


def test_a_number_of_a_range_stays_in_it_and_whole_ones_are_told_apart_however_large():
    rates = axis("optimizer.beta1=0.1..0.9", lambda _, value: float(value))
    assert rates.level(1.08).settings == {"optimizer.beta1": 0.9}
    assert rates.level(0.12345).label == "0.123"
    sizes = axis("latent.size=1..2000000")
    assert sizes.level(1_234_567) == Level("1234567", {"latent.size": 1_234_567})
    assert [level.label for level in sizes.samples] == ["1", "2", "2000000"]
