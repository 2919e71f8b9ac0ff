"""Which images a run trains on: found, refused or drawn before anything is held for it."""

import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ganray.config.schema import DataConfig
from ganray.data import prepare, sources
from ganray.data.format import SPLITS, Manifest
from ganray.data.reader import ShardedDataset
from ganray.data.storage import Storage
from ganray.errors import UserError
from tests.data.sources.source_text_files import SHAPE, expected, write_text

DRAWN = DataConfig(faces=12, size=16)


def test_without_celeba_faces_are_drawn_and_converted_once(tmp_path):
    plan = prepare.plan_dataset(DRAWN, tmp_path)
    assert plan.procedural
    assert plan.has_classifier
    assert not plan.ready
    assert "no CelebA" in str(plan)
    digest = prepare.prepare_dataset(DRAWN, plan)
    images = prepare.open_dataset(DRAWN, plan.location)
    assert (len(images), images.image_shape) == (12, (16, 16, 3))
    stamps = [path.stat().st_mtime_ns for path in sorted(Path(plan.location).iterdir())]
    again = prepare.plan_dataset(DRAWN, tmp_path)
    assert again.ready
    assert prepare.prepare_dataset(DRAWN, again) == digest
    assert [path.stat().st_mtime_ns for path in sorted(Path(plan.location).iterdir())] == stamps


def test_celeba_and_the_drawn_stand_in_go_through_one_path(tmp_path, celeba_zip, celeba_folder):
    """The same pictures from the zip and from the folder give the same shards."""
    rows = []
    for folder in (celeba_zip, celeba_folder):
        data = DataConfig(root=str(folder), size=16)
        plan = prepare.plan_dataset(data, tmp_path)
        assert not plan.procedural
        prepare.prepare_dataset(data, plan)
        rows.append(ShardedDataset(Path(plan.location)).annotations(np.arange(150)))
    np.testing.assert_array_equal(rows[0].ids, rows[1].ids)
    np.testing.assert_array_equal(rows[0].attributes, rows[1].attributes)


def test_a_shard_that_was_lost_is_made_again(tmp_path, celeba_folder):
    data = DataConfig(root=str(celeba_folder), size=8)
    made = prepare.plan_dataset(data, tmp_path)
    digest = prepare.prepare_dataset(data, made)
    (Path(made.location) / "shard-00000.h5").unlink()
    with pytest.raises(ValueError, match="prepare again into this folder"):
        prepare.open_dataset(data, made.location)
    again = prepare.plan_dataset(data, tmp_path)
    assert not again.ready
    assert prepare.prepare_dataset(data, again) == digest
    assert prepare.plan_dataset(data, tmp_path).ready
    assert len(prepare.open_dataset(data, made.location)) == 150


def test_splits_and_limits_have_folders_of_their_own(tmp_path, celeba_folder):
    data = DataConfig(root=str(celeba_folder), size=16)
    plans = [
        prepare.plan_dataset(changed, tmp_path)
        for changed in (
            data,
            replace(data, split="train"),
            replace(data, split="test"),
            replace(data, images=7),
            replace(data, size=0),
        )
    ]
    assert [plan.count for plan in plans] == [150, 100, 20, 7, 150]
    assert len({plan.location for plan in plans}) == 5


def test_a_download_is_planned_without_being_made(tmp_path):
    plan = prepare.plan_dataset(DataConfig(download=True, size=16), tmp_path)
    assert plan.count == 202_599
    data = DataConfig("cifar10", download=True, size=0, split="test")
    plan = prepare.plan_dataset(data, tmp_path)
    assert (plan.count, plan.image_shape, plan.classes) == (10_000, (32, 32, 3), 10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataConfig(root="/nowhere"), "/nowhere"),
        (replace(DRAWN, faces=1, split="valid"), "data.split=valid has no images in"),
        (replace(DRAWN, faces=10**12), "MiB free, but the shards need"),
    ],
)
def test_invalid_options_are_rejected_in_one_line(data, message, tmp_path):
    with pytest.raises(ValueError, match=r".") as error:
        prepare.plan_dataset(data, tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_torchvision_downloads_once_and_not_if_celeba_is_complete(
    tmp_path, celeba_folder, monkeypatch
):
    asked = []

    def download(name: str, root: Path, download: bool) -> None:
        asked.append((name, root, download))

    monkeypatch.setattr(prepare, "open_source", download)
    open_source = sources.open_source
    monkeypatch.setattr(prepare, "_open", lambda name, root, _: open_source(name, root))
    prepare.fetch(DataConfig(root=str(celeba_folder)), tmp_path)
    prepare.fetch(DataConfig(root=str(celeba_folder), download=True), tmp_path)
    assert asked == []
    prepare.fetch(DataConfig(download=True), tmp_path)
    assert asked == [("celeba", tmp_path / "data" / "celeba", True)]


def test_digits_need_no_root_and_mnist_is_planned_before_it_is_fetched(tmp_path):
    data = DataConfig(source="digits", size=16, split="train")
    plan = prepare.plan_dataset(data, tmp_path)
    assert (plan.count, plan.image_shape, plan.ready) == (1_500, (16, 16, 1), False)
    prepare.prepare_dataset(data, plan)
    assert prepare.plan_dataset(data, tmp_path).ready
    images = prepare.open_dataset(data, plan.location)
    assert set(images.annotations(np.arange(1_500)).labels) == set(range(10))

    data = DataConfig(source="mnist", size=0, split="train", download=True)
    plan = prepare.plan_dataset(data, tmp_path)
    assert (plan.count, plan.image_shape) == (60_000, (28, 28, 1))
    assert "to be downloaded" in str(plan)
    with pytest.raises(ValueError, match=r"contains no MNIST"):
        prepare.plan_dataset(replace(data, download=False), tmp_path)


def test_finished_shards_are_a_root(tmp_path, squares):
    data = DataConfig(root=str(squares), size=16)
    plan = prepare.plan_dataset(data, tmp_path)
    assert (plan.count, plan.location, plan.ready, plan.source) == (100, str(squares), True, None)
    assert prepare.prepare_dataset(data, plan) == Manifest.read(squares).digest()
    assert not list(tmp_path.iterdir())
    assert prepare.plan_dataset(replace(data, crop=8), tmp_path).image_shape == (8, 8, 3)
    with pytest.raises(
        ValueError, match=r"data\.size=64.*contains pixels of 16x16.*--data\.size 16"
    ):
        prepare.plan_dataset(replace(data, size=64), tmp_path)
    with pytest.raises(ValueError, match=r"data\.crop=17 is larger than the images, 16x16"):
        prepare.plan_dataset(replace(data, size=0, crop=17), tmp_path)


def test_the_number_of_images_is_a_maximum(tmp_path, squares):
    """A preset has a number of its own, whatever shards it gets."""
    data = DataConfig(root=str(squares), size=16)
    every = prepare.plan_dataset(data, tmp_path)
    some, more = replace(data, images=7), replace(data, images=7_000)
    plan = prepare.plan_dataset(some, tmp_path)
    images = prepare.open_dataset(some, plan.location)
    assert (plan.count, len(images)) == (7, 7)
    pixels, first = (torch.zeros(7, 16, 16, 3, dtype=torch.uint8) for _ in range(2))
    images.read_batch(np.arange(7), pixels)
    prepare.open_dataset(data, every.location).read_batch(np.arange(7), first)
    assert torch.equal(pixels, first)
    assert prepare.plan_dataset(more, tmp_path).count == 100
    for identify in (prepare.prepare_dataset, prepare.dataset_identity):
        assert identify(more, every) == identify(data, every) != identify(some, plan)
        assert len(identify(some, plan)) == len(identify(data, every))


def test_damaged_images_are_skipped_once_for_all(tmp_path, ganray_log):
    for index in range(20):
        Image.new("RGB", (16, 16), (index, 0, 0)).save(tmp_path / f"{index}.png")
    path = tmp_path / "7.png"
    path.write_bytes(path.read_bytes()[:-30])  # its header is valid
    data = DataConfig(source="folder", root=str(tmp_path), size=16)
    with pytest.raises(ValueError, match=r"7\.png: cannot be read"):
        prepare.prepare_dataset(data, prepare.plan_dataset(data, tmp_path / "home"))
    data = replace(data, bad_images="skip")
    plan = prepare.plan_dataset(data, tmp_path / "home")
    digest = prepare.prepare_dataset(data, plan)
    assert "7.png: cannot be read" in ganray_log.text
    assert "1 left out: " in ganray_log.text
    ganray_log.clear()
    plan = prepare.plan_dataset(data, tmp_path / "home")
    assert (plan.ready, plan.count) == (True, 19)
    assert plan.notes[-1] == "cannot be read, left out: 1"
    assert prepare.prepare_dataset(data, plan) == digest
    assert not ganray_log.records
    pixels = torch.zeros(19, 16, 16, 3, dtype=torch.uint8)
    prepare.open_dataset(data, plan.location).read_batch(np.arange(19), pixels)
    assert set(pixels[:, 0, 0, 0].tolist()) == set(range(20)) - {7}


def test_shards_behind_a_url_are_a_root(tmp_path, squares):
    data = DataConfig(root=f"file://{squares}", size=16, cache=tmp_path / "cache")
    plan = prepare.plan_dataset(data, tmp_path)
    assert (plan.count, plan.location, plan.ready) == (100, data.root, True)
    assert prepare.prepare_dataset(data, plan) == Manifest.read(squares).digest()
    images = prepare.open_dataset(data, plan.location)
    assert not list(tmp_path.glob("cache/*/*.h5"))
    assert images.annotations(np.arange(100)).ids.tolist() == list(range(100))
    assert data.blocks(images.shard_rows) == (64, 4)
    with pytest.raises(ValueError, match=r"nowhere"):
        prepare.plan_dataset(replace(data, root="file:///nowhere"), tmp_path)


def test_jpegs_are_kept_once_and_read_in_any_size(tmp_path, celeba_zip):
    data = DataConfig(root=str(celeba_zip), encoding="jpeg", size=32)
    plan = prepare.plan_dataset(data, tmp_path)
    assert (plan.stored_shape, plan.image_shape) == ((218, 178, 3), (32, 32, 3))
    prepare.prepare_dataset(data, plan)
    for size, shape in ((32, (32, 32, 3)), (64, (64, 64, 3)), (0, (218, 178, 3))):
        other = replace(data, size=size)
        again = prepare.plan_dataset(other, tmp_path)
        assert (again.location, again.ready) == (plan.location, True)
        assert prepare.open_dataset(other, plan.location).image_shape == shape


@pytest.mark.parametrize("size", [0, 32])
def test_the_file_of_the_source_text_is_celeba_at_any_size(tmp_path, size):
    file = write_text(tmp_path / "celeba.h5py", compression="gzip", compression_opts=9)
    data = DataConfig(root=str(file), size=size)
    plan = prepare.plan_dataset(data, tmp_path)
    assert (str(plan), plan.ready) == (f"13 images of the source text's file {file}", False)
    prepare.prepare_dataset(data, plan)
    again = prepare.plan_dataset(replace(data, source="source-text"), tmp_path)
    assert (again.location, again.ready) == (plan.location, True)
    with closing(prepare.open_dataset(data, plan.location)) as images:
        assert images.image_shape == ((size, size, 3) if size else SHAPE)
        if not size:
            batch = torch.empty((13, *SHAPE), dtype=torch.uint8)
            images.read_batch(np.arange(13), batch)
            np.testing.assert_array_equal(batch, expected())


def test_splits_of_faces_are_known_before_they_are_drawn(tmp_path):
    """A face goes where its line of the partition says, in CelebA's proportions."""
    plans = [prepare.plan_dataset(replace(DRAWN, faces=20, split=s), tmp_path) for s in SPLITS]
    assert [plan.count for plan in plans] == [16, 2, 2]
    for data, plan in zip((replace(DRAWN, faces=20, split=s) for s in SPLITS), plans, strict=True):
        prepare.prepare_dataset(data, plan)
        with closing(prepare.open_dataset(data, plan.location)) as images:
            assert len(images) == plan.count


def test_another_driver_finds_shards_in_the_storage_without_the_images(celeba_folder, tmp_path):
    folder = shutil.copytree(celeba_folder, tmp_path / "celeba")
    data = DataConfig(root=str(folder), size=16, cache=tmp_path / "cache")
    storage = Storage(f"memory://{tmp_path}")
    plan = prepare.plan_dataset(data, tmp_path / "one", storage)
    assert not plan.ready
    digest = prepare.prepare_dataset(data, plan)
    location = prepare.publish(data, plan, storage)
    assert prepare.plan_dataset(data, tmp_path / "one", storage).location == plan.location
    elsewhere = prepare.plan_dataset(data, tmp_path / "two", storage)  # it has the images
    assert (elsewhere.ready, elsewhere.location) == (True, location)
    assert str(elsewhere) == str(plan)
    shutil.rmtree(folder)
    prepare._open.cache_clear()  # another driver has read nothing yet
    found = prepare.plan_dataset(data, tmp_path / "two", storage)
    assert (found.ready, found.location, found.count) == (True, location, plan.count)
    assert prepare.prepare_dataset(data, found) == digest
    assert prepare.publish(data, found, storage) == location
    assert prepare.dataset_identity(data, found) == prepare.dataset_identity(data, plan)
    batches = torch.empty((2, 7, 16, 16, 3), dtype=torch.uint8)
    for batch, where in zip(batches, (plan, found), strict=True):
        with closing(prepare.open_dataset(data, where.location)) as images:
            images.read_batch(np.arange(7), batch)
    assert torch.equal(*batches)
    with pytest.raises(UserError, match="celeba"):
        prepare.plan_dataset(replace(data, size=32), tmp_path / "two", storage)
