"""Image sets of a sweep and the assets of its runs."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ganray.config.cli import parse_value
from ganray.config.schema import DataConfig
from ganray.data import prepare
from ganray.data.writer import write_shards
from ganray.evaluation.datasets import RunDatasets
from ganray.evaluation.reference import EvaluationAssets
from ganray.sweeps.axes import parse_axis, share_reference
from ganray.sweeps.datasets import SweepDatasets
from ganray.sweeps.design import make_plan
from ganray.training.plan import Workers, plan_rows
from tests.conftest import Squares, tiny_config


def make_datasets(home, *texts, conditional=False, **data):
    plain = tiny_config(home)
    network = replace(plain.network, kind="mlp", conditional=conditional)
    evaluation = replace(plain.evaluation, samples=80)
    data = DataConfig(**({"source": "digits", "size": 0} | data))
    base = replace(plain, data=data, network=network, evaluation=evaluation)
    base, axes = share_reference(base, [parse_axis(text, base, parse_value) for text in texts])
    return base, SweepDatasets(base, [t.config(base) for t in make_plan("s", axes, 2).trials])


def test_runs_on_the_same_images_share_one_set(tmp_path):
    base, images = make_datasets(tmp_path, "latent.size=1,2", "data.threads=1,2")
    (one,) = images
    assert one.same
    assert images.shown.config == base
    images.prepare_datasets()
    identity = prepare.dataset_identity(base.data, one.images)
    assert images.identity() == ("1,797 images of scikit-learn's digits", identity)


def test_assets_of_runs_on_different_training_images(tmp_path, monkeypatch):
    trained_on = []

    def prepare_classifier(datasets):
        trained_on.append(datasets.config.reference_data())
        return ""

    monkeypatch.setattr(RunDatasets, "prepare_classifier", prepare_classifier)
    base, images = make_datasets(tmp_path, "data.images=100,null", "data.size=8,16")
    images.prepare_datasets()
    given = images.run_assets()
    assert len(given) == 4
    assert trained_on == [base.data]  # one classifier for all runs
    few = replace(base, data=replace(base.data, images=100, size=16))
    (reference_shards,) = map(str, (tmp_path / "shards").glob("*-1797-full"))
    assert given[few.images_identity()].shards.endswith("-100-16")
    assert given[few.images_identity()].assets == EvaluationAssets("", reference_shards)
    assert {one.num_classes for one in given.values()} == {10}
    assert {Path(one.shards) for one in given.values()} < set(images.local_folders())
    description, digests = images.identity()
    assert "100 images of scikit-learn's digits" in description
    assert len(digests.split("-")) == len(list((tmp_path / "shards").iterdir())) == 5
    # MLflow has a dataset of its own for each.
    datasets = [images.dataset_info(replace(few, data=replace(few.data, size=s))) for s in (8, 16)]
    assert datasets[0]["digest"] != datasets[1]["digest"]
    assert datasets[1]["path"] == given[few.images_identity()].shards
    assert images.dataset_info(base) in [
        images.dataset_info(one.config)
        for one in images  # no run learns the base's own
    ]


def test_level_of_an_axis_does_not_fall_back_to_another_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "fetch", lambda data, home: replace(data, source="digits"))
    with pytest.raises(ValueError, match=r"data\.source=mnist, a level of an axis, was neither"):
        make_datasets(tmp_path, "data.source=digits,mnist")


def test_levels_with_the_same_images_are_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"two levels .* give the same 1,797 images of"):
        make_datasets(tmp_path, "data.images=5000,null")
    with pytest.raises(ValueError, match=r"two levels .* give the same"):  # no faces are drawn
        make_datasets(tmp_path, "data.faces=1,2")


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
def test_equal_images_are_recognized_whatever_the_options(tmp_path, axis, data, same):
    if same:
        with pytest.raises(ValueError, match=r"two levels .* give the same 1,797 images of"):
            make_datasets(tmp_path, axis, **data)
    else:
        assert len(list(make_datasets(tmp_path, axis, **data)[1])) == 2


def test_finished_shards_have_no_splits(tmp_path):
    write_shards(Squares(200), tmp_path / "set", processes=1)
    with pytest.raises(ValueError, match=r"data\.split=test and .* all of .* is used"):
        make_datasets(tmp_path, "data.split=all,test", root=str(tmp_path / "set"), source="celeba")


def test_too_few_reference_images_are_rejected(tmp_path):
    few = r"79 images of .* are too few to compare runs with: use at least 80"
    with pytest.raises(ValueError, match=few):
        make_datasets(tmp_path, "data.source+data.images=digits+79")
    make_datasets(tmp_path, "data.source+data.images=digits+80")


def test_plan_shows_the_base_only_if_a_run_uses_its_images(tmp_path):
    """The base needs labels, but procedural faces have none."""
    levels = "data.source+network.conditional=celeba+false"
    base, images = make_datasets(tmp_path, levels, conditional=True, faces=99)
    assert base.network.conditional
    assert not images.shown.config.network.conditional
    plan_rows(images.shown, Workers(1, False, 1))
    base, images = make_datasets(tmp_path, "latent.size=1,2", conditional=True)
    assert images.shown.config == base


def test_all_shards_together_must_fit_on_the_disk(tmp_path, monkeypatch):
    one = 1797 * 64
    free = shutil.disk_usage(tmp_path)._replace(free=one + 1)
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda _: free)
    make_datasets(tmp_path, "latent.size=1,2")
    with pytest.raises(ValueError, match="the shards need"):
        make_datasets(tmp_path, "data.source+data.images=digits+1700,digits+1750")
