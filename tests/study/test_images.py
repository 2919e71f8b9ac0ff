"""Which sets of images a study needs, and what its runs are told of them."""

from dataclasses import replace
from pathlib import Path

import pytest

from ganray.cli import value_of
from ganray.config import DataConfig
from ganray.data import prepare
from ganray.study.design import judged_alike, parse_axis, plan
from ganray.study.images import StudyImages
from ganray.training import sets
from ganray.training.judge import Judge
from tests.conftest import tiny_config


def images_of(home, *texts, source="digits"):
    plain = tiny_config(home)
    network = replace(plain.network, kind="mlp")
    base = replace(plain, data=DataConfig(source, size=0), network=network)
    axes = [parse_axis(text, base, value_of) for text in texts]
    base = judged_alike(base, axes)
    return base, StudyImages(base, [t.config(base) for t in plan("s", axes, 2).trials])


def test_runs_that_differ_in_other_things_share_one_set(tmp_path):
    base, images = images_of(tmp_path, "latent.size=1,2", "data.threads=1,2")
    (one,) = images
    assert one.same
    assert images.shown.config == base
    images.lay_down()
    identity = prepare.identity(base.data, one.images, tmp_path)
    assert images.identity() == ("1,797 images of scikit-learn's digits", identity)


def test_runs_are_given_what_they_learn_and_what_judges_them(tmp_path, monkeypatch):
    asked = []

    def judge_of(one):
        asked.append(one.config.reference_data())
        return Judge("classifier", "" if one.same else one.reals.where)

    monkeypatch.setattr(sets, "judge_of", judge_of)
    base, images = images_of(tmp_path, "data.images=100,null", "data.size=8,16")
    images.lay_down()
    given = images.given()
    assert len(given) == 4
    assert asked == [base.data] * 4
    few = replace(base, data=replace(base.data, images=100, size=16))
    (reals,) = map(str, (tmp_path / "shards").glob("*-1797-full"))
    assert given[few.images_identity()].images.endswith("-100-16")
    assert given[few.images_identity()].judge == Judge("classifier", reals)
    assert {one.classes for one in given.values()} == {10}
    assert {Path(one.images) for one in given.values()} < set(images.local())
    told, digests = images.identity()
    assert "100 images of scikit-learn's digits" in told
    assert len(digests.split("-")) == len(list((tmp_path / "shards").iterdir())) == 5
    # MLflow has a dataset of its own for each.
    datasets = [images.dataset_of(replace(few, data=replace(few.data, size=s))) for s in (8, 16)]
    assert datasets[0]["digest"] != datasets[1]["digest"]
    assert datasets[1]["path"] == given[few.images_identity()].images
    assert images.dataset_of(base) in [
        images.dataset_of(one.config)
        for one in images  # no run learns the base's own
    ]


def test_an_axis_is_not_given_a_stand_in(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "fetch", lambda data, home: replace(data, source="digits"))
    with pytest.raises(ValueError, match=r"data\.source=mnist is asked for by an axis"):
        images_of(tmp_path, "data.source=digits,mnist")
