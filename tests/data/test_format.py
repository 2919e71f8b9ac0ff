import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from ganray.data.format import Manifest
from ganray.data.integrity import header_digest, verify_shards
from ganray.data.reader import ShardedDataset
from tests.data.conftest import SHARD_1, gathered


def test_any_hdf5_tool_reads_a_shard(shards_folder: Path):
    with h5py.File(shards_folder / SHARD_1) as file:
        assert file.attrs["format"] == "ganray-shards"
        assert file.attrs["first_row"] == 70
        assert json.loads(str(file.attrs["recipe"]))["size"] == 64
        images = file["images"]
        assert isinstance(images, h5py.Dataset)
        assert images.id.get_offset() % 4096 == 0
        np.testing.assert_array_equal(images[3], gathered(ShardedDataset(shards_folder), [73])[0])


def test_the_digest_follows_the_pixels_and_not_the_command(shards_folder: Path):
    manifest = Manifest.read(shards_folder)
    other = dataclasses.replace(manifest.shards[0], sha256="0" * 64)
    assert dataclasses.replace(manifest, created_by="x").digest() == manifest.digest()
    assert dataclasses.replace(manifest, shards=(other,)).digest() != manifest.digest()


def rejected(folder: Path) -> str:
    with pytest.raises(ValueError, match=r"^.*$") as error:
        ShardedDataset(folder)
    return str(error.value)


def test_an_unfinished_folder_is_rejected(folder: Path):
    (folder / "manifest.json").unlink()
    assert "no manifest.json, so no finished shards" in rejected(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"version": 3',
            '"version": 1',
            "version 1, but this ganray reads ganray-shards version 3",
        ),
        ('"format": "ganray-shards"', '"format": "other"', "is other version 3"),
        ('"num_images": 150', '"num_images": 151', "damaged"),
        ('"name": "shard-00001.h5"', '"name": "../shard-00001.h5"', "damaged"),
        ('"rows": 10', '"row": 10', "damaged"),
        ("{", "", "damaged"),
    ],
)
def test_a_foreign_manifest_is_rejected(folder: Path, old: str, new: str, message: str):
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
    assert f"{SHARD_1}: has {size - 1000} bytes, but the manifest has {size}" in rejected(folder)
    with pytest.raises(ValueError, match=rf"{SHARD_1}"):
        verify_shards(folder)


def test_a_damaged_header_is_named(folder: Path):
    with (folder / SHARD_1).open("r+b") as file:
        file.write(b"x" * 200)
    assert f"{SHARD_1}: is damaged in its header or labels" in rejected(folder)


def test_exchanged_shards_are_noticed(folder: Path):
    (folder / SHARD_1).rename(folder / "x")
    (folder / "shard-00000.h5").rename(folder / SHARD_1)
    (folder / "x").rename(folder / "shard-00000.h5")
    assert "shard-00000.h5: is damaged in its header or labels" in rejected(folder)


def edit(folder: Path, change: Callable[[h5py.File], None]) -> None:
    """Change the second shard and sign it, so that only its structure can give it away."""
    path = folder / SHARD_1
    with h5py.File(path, "r+") as file:
        change(file)
    manifest = Manifest.read(folder)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    shard = manifest.shards[1]
    signed = dataclasses.replace(
        shard,
        bytes=path.stat().st_size,
        sha256=digest,
        header=header_digest(path, shard.start, shard.num_bytes),
    )
    dataclasses.replace(manifest, shards=(manifest.shards[0], signed, manifest.shards[2])).write(
        folder
    )


def replace_images(**options) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["images"]
        file.create_dataset("images", **({"shape": (70, 64, 64, 3), "dtype": "u1"} | options))

    return change


def set_values(name: str, value: int) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[name][-1] = value  # pyright: ignore

    return change


def link(target: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["images"]
        file["images"] = target

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (link(h5py.ExternalLink("/etc/passwd", "/images")), "a link to another object"),
        (link(h5py.SoftLink("/ids")), "a link to another object"),
        (lambda file: file.pop("ids"), "'ids' is missing"),
        (replace_images(shape=(70, 64, 32, 3)), "'images' is uint8 (70, 64, 32, 3), not uint8"),
        (replace_images(dtype="i1"), "'images' is int8"),
        (replace_images(chunks=(1, 64, 64, 3)), "it must be contiguous"),
        (replace_images(compression="gzip"), "it must be contiguous"),
        (replace_images(external=[("/etc/passwd", 0, 70 * 12288)]), "it must be contiguous"),
        (replace_images(), "not at a page"),  # never written, so without a place
        (lambda file: file.attrs.modify("version", 2), "is ganray-shards version 2"),
        (lambda file: file.attrs.modify("recipe", "{}"), "another recipe"),
        (lambda file: file.attrs.modify("first_row", 0), "begins at image 0 of the set, not at 70"),
        (set_values("labels", 0), "'labels' are not all from -1 to -1"),  # there are no classes
        (set_values("labels", -2), "'labels' are not all from -1 to -1"),
        (set_values("attributes", 2), "'attributes' are not all from 0 to 1"),
        (set_values("split", 3), "'split' are not all from 0 to 2"),
    ],
)
def test_a_shard_that_differs_from_its_spec_is_rejected(
    folder: Path, change: Callable[[h5py.File], None], message: str
):
    edit(folder, change)
    assert message in rejected(folder)
    assert SHARD_1 in rejected(folder)
