import fcntl
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from ganray.data import writer
from ganray.data.format import Manifest
from ganray.data.integrity import get_dataset, verify_shards
from ganray.data.reader import ShardedDataset
from ganray.data.sources.celeba import CelebA
from ganray.data.writer import resize_and_crop, write_shards
from ganray.errors import UserError
from tests.conftest import wait_until
from tests.data.conftest import SHARD_1, flip, gathered


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*.h5"))}


@pytest.mark.parametrize("side", [64, 100, 178, 33])
@pytest.mark.parametrize("picture", [(178, 218), (218, 178), (200, 200), (300, 201)])
def test_resize_and_crop_is_torchvisions_to_the_bit(side: int, picture: tuple[int, int]):
    from torchvision.transforms import CenterCrop, Compose, Resize

    pixels = np.random.default_rng(0).integers(0, 256, (*picture[::-1], 3), np.uint8)
    image = Image.fromarray(pixels)
    expected = Compose([Resize(side), CenterCrop(side)])(image)
    np.testing.assert_array_equal(np.asarray(resize_and_crop(image, side)), np.asarray(expected))


def test_what_is_written_is_read_back(source: CelebA, shards_folder: Path):
    reader = ShardedDataset(shards_folder)
    assert len(reader) == 150
    assert reader.image_shape == (64, 64, 3)
    rows = reader.annotations(np.arange(150))
    np.testing.assert_array_equal(rows.ids, source.ids)
    np.testing.assert_array_equal(rows.labels, source.labels)
    np.testing.assert_array_equal(rows.attributes, source.attributes)
    np.testing.assert_array_equal(rows.split, source.split)
    images = gathered(reader)
    for index in (0, 69, 70, 149):
        expected = resize_and_crop(source.read(index), 64)
        np.testing.assert_array_equal(images[index].numpy(), np.asarray(expected))


def test_the_original_size_is_kept_and_its_rows_fill_whole_pages(source: CelebA, tmp_path: Path):
    # 218 * 178 * 3 = 4 * 29103 bytes, so 1024 rows are the first whole number of 4096-byte pages.
    for shape, rows in (((218, 178, 3), 2048), ((64, 64, 3), 16384)):
        unit = writer.page_rows(shape)
        sizes = np.full(10**6, math.prod(shape))
        assert writer._rows_per_shard(sizes, unit, None) == rows
    write_shards(source, tmp_path, images=5, processes=1)
    expected = np.asarray(source.read(4))
    np.testing.assert_array_equal(gathered(ShardedDataset(tmp_path), [4])[0], expected)


def test_a_task_is_whole_blocks_of_about_16_mib_and_leaves_work_to_other_workers(
    source: CelebA, tmp_path: Path
):
    recipe = writer.ConversionSpec("celeba", "", 64, 0, "all")

    def portion(images: int, processes: int) -> int:
        place = writer.ShardSpec(tmp_path, 0, images, images * 12288, (64, 64, 3), 40, 0, recipe)
        return writer._rows_per_task([place], processes)

    assert portion(200_000, 2) == 21 * 64
    assert portion(2_048, 8) == 64
    assert portion(4, 1) == 64


def test_a_split_and_a_number_of_images_choose_the_first_of_that_split(
    source: CelebA, tmp_path: Path
):
    manifest = write_shards(source, tmp_path, size=8, split="valid", images=7, processes=1)
    assert ShardedDataset(tmp_path).annotations(np.arange(7)).ids.tolist() == [
        101,
        102,
        103,
        104,
        105,
        106,
        107,
    ]
    assert (manifest.num_images, manifest.recipe.split) == (7, "valid")


def test_the_number_of_processes_does_not_show(source: CelebA, shards_folder: Path, tmp_path: Path):
    manifest = write_shards(source, tmp_path, size=64, rows_per_shard=70, processes=2)
    assert contents(tmp_path) == contents(shards_folder)
    assert manifest.digest() == Manifest.read(shards_folder).digest()


def test_progress_in_a_log_is_one_line(source, tmp_path: Path, capsys: pytest.CaptureFixture):
    write_shards(source, tmp_path, size=8, processes=1)
    (line,) = capsys.readouterr().out.splitlines()
    assert "100%  150/150 images" in line
    assert "\r" not in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": 0}, "images=0: split 'all' of celeba has 150 images; use 1 to 150"),
        ({"images": 31, "split": "valid"}, "split 'valid' of celeba has 30 images"),
        ({"split": "dev"}, "split='dev' is unknown; use all, train, valid, test"),
        ({"size": -1}, "size=-1"),
        ({"rows_per_shard": 70}, "rows_per_shard=70: must be a multiple of 1024"),
    ],
)
def test_wrong_arguments_are_rejected(source: CelebA, tmp_path: Path, arguments, message: str):
    with pytest.raises(ValueError, match=r"^.*$") as error:
        write_shards(source, tmp_path / "set", **arguments)
    assert message in str(error.value)
    assert not (tmp_path / "set").exists()


def test_a_full_disk_is_noticed_before_the_work(source: CelebA, tmp_path: Path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"needs 1.8 MiB, but only 0.0 MiB are free"):
        write_shards(source, tmp_path, size=64)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_disk_that_is_filled_meanwhile_is_one_line_and_costs_no_finished_shard(
    source: CelebA, tmp_path: Path, mount_disk, monkeypatch, processes: int
):
    """1.8 MB of images on 1 MiB, of which another process was to delete the rest, say."""
    disk = mount_disk("1m")
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(writer.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(UserError, match=r"shard-00000.h5: cannot be written \(No space left"):
            write_shards(source, disk, size=64, processes=processes)
    assert not list(disk.glob("shard*"))
    subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
    manifest = write_shards(source, disk, size=64, processes=processes)
    assert manifest.digest() == write_shards(source, tmp_path / "other", size=64).digest()


# Doing it again, and being stopped.


def test_a_finished_set_is_not_written_again(source: CelebA, folder: Path):
    (folder / SHARD_1).touch()  # the same bytes with a time of their own
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    manifest = write_shards(source, folder, size=64, processes=1)
    assert manifest == Manifest.read(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_what_was_finished_before_an_interruption_is_kept(
    source: CelebA, folder: Path, shards_folder: Path
):
    (folder / "manifest.json").unlink()
    (folder / SHARD_1).rename(folder / f"{SHARD_1}.part")
    (folder / "shard-00002.h5").write_bytes(b"half a shard")
    before = (folder / "shard-00000.h5").stat().st_mtime_ns
    write_shards(source, folder, size=64, rows_per_shard=70, processes=1)
    assert (folder / "shard-00000.h5").stat().st_mtime_ns == before
    assert contents(folder) == contents(shards_folder)
    verify_shards(folder)


def test_a_damaged_shard_is_not_kept(source: CelebA, folder: Path, shards_folder: Path):
    (folder / "manifest.json").unlink()
    flip(folder / SHARD_1, row=65)
    write_shards(source, folder, size=64, rows_per_shard=70, processes=1)
    assert contents(folder) == contents(shards_folder)


def test_a_deleted_shard_is_made_again(source: CelebA, folder: Path, shards_folder: Path):
    (folder / SHARD_1).unlink()
    write_shards(source, folder, size=64, rows_per_shard=70, processes=1)
    assert contents(folder) == contents(shards_folder)


CONVERT = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
from ganray.data.writer import write_shards
from ganray.data.sources.celeba import CelebA

@dataclass(eq=False)
class Stuck(CelebA):
    def read(self, index):
        if index >= 70:
            time.sleep(600)
        return super().read(index)

if __name__ == "__main__":
    source, folder = Stuck.open(Path(sys.argv[1])), Path(sys.argv[2])
    write_shards(source, folder, size=64, rows_per_shard=70, processes=2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the workers in /proc")
def test_a_killed_conversion_is_resumed(celeba_zip: Path, shards_folder: Path, tmp_path: Path):
    script, folder = tmp_path / "convert.py", tmp_path / "set"
    script.write_text(CONVERT)
    root = Path(writer.__file__).parents[2]
    converter = subprocess.Popen(
        [sys.executable, script, celeba_zip, folder], env=os.environ | {"PYTHONPATH": str(root)}
    )
    wait_until((folder / "shard-00000.h5").exists)
    children = Path(f"/proc/{converter.pid}/task/{converter.pid}/children").read_text().split()
    converter.send_signal(signal.SIGKILL)
    converter.wait()
    assert len(children) >= 2
    wait_until(lambda: not any(Path(f"/proc/{child}/exe").exists() for child in children))
    assert not (folder / "manifest.json").exists()

    before = (folder / "shard-00000.h5").stat().st_mtime_ns
    source = CelebA.open(celeba_zip)
    write_shards(source, folder, size=64, rows_per_shard=70, processes=1)
    assert (folder / "shard-00000.h5").stat().st_mtime_ns == before
    assert contents(folder) == contents(shards_folder)


def test_conversion_workers_do_not_import_torch():
    code = "import ganray.data.writer, ganray.data.sources, sys; assert 'torch' not in sys.modules"
    root = Path(writer.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


@pytest.mark.parametrize("finished", [True, False])
def test_another_recipe_is_rejected(source: CelebA, folder: Path, finished: bool):
    if not finished:
        (folder / "manifest.json").unlink()
    with pytest.raises(
        ValueError, match=r"recipe \(celeba, raw, 64 px.*configured one \(celeba, raw, 32"
    ):
        write_shards(source, folder, size=32)


def test_a_foreign_file_is_not_replaced(source: CelebA, tmp_path: Path):
    with h5py.File(tmp_path / "shard-00000.h5", "w") as file:
        file["precious"] = 1
    with pytest.raises(ValueError, match="unknown to ganray"):
        write_shards(source, tmp_path, size=32)


@pytest.mark.parametrize("other", ["ends", "dies"])
def test_of_two_writers_one_waits(
    source: CelebA,
    shards_folder: Path,
    tmp_path: Path,
    other: str,
    ganray_log: pytest.LogCaptureFixture,
):
    with (tmp_path / ".lock").open("w") as lock, ThreadPoolExecutor(1) as thread:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waits = thread.submit(write_shards, source, tmp_path, size=64, processes=1)
        while "another process writes shards here; waiting for it" not in ganray_log.text:
            time.sleep(0.01)
            assert not waits.done()
        if other == "ends":
            for file in (*shards_folder.glob("shard-*.h5"), shards_folder / "manifest.json"):
                shutil.copy(file, tmp_path)
        fcntl.flock(lock, fcntl.LOCK_UN)
        manifest = waits.result(60)
    assert manifest == Manifest.read(tmp_path)
    # Made here, all fit into one.
    assert [shard.rows for shard in manifest.shards] == ([70, 70, 10] if other == "ends" else [150])


@pytest.mark.parametrize("processes", [1, 2])
def test_all_damaged_images_are_named_and_other_shards_are_kept(
    celeba_folder: Path, tmp_path: Path, ganray_log: pytest.LogCaptureFixture, processes: int
):
    shutil.copytree(celeba_folder, tmp_path / "celeba")
    for number in (72, 100):
        path = tmp_path / "celeba" / "img_align_celeba" / f"{number:06d}.jpg"
        path.write_bytes(b"no picture")
    options = {"size": 64, "rows_per_shard": 70, "processes": processes}
    with pytest.raises(
        ValueError, match=r"000072\.jpg cannot be decoded.* and 1 more cannot be read"
    ) as error:
        write_shards(CelebA.open(tmp_path), tmp_path / "set", **options)
    assert "\n" not in str(error.value)
    assert ["000072.jpg" in ganray_log.text, "000100.jpg" in ganray_log.text] == [True, True]
    names = sorted(path.name for path in (tmp_path / "set").glob("*.h5"))
    assert names == ["shard-00000.h5", "shard-00002.h5"]


def test_a_skipping_conversion_resumes_without_the_bad_images(
    celeba_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(celeba_folder, tmp_path / "celeba")
    (tmp_path / "celeba" / "img_align_celeba" / "000100.jpg").write_bytes(b"no picture")
    source, convert, calls = CelebA.open(tmp_path), writer._convert, []

    def killed_in_the_second_pass(*args: Any):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return convert(*args)

    monkeypatch.setattr(writer, "_convert", killed_in_the_second_pass)
    with pytest.raises(KeyboardInterrupt):
        write_shards(source, tmp_path / "set", size=8, processes=1, bad_images="skip")
    manifest = write_shards(source, tmp_path / "set", size=8, processes=1, bad_images="skip")
    assert (manifest.num_images, len(calls)) == (149, 3)
    again = write_shards(source, tmp_path / "set", size=8, processes=1, bad_images="skip")
    assert (again, len(calls)) == (manifest, 3)
    ids = [get_dataset(h5py.File(tmp_path / "set" / s.name), "ids")[:] for s in manifest.shards]
    assert sorted(np.concatenate(ids)) == sorted(set(range(1, 151)) - {100})


def test_a_set_of_bad_images_only_ends_soon(
    celeba_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writer, "_MAX_BAD_IMAGES", 10)
    shutil.copytree(celeba_folder, tmp_path / "celeba")
    for path in (tmp_path / "celeba" / "img_align_celeba").iterdir():
        path.write_bytes(b"no picture")
    source = CelebA.open(tmp_path)
    for bad_images in ("error", "skip"):
        with pytest.raises(ValueError, match="more cannot be read") as error:
            write_shards(
                source,
                tmp_path / bad_images,
                size=64,
                rows_per_shard=16,
                processes=1,
                bad_images=bad_images,
            )
        count = int(str(error.value).split(" and ")[1].split()[0]) + 1
        assert count == (150 if bad_images == "skip" else 16)
