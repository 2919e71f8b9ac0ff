"""Which images a run trains on: found, refused or drawn before anything is held for it."""

from dataclasses import replace

import numpy as np
import pytest

from ganray.config import DataConfig
from ganray.data import prepare
from ganray.data.reader import ShardReader

DRAWN = DataConfig(drawn=12, size=16)


def test_without_celeba_faces_are_drawn_and_converted_once(tmp_path):
    plan = prepare.plan(DRAWN, tmp_path)
    assert plan.drawn
    assert not plan.ready
    assert "no CelebA" in str(plan)
    manifest = prepare.prepare(DRAWN, plan)
    assert plan.ready
    assert (manifest.num_images, manifest.image_shape) == (12, (16, 16, 3))
    stamps = [path.stat().st_mtime_ns for path in sorted(plan.folder.iterdir())]
    assert prepare.prepare(DRAWN, prepare.plan(DRAWN, tmp_path)) == manifest
    assert [path.stat().st_mtime_ns for path in sorted(plan.folder.iterdir())] == stamps


def test_celeba_and_the_drawn_stand_in_go_through_one_path(tmp_path, celeba_zip, celeba_folder):
    """The same pictures from the zip and from the folder give the same shards."""
    rows = []
    for folder in (celeba_zip, celeba_folder):
        data = DataConfig(celeba=folder, size=16)
        plan = prepare.plan(data, tmp_path)
        assert not plan.drawn
        prepare.prepare(data, plan)
        reader = ShardReader(plan.folder)
        rows.append((reader.ids, reader.attributes))
    np.testing.assert_array_equal(rows[0][0], rows[1][0])
    np.testing.assert_array_equal(rows[0][1], rows[1][1])


def test_splits_and_limits_have_folders_of_their_own(tmp_path, celeba_folder):
    data = DataConfig(celeba=celeba_folder, size=16)
    plans = [
        prepare.plan(changed, tmp_path)
        for changed in (
            data,
            replace(data, split="train"),
            replace(data, split="test"),
            replace(data, images=7),
            replace(data, size=0),
        )
    ]
    assert [plan.count for plan in plans] == [150, 100, 20, 7, 150]
    assert len({plan.folder for plan in plans}) == 5


def test_a_download_is_planned_without_being_made(tmp_path):
    plan = prepare.plan(DataConfig(download=True, size=16), tmp_path)
    assert plan.count == 202_599
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataConfig(celeba="/nowhere"), "/nowhere"),
        (replace(DRAWN, split="test"), "data.split=test needs CelebA; give --data.celeba"),
        (replace(DRAWN, drawn=10**12), "GiB free, but the shards need"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(data, message, tmp_path):
    data = replace(data, celeba=data.celeba and tmp_path.joinpath(data.celeba))
    with pytest.raises(ValueError, match=r".") as error:
        prepare.plan(data, tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_torchvision_is_asked_once_and_not_where_celeba_is_complete(
    tmp_path, celeba_folder, monkeypatch
):
    asked = []
    monkeypatch.setattr(prepare.CelebA, "download", asked.append)
    prepare.fetch(DataConfig(celeba=celeba_folder), tmp_path)
    prepare.fetch(DataConfig(celeba=celeba_folder, download=True), tmp_path)
    assert asked == []
    prepare.fetch(DataConfig(download=True), tmp_path)
    assert asked == [tmp_path / "data"]
