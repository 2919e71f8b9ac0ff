import dataclasses
import fcntl
import hashlib
import json
import mmap
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from ganray.data import shards
from ganray.data.shards import Manifest, ShardReader, resize_and_crop, verify_shards, write_shards
from ganray.data.sources import CelebA

SHARD_1 = "shard-00001.h5"


@pytest.fixture
def source(celeba_zip: Path) -> CelebA:
    return CelebA.open(celeba_zip)


@pytest.fixture
def folder(shards_folder: Path, tmp_path: Path) -> Path:
    """A copy to spoil: 150 images of 64x64 in shards of 70, 70 and 10 rows."""
    shutil.copytree(shards_folder, tmp_path / "set")
    return tmp_path / "set"


def gathered(reader: ShardReader, ids: list[int] | None = None) -> torch.Tensor:
    wanted = np.arange(len(reader)) if ids is None else np.array(ids, np.int64)
    out = torch.empty((len(wanted), *reader.image_shape), dtype=torch.uint8)
    reader.gather(wanted, out)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*.h5"))}


def edit(folder: Path, change: Callable[[h5py.File], None]) -> None:
    """Change the second shard and sign it, so that only its structure can give it away."""
    path = folder / SHARD_1
    with h5py.File(path, "r+") as file:
        change(file)
    manifest = Manifest.read(folder)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    signed = dataclasses.replace(manifest.shards[1], bytes=path.stat().st_size, sha256=digest)
    dataclasses.replace(manifest, shards=(manifest.shards[0], signed, manifest.shards[2])).write(
        folder
    )


def replace_images(**options) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["images"]
        file.create_dataset("images", **({"shape": (70, 64, 64, 3), "dtype": "u1"} | options))

    return change


# What is written.


@pytest.mark.parametrize("side", [64, 100, 178, 33])
@pytest.mark.parametrize("picture", [(178, 218), (218, 178), (200, 200), (300, 201)])
def test_resize_and_crop_is_torchvisions_to_the_bit(side: int, picture: tuple[int, int]):
    from torchvision.transforms import CenterCrop, Compose, Resize

    pixels = np.random.default_rng(0).integers(0, 256, (*picture[::-1], 3), np.uint8)
    image = Image.fromarray(pixels)
    expected = Compose([Resize(side), CenterCrop(side)])(image)
    np.testing.assert_array_equal(np.asarray(resize_and_crop(image, side)), np.asarray(expected))


def test_what_is_written_is_read_back(source: CelebA, shards_folder: Path):
    reader = ShardReader(shards_folder)
    assert len(reader) == 150
    assert reader.image_shape == (64, 64, 3)
    np.testing.assert_array_equal(reader.ids, source.ids)
    np.testing.assert_array_equal(reader.attributes, source.attributes)
    np.testing.assert_array_equal(reader.split, source.split)
    images = gathered(reader)
    for index in (0, 69, 70, 149):
        expected = resize_and_crop(Image.fromarray(source.read(index)), 64)
        np.testing.assert_array_equal(images[index].numpy(), np.asarray(expected))


def test_the_original_size_is_kept_and_its_rows_fill_whole_pages(source: CelebA, tmp_path: Path):
    # 218 * 178 * 3 = 4 * 29103 bytes, so 1024 rows are the first whole number of 4096-byte pages.
    assert shards._rows_per_shard(218 * 178 * 3, 10**6, None) == 2048
    assert shards._rows_per_shard(64 * 64 * 3, 10**6, None) == 16384
    write_shards(source, tmp_path, images=5, processes=1)
    np.testing.assert_array_equal(gathered(ShardReader(tmp_path), [4])[0], source.read(4))


def test_a_split_and_a_number_of_images_choose_the_first_of_that_split(
    source: CelebA, tmp_path: Path
):
    manifest = write_shards(source, tmp_path, size=8, split="valid", images=7, processes=1)
    assert ShardReader(tmp_path).ids.tolist() == [101, 102, 103, 104, 105, 106, 107]
    assert (manifest.num_images, manifest.recipe.split) == (7, "valid")


def test_any_hdf5_tool_reads_a_shard(shards_folder: Path):
    with h5py.File(shards_folder / SHARD_1) as file:
        assert file.attrs["format"] == "ganray-shards"
        assert file.attrs["first_row"] == 70
        assert json.loads(str(file.attrs["recipe"]))["size"] == 64
        images = file["images"]
        assert isinstance(images, h5py.Dataset)
        assert images.id.get_offset() % 4096 == 0
        np.testing.assert_array_equal(images[3], gathered(ShardReader(shards_folder), [73])[0])


def test_the_number_of_processes_does_not_show(source: CelebA, shards_folder: Path, tmp_path: Path):
    manifest = write_shards(source, tmp_path, size=64, rows_per_shard=70, processes=2)
    assert contents(tmp_path) == contents(shards_folder)
    assert manifest.digest() == Manifest.read(shards_folder).digest()


def test_the_digest_follows_the_pixels_and_not_the_command(shards_folder: Path):
    manifest = Manifest.read(shards_folder)
    other = dataclasses.replace(manifest.shards[0], sha256="0" * 64)
    assert dataclasses.replace(manifest, created_by="x").digest() == manifest.digest()
    assert dataclasses.replace(manifest, shards=(other,)).digest() != manifest.digest()


def test_progress_in_a_log_is_a_whole_line(source, tmp_path: Path, capsys: pytest.CaptureFixture):
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
def test_wrong_arguments_are_refused(source: CelebA, tmp_path: Path, arguments, message: str):
    with pytest.raises(ValueError, match=r"^.*$") as error:
        write_shards(source, tmp_path / "set", **arguments)
    assert message in str(error.value)
    assert not (tmp_path / "set").exists()


def test_a_full_disk_is_noticed_before_the_work(source: CelebA, tmp_path: Path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"but only 0.0 GB are free"):
        write_shards(source, tmp_path, size=64)


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
from ganray.data.shards import write_shards
from ganray.data.sources import CelebA

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
def test_a_killed_conversion_is_taken_up_where_it_was(
    celeba_zip: Path, shards_folder: Path, tmp_path: Path
):
    script, folder = tmp_path / "convert.py", tmp_path / "set"
    script.write_text(CONVERT)
    root = Path(shards.__file__).parents[2]
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


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for 60 s"
        time.sleep(0.02)


def test_conversion_workers_do_not_import_torch():
    code = "import ganray.data.shards, ganray.data.sources, sys; assert 'torch' not in sys.modules"
    root = Path(shards.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


@pytest.mark.parametrize("finished", [True, False])
def test_another_recipe_is_refused(source: CelebA, folder: Path, finished: bool):
    if not finished:
        (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"another recipe \(celeba, 64 px.*asked for \(celeba, 32"):
        write_shards(source, folder, size=32)


def test_a_foreign_file_is_not_replaced(source: CelebA, tmp_path: Path):
    with h5py.File(tmp_path / "shard-00000.h5", "w") as file:
        file["precious"] = 1
    with pytest.raises(ValueError, match="unknown to ganray"):
        write_shards(source, tmp_path, size=32)


def test_two_writers_are_one_too_many(source: CelebA, tmp_path: Path):
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is writing shards here"):
            write_shards(source, tmp_path, size=8, processes=1)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_damaged_image_stops_the_conversion_and_is_named(
    celeba_folder: Path, tmp_path: Path, processes: int
):
    shutil.copytree(celeba_folder, tmp_path / "celeba")
    (tmp_path / "celeba" / "img_align_celeba" / "000100.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"000100\.jpg cannot be decoded") as error:
        write_shards(
            CelebA.open(tmp_path), tmp_path / "set", size=64, rows_per_shard=70, processes=processes
        )
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "set").glob("*.h5")] == ["shard-00000.h5"]


# What is read.


def flip(path: Path, row: int) -> None:
    """Flip one bit within an image."""
    with h5py.File(path, "r") as file:
        images = file["images"]
        assert isinstance(images, h5py.Dataset)
        place = images.id.get_offset() + row * 64 * 64 * 3 + 1000
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def test_both_ways_of_mapping_gather_the_same_across_shards(shards_folder: Path):
    joined, apart = ShardReader(shards_folder), ShardReader(shards_folder, side_by_side=False)
    assert (len(joined._pieces), len(apart._pieces)) == (1, 3)
    ids = [149, 0, 70, 69, 70, 139, 140, 0]
    assert torch.equal(gathered(joined, ids), gathered(apart, ids))
    assert torch.equal(gathered(joined, ids)[2], gathered(joined)[70])


def test_large_memory_pages_map_shards_one_by_one(shards_folder: Path, monkeypatch):
    monkeypatch.setattr(mmap, "PAGESIZE", 16384)
    assert len(ShardReader(shards_folder)._pieces) == 3


def test_gather_refuses_what_does_not_fit(shards_folder: Path):
    reader = ShardReader(shards_folder)
    for ids in ([150], [-1]):
        with pytest.raises(ValueError, match="there are 150"):
            gathered(reader, ids)
    with pytest.raises(ValueError, match="must be contiguous uint8"):
        reader.gather(np.arange(2), torch.empty(2, 64, 64, 3))
    gathered(reader, [])


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_file_stays_open_and_a_dropped_reader_gives_its_memory_back(folder: Path):
    def mapped() -> bool:
        return str(folder) in Path("/proc/self/maps").read_text()

    reader = ShardReader(folder)
    assert mapped()
    links = [path for path in Path("/proc/self/fd").iterdir() if path.exists()]
    assert not any(str(folder) in str(path.resolve()) for path in links)
    del reader
    assert not mapped()


def test_a_forked_process_reads_on(shards_folder: Path):
    reader = ShardReader(shards_folder)
    expected = torch.from_numpy(reader._pieces[0][70].copy())
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if torch.equal(gathered(reader, [70])[0], expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("side_by_side", [True, False])
def test_a_pickled_reader_opens_the_files_itself(shards_folder: Path, side_by_side: bool):
    reader = ShardReader(shards_folder, side_by_side=side_by_side)
    text = pickle.dumps(reader)
    assert len(text) < 1000
    copy = pickle.loads(text)
    assert len(copy._pieces) == len(reader._pieces)
    assert torch.equal(gathered(copy), gathered(reader))


def test_another_process_takes_a_pickled_reader(shards_folder: Path):
    reader = ShardReader(shards_folder)
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer)._pieces[0].sum())"
    root = Path(shards.__file__).parents[2]
    said = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(reader), capture_output=True, cwd=root
    )
    assert int(said.stdout) == gathered(reader).sum().item()


def test_a_read_only_folder_can_be_read(source: CelebA, folder: Path):
    for path in (*folder.iterdir(), folder):
        path.chmod(path.stat().st_mode & 0o555)
    assert len(gathered(ShardReader(folder, verify=True))) == 150
    write_shards(source, folder, size=64)
    folder.chmod(0o755)


def rejected(folder: Path) -> str:
    with pytest.raises(ValueError, match=r"^.*$") as error:
        ShardReader(folder)
    return str(error.value)


def test_an_unfinished_folder_is_refused(folder: Path):
    (folder / "manifest.json").unlink()
    assert "no manifest.json, so no finished shards" in rejected(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"version": 1',
            '"version": 2',
            "version 2, but this ganray reads ganray-shards version 1",
        ),
        ('"format": "ganray-shards"', '"format": "other"', "is other version 1"),
        ('"num_images": 150', '"num_images": 151', "damaged"),
        ('"name": "shard-00001.h5"', '"name": "../shard-00001.h5"', "damaged"),
        ('"rows": 10', '"row": 10', "damaged"),
        ("{", "", "damaged"),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(folder: Path, old: str, new: str, message: str):
    path = folder / "manifest.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    assert message in rejected(folder)


def test_a_missing_shard_is_named(folder: Path):
    (folder / SHARD_1).unlink()
    assert f"{SHARD_1}: missing" in rejected(folder)
    with pytest.raises(ValueError, match=rf"{SHARD_1}: missing"):
        verify_shards(folder)


def test_a_truncated_shard_is_named(folder: Path):
    size = (folder / SHARD_1).stat().st_size
    os.truncate(folder / SHARD_1, size - 1000)
    assert f"{SHARD_1}: has {size - 1000} bytes, but the manifest says {size}" in rejected(folder)
    with pytest.raises(ValueError, match=rf"{SHARD_1}"):
        verify_shards(folder)


def test_a_damaged_header_is_named(folder: Path):
    with (folder / SHARD_1).open("r+b") as file:
        file.write(b"x" * 200)
    assert f"{SHARD_1}: cannot be read" in rejected(folder)


def test_exchanged_shards_are_noticed(folder: Path):
    (folder / SHARD_1).rename(folder / "x")
    (folder / "shard-00000.h5").rename(folder / SHARD_1)
    (folder / "x").rename(folder / "shard-00000.h5")
    assert "begins at image 70 of the set, not at 0" in rejected(folder)


def link(target: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["images"]
        file["images"] = target

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (link(h5py.ExternalLink("/etc/passwd", "/images")), "a link to somewhere else"),
        (link(h5py.SoftLink("/ids")), "a link to somewhere else"),
        (lambda file: file.pop("ids"), "'ids' is missing"),
        (replace_images(shape=(70, 64, 32, 3)), "'images' is uint8 (70, 64, 32, 3), not uint8"),
        (replace_images(dtype="i1"), "'images' is int8"),
        (replace_images(chunks=(1, 64, 64, 3)), "it must be contiguous"),
        (replace_images(compression="gzip"), "it must be contiguous"),
        (replace_images(external=[("/etc/passwd", 0, 70 * 12288)]), "it must be contiguous"),
        (replace_images(), "not at a page"),  # never written, so without a place
        (lambda file: file.attrs.modify("version", 2), "is ganray-shards version 2"),
        (lambda file: file.attrs.modify("recipe", "{}"), "another recipe"),
    ],
)
def test_a_shard_that_lies_is_refused(
    folder: Path, change: Callable[[h5py.File], None], message: str
):
    edit(folder, change)
    assert message in rejected(folder)
    assert SHARD_1 in rejected(folder)


def test_verify_finds_nothing_wrong_with_a_good_set(shards_folder: Path):
    assert verify_shards(shards_folder) == Manifest.read(shards_folder)


def test_verify_names_the_shard_and_the_rows_of_a_flipped_bit(folder: Path):
    flip(folder / SHARD_1, row=65)
    flip(folder / "shard-00002.h5", row=0)
    ShardReader(folder)  # opening reads no pixel
    with pytest.raises(ValueError, match=r"^.*$") as error:
        ShardReader(folder, verify=True)
    assert "shard-00001.h5 is damaged in rows 64-69; shard-00002.h5 is damaged in rows 0-9" in str(
        error.value
    )


def test_verify_notices_a_changed_label(folder: Path):
    with h5py.File(folder / SHARD_1, "r+") as file:
        attributes = file["attributes"]
        assert isinstance(attributes, h5py.Dataset)
        attributes[0, 0] ^= 1
    with pytest.raises(ValueError, match=r"shard-00001\.h5 is damaged in its header or labels"):
        verify_shards(folder)
