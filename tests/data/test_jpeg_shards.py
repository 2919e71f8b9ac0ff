import dataclasses
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ganray.data.format import Manifest
from ganray.data.integrity import open_shard
from ganray.data.reader import ShardedDataset
from ganray.data.sources.celeba import CelebA
from ganray.data.sources.faces import write_celeba
from ganray.data.transforms import decode_jpegs
from ganray.data.writer import resize_and_crop, write_shards
from tests.conftest import Squares
from tests.data.conftest import gathered


@pytest.fixture(scope="module")
def jpegs(celeba_zip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 files of 218x178 as they are, in shards of 64, 64 and 22. Not to be changed."""
    folder = tmp_path_factory.mktemp("jpegs") / "set"
    source = CelebA.open(celeba_zip)
    write_shards(source, folder, rows_per_shard=64, encoding="jpeg", processes=1)
    return folder


@pytest.fixture(scope="module")
def face_jpegs(tmp_path_factory: pytest.TempPathFactory) -> tuple[CelebA, Path]:
    """Ten drawn faces: their colors change as gently as those of photographs."""
    folder = tmp_path_factory.mktemp("faces")
    write_celeba(folder / "celeba", 10, rng_seed=0, processes=1)
    source = CelebA.open(folder / "celeba")
    write_shards(source, folder / "set", encoding="jpeg", processes=1)
    return source, folder / "set"


def test_the_files_are_kept_to_the_byte(source: CelebA, jpegs: Path):
    for place in Manifest.read(jpegs).shard_specs(jpegs):
        shard, data = open_shard(place), place.path.read_bytes()
        for row in range(place.rows):
            begin, end = shard.start + shard.offsets[[row, row + 1]]
            assert data[begin:end] == source.read_bytes(place.first + row)


def test_shards_do_not_depend_on_the_number_of_processes(
    source: CelebA, jpegs: Path, tmp_path: Path
):
    two = write_shards(source, tmp_path, rows_per_shard=64, encoding="jpeg", processes=2)
    assert two.digest() == Manifest.read(jpegs).digest()


@pytest.mark.parametrize("threads", [1, 3])
def test_pictures_are_nearly_those_of_the_exact_decoder(face_jpegs, threads: int):
    source, folder = face_jpegs
    ids = [9, 0, 3, 4, 0, 7, 8]
    images = gathered(ShardedDataset(folder, threads=threads), ids)
    for image, index in zip(images, ids, strict=True):
        exact = np.asarray(source.read(index)).astype(int)
        assert abs(image.numpy() - exact).mean() < 2.0


@pytest.mark.parametrize("size", [16, 64, 100, 178, 200])
def test_any_size_is_cut_from_the_same_files(face_jpegs, size: int):
    source, folder = face_jpegs
    reader = ShardedDataset(folder, size=size)
    assert reader.image_shape == (size, size, 3)
    exact = np.asarray(resize_and_crop(source.read(7), size)).astype(int)
    found = gathered(reader, [7])[0].numpy()
    # Scaled while it is decoded, so filtered otherwise; but a picture that is moved is no match.
    error = abs(found - exact).mean()
    assert error < 5.0
    assert abs(np.roll(found, 1, axis=0) - exact).mean() > 2 * error


def test_a_wide_and_a_gray_picture():
    ramp = np.linspace(0, 255, 90).astype(np.uint8)
    image = Image.fromarray(np.tile(ramp, (60, 1)))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    out = torch.empty(1, 20, 20, 1, dtype=torch.uint8)
    decode_jpegs([np.frombuffer(file.getvalue(), np.uint8)], (60, 90, 1), 20, out)
    exact = np.asarray(resize_and_crop(image, 20)).astype(int)
    assert abs(out[0, ..., 0].numpy() - exact).max() <= 3


@pytest.mark.parametrize("size", [0, 64])
def test_a_file_that_is_no_jpeg_is_named(jpegs: Path, size: int):
    reader = ShardedDataset(jpegs, size=size)
    contents = reader._headers[0]
    assert contents is not None
    offsets = contents.offsets.copy()
    offsets[5] += 40  # cuts image 4 and 5 in the wrong place
    reader._headers[0] = dataclasses.replace(contents, offsets=offsets)
    with pytest.raises(ValueError, match=r"one of the images \[5\] is no complete JPEG"):
        gathered(reader, [5])


def test_a_jpeg_of_another_size_is_rejected(jpegs: Path):
    out = torch.empty(1, 100, 100, 3, dtype=torch.uint8)
    piece = ShardedDataset(jpegs)._mapping.pieces[0]
    with pytest.raises(ValueError, match="buffer is too small"):
        decode_jpegs([piece], (100, 100, 3), 0, out)


def test_a_source_without_files_cannot_be_kept_as_it_is(tmp_path: Path):
    with pytest.raises(ValueError, match="squares holds no JPEG files; use encoding=raw"):
        write_shards(Squares(), tmp_path, encoding="jpeg")


def test_files_are_not_resized(source: CelebA, tmp_path: Path):
    with pytest.raises(ValueError, match="size=64: encoding=jpeg keeps the files"):
        write_shards(source, tmp_path, size=64, encoding="jpeg")


def test_a_file_cut_short_is_not_converted(celeba_folder: Path, tmp_path: Path, monkeypatch):
    whole = CelebA.read_bytes
    monkeypatch.setattr(
        CelebA, "read_bytes", lambda self, i: whole(self, i)[: 900 if i == 3 else None]
    )
    with pytest.raises(ValueError, match="image 4 is cut short"):
        write_shards(CelebA.open(celeba_folder), tmp_path, encoding="jpeg", processes=1)


def test_damage_to_a_file_is_noticed(jpegs: Path, tmp_path: Path):
    shutil.copytree(jpegs, tmp_path / "set")
    place = Manifest.read(jpegs).shard_specs(tmp_path / "set")[1]
    with place.path.open("r+b") as file:
        file.seek(open_shard(place).start + 2000)
        file.write(b"damage")
    reader = ShardedDataset(tmp_path / "set", verify="first-touch")
    with pytest.raises(ValueError, match=r"shard-00001\.h5: rows 0-63 are damaged"):
        gathered(reader, [100])
