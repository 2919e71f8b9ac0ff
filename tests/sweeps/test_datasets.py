"""Which sets of images a study needs, and what its runs are told of them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ganray.config.cli import value_of
from ganray.config.schema import DataConfig
from ganray.data import prepare
from ganray.data.writer import write_shards
from ganray.evaluation import reference
from ganray.evaluation.reference import EvaluationAssets
from ganray.sweeps.axes import parse_axis, share_reference
from ganray.sweeps.datasets import SweepDatasets
from ganray.sweeps.design import make_plan
from ganray.training.plan import Workers, plan_rows
from tests.conftest import Squares, tiny_config


def generate(home, *texts, conditional=False, **data):
    plain = tiny_config(home)
    network = replace(plain.network, kind="mlp", conditional=conditional)
    evaluation = replace(plain.evaluation, samples=80)
    data = DataConfig(**({"source": "digits", "size": 0} | data))
    base = replace(plain, data=data, network=network, evaluation=evaluation)
    base, axes = share_reference(base, [parse_axis(text, base, value_of) for text in texts])
    return base, SweepDatasets(base, [t.config(base) for t in make_plan("s", axes, 2).trials])


def test_runs_that_differ_in_other_things_share_one_set(tmp_path):
    base, images = generate(tmp_path, "latent.size=1,2", "data.threads=1,2")
    (one,) = images
    assert one.same
    assert images.shown.config == base
    images.prepare_datasets()
    identity = prepare.dataset_identity(base.data, one.images, tmp_path)
    assert images.identity() == ("1,797 images of scikit-learn's digits", identity)


def test_runs_are_given_what_they_learn_and_what_judges_them(tmp_path, monkeypatch):
    asked = []

    def prepare_run_classifier(one):
        asked.append(one.config.reference_data())
        return ""

    monkeypatch.setattr(reference, "prepare_run_classifier", prepare_run_classifier)
    base, images = generate(tmp_path, "data.images=100,null", "data.size=8,16")
    images.prepare_datasets()
    given = images.run_assets()
    assert len(given) == 4
    assert asked == [base.data]  # it judges all
    few = replace(base, data=replace(base.data, images=100, size=16))
    (reals,) = map(str, (tmp_path / "shards").glob("*-1797-full"))
    assert given[few.images_identity()].shards.endswith("-100-16")
    assert given[few.images_identity()].assets == EvaluationAssets("", reals)
    assert {one.num_classes for one in given.values()} == {10}
    assert {Path(one.shards) for one in given.values()} < set(images.local_folders())
    told, digests = images.identity()
    assert "100 images of scikit-learn's digits" in told
    assert len(digests.split("-")) == len(list((tmp_path / "shards").iterdir())) == 5
    # MLflow has a dataset of its own for each.
    datasets = [images.dataset_info(replace(few, data=replace(few.data, size=s))) for s in (8, 16)]
    assert datasets[0]["digest"] != datasets[1]["digest"]
    assert datasets[1]["path"] == given[few.images_identity()].shards
    assert images.dataset_info(base) in [
        images.dataset_info(one.config)
        for one in images  # no run learns the base's own
    ]


def test_an_axis_is_not_given_a_stand_in(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "fetch", lambda data, home: replace(data, source="digits"))
    with pytest.raises(ValueError, match=r"data\.source=mnist is asked for by an axis"):
        generate(tmp_path, "data.source=digits,mnist")


def test_levels_that_are_the_same_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"two levels .* come to the same 1,797 images of"):
        generate(tmp_path, "data.images=5000,null")
    with pytest.raises(ValueError, match=r"two levels .* come to the same"):  # no faces are drawn
        generate(tmp_path, "data.drawn=1,2")


@pytest.mark.parametrize(
    ("axis", "data", "same"),
    [
        ("data.size=0,8", {}, True),  # digits are 8x8
        ("data.crop=0,8", {}, True),
        ("data.crop=0,16", {"size": 16}, True),
        ("data.size=8,16", {}, False),
        ("data.crop=0,8", {"size": 16}, False),
        ("data.flip=false,true", {}, False),
        ("data.source+data.root+data.split=digits+null+all,digits+null+train", {}, False),
    ],
)
def test_the_same_images_by_other_words_are_the_same(tmp_path, axis, data, same):
    if same:
        with pytest.raises(ValueError, match=r"two levels .* come to the same 1,797 images of"):
            generate(tmp_path, axis, **data)
    else:
        assert len(list(generate(tmp_path, axis, **data)[1])) == 2


def test_finished_shards_have_no_splits(tmp_path):
    write_shards(Squares(200), tmp_path / "set", processes=1)
    with pytest.raises(ValueError, match=r"data\.split=test, .* but all of .* are used"):
        generate(tmp_path, "data.split=all,test", root=str(tmp_path / "set"), source="celeba")


def test_too_few_images_to_compare_with_end_a_study_before_it_begins(tmp_path, monkeypatch):
    def faces(count):
        return generate(tmp_path, "latent.size=1", source="celeba", size=8, drawn=count)[1]

    few = r"159 images of .* are too few to compare runs with: 80 must be left, once"
    with pytest.raises(ValueError, match=few):
        generate(tmp_path, "data.source+data.images=digits+159")
    generate(tmp_path, "data.source+data.images=digits+160")
    with pytest.raises(ValueError, match=r"79 images of .* 80 must be left; compare"):
        faces(79)
    # Whether there will be a classifier of attributes, the plan does not say.
    monkeypatch.setattr(reference, "prepare_run_classifier", lambda one: "a file")
    with pytest.raises(ValueError, match=few):
        faces(159).run_assets()
    assert len(faces(160).run_assets()) == 1


def test_images_that_no_run_learns_are_not_shown_with_the_networks_of_the_base(tmp_path):
    """Which may not take them: these are asked for labels, and faces have none."""
    levels = "data.source+network.conditional=celeba+false"
    base, images = generate(tmp_path, levels, conditional=True, drawn=99)
    assert base.network.conditional
    assert not images.shown.config.network.conditional
    plan_rows(images.shown, Workers(1, False, 1))
    base, images = generate(tmp_path, "latent.size=1,2", conditional=True)
    assert images.shown.config == base


def test_shards_must_have_room_together(tmp_path, monkeypatch):
    one = 1797 * 64
    free = shutil.disk_usage(tmp_path)._replace(free=one + 1)
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda _: free)
    generate(tmp_path, "latent.size=1,2")
    with pytest.raises(ValueError, match="the shards need"):
        generate(tmp_path, "data.source+data.images=digits+1700,digits+1750")
