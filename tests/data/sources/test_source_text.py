"""Conversion of the source text's file, and files that are rejected."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ganray.data.reader import ShardedDataset
from ganray.data.sources.source_text import GROUP, SourceTextHDF5
from ganray.data.writer import write_shards
from ganray.errors import UserError
from tests.data.sources.source_text_files import (
    NUMBERS,
    PIXELS,
    SHAPE,
    expected,
    is_open,
    open_objects,
)

ROOT = Path(__file__).parents[3]


def rejected(path: Path, match: str) -> None:
    """Check that reading fails with one line that names the file, and leaves nothing open."""
    before = open_objects()
    with pytest.raises(UserError, match=match) as error:
        [SourceTextHDF5.open(path).read(row) for row in range(len(NUMBERS))]
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    del error
    assert open_objects() == before
    assert not is_open(path)


def replaced(path: Path, change: Callable[[h5py.Group], object]) -> Path:
    """Put something else in the place of image 5."""
    with h5py.File(path, "r+") as file:
        group = file[GROUP]
        assert isinstance(group, h5py.Group)
        del group["5.jpg"]
        change(group)
    return path


@pytest.mark.parametrize("kind", ["raw", "packed"])
def test_a_source_gives_what_the_texts_class_reads(kind: str, request: pytest.FixtureRequest):
    path = request.getfixturevalue(kind)
    source = SourceTextHDF5.open(path)
    assert (len(source), source.image_shape) == (len(NUMBERS), SHAPE)
    with h5py.File(path, "r") as file:
        for row, number in enumerate(NUMBERS):
            as_the_text = np.array(file["img_align_celeba"][str(number) + ".jpg"])
            np.testing.assert_array_equal(np.asarray(source.read(row)), as_the_text)
    assert source.ids.tolist() == NUMBERS
    assert source.labels.tolist() == [-1] * len(NUMBERS)
    assert source.attributes.shape == (len(NUMBERS), 0)


def test_a_pickled_source_leaves_its_handle_and_needs_no_torch(packed: Path):
    source = SourceTextHDF5.open(packed)
    source.read(0)
    code = (
        "import pickle, sys; s = pickle.load(sys.stdin.buffer);"
        "sys.stdout.buffer.write(s.read(3).tobytes()); assert 'torch' not in sys.modules"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(source),
        capture_output=True,
        cwd=ROOT,
        check=True,
    )
    assert said.stdout == PIXELS[NUMBERS[3]].tobytes()


def test_a_compressed_file_becomes_shards(packed: Path, tmp_path: Path):
    write_shards(SourceTextHDF5.open(packed), tmp_path / "set", processes=1)
    reader = ShardedDataset(tmp_path / "set")
    out = torch.empty((len(NUMBERS), *SHAPE), dtype=torch.uint8)
    reader.read_batch(np.arange(len(NUMBERS)), out)
    np.testing.assert_array_equal(out.numpy(), expected())


def test_the_fingerprint_follows_the_bytes_and_not_the_place(raw: Path, path: Path):
    fingerprint = SourceTextHDF5.open(raw).fingerprint()
    assert SourceTextHDF5.open(path).fingerprint() == fingerprint
    with h5py.File(path, "r+") as file:
        file[f"{GROUP}/8.jpg"][100] ^= 255
    assert SourceTextHDF5.open(path).fingerprint() != fingerprint


def test_pixels_in_another_file_are_rejected(path: Path, tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(np.prod(SHAPE)))
    external = [(str(secret), 0, int(np.prod(SHAPE)))]
    replaced(
        path,
        lambda group: group.create_dataset("5.jpg", SHAPE, np.uint8, external=external),
    )
    rejected(path, r"the pixels of 5\.jpg are in another file")


def test_a_view_of_another_file_is_rejected(path: Path, raw: Path):
    layout = h5py.VirtualLayout(SHAPE, np.uint8)
    layout[...] = h5py.VirtualSource(raw, f"{GROUP}/1.jpg", SHAPE)
    replaced(path, lambda group: group.create_virtual_dataset("5.jpg", layout))
    rejected(path, r"the pixels of 5\.jpg are in another file")


@pytest.mark.parametrize("link", ["soft", "external"])
def test_links_are_rejected(path: Path, raw: Path, link: str):
    target = f"/{GROUP}/1.jpg"
    to = h5py.SoftLink(target) if link == "soft" else h5py.ExternalLink(str(raw), target)
    replaced(path, lambda group: group.__setitem__("5.jpg", to))
    rejected(path, r"5\.jpg is a link, which could lead to any file")


@pytest.mark.parametrize("link", ["soft", "external"])
def test_a_group_that_is_a_link_is_rejected(raw: Path, tmp_path: Path, link: str):
    path = tmp_path / "faces.h5py"
    with h5py.File(path, "w") as file:
        file["elsewhere/1.jpg"] = PIXELS[1]
        external = h5py.ExternalLink(str(raw), GROUP)
        file[GROUP] = external if link == "external" else h5py.SoftLink("/elsewhere")
    rejected(path, "contains no group img_align_celeba, or a damaged one, or a link")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            np.zeros(SHAPE, np.float32),
            r"5\.jpg is float32 \(218, 178, 3\), but every image must be",
        ),
        (
            np.zeros((178, 218, 3), np.uint8),
            r"5\.jpg is uint8 \(178, 218, 3\), but every image must",
        ),
        (np.zeros((218, 178), np.uint8), r"5\.jpg is uint8 \(218, 178\), but"),
        (np.zeros((0, 178, 3), np.uint8), r"5\.jpg is uint8 \(0, 178, 3\), but"),
        (np.uint8(7), r"5\.jpg is uint8 \(\), but"),
    ],
)
def test_another_type_or_shape_is_named(path: Path, value, message: str):
    replaced(path, lambda group: group.create_dataset("5.jpg", data=value))
    rejected(path, message)


def test_a_first_image_of_a_wrong_shape_is_named(tmp_path: Path):
    with h5py.File(tmp_path / "faces.h5py", "w") as file:
        file[f"{GROUP}/1.jpg"] = np.zeros((218, 178), np.uint8)
    rejected(tmp_path / "faces.h5py", r"1\.jpg is uint8 \(218, 178\), but every image must")


def test_a_group_in_the_place_of_an_image_is_named(path: Path):
    replaced(path, lambda group: group.create_group("5.jpg"))
    rejected(path, r"5\.jpg cannot be opened as a dataset")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("five.jpg", r"b'five\.jpg' in img_align_celeba is not a number"),
        ("-5.jpg", "is not a number"),
        ("5.png", "is not a number"),
        (f"{10**18}.jpg", "is not a number"),
        ("0006.jpg", r"are the same number"),
    ],
)
def test_odd_names_are_rejected(path: Path, name: str, message: str):
    replaced(path, lambda group: group.create_dataset(name, data=PIXELS[1]))
    rejected(path, message)


def test_a_missing_or_other_file_is_reported(tmp_path: Path):
    rejected(tmp_path / "nowhere", "no such file")
    (tmp_path / "text").write_text("no HDF5 here")
    rejected(tmp_path / "text", "cannot be opened as HDF5")
    for name in ("other", "empty"):
        with h5py.File(tmp_path / name, "w") as file:
            file.create_group(GROUP if name == "empty" else "something")
    rejected(tmp_path / "other", "contains no group img_align_celeba")
    rejected(tmp_path / "empty", "img_align_celeba is empty")


def test_a_file_that_was_cut_short_is_rejected(path: Path):
    path.write_bytes(path.read_bytes()[:-1000])
    rejected(path, "cannot be opened as HDF5")


def test_an_image_that_reaches_past_the_end_is_rejected(path: Path):
    """A header that says that the file ends where it was cut: HDF5 opens it."""
    size, data = path.stat().st_size, path.read_bytes()[:-1000]
    assert data.count(size.to_bytes(8, "little")) == 1
    path.write_bytes(data.replace(size.to_bytes(8, "little"), (size - 1000).to_bytes(8, "little")))
    with h5py.File(path, "r"):
        pass
    # HDF5 2.0 notices; older ones do not, and then the index does.
    rejected(path, r"1\.jpg (cannot be opened as a dataset|begins at byte)")


def test_a_damaged_image_is_named(packed: Path, tmp_path: Path):
    path = tmp_path / "faces.h5py"
    data = bytearray(packed.read_bytes())
    with h5py.File(packed, "r") as file:
        dataset = file[f"{GROUP}/3.jpg"]
        assert isinstance(dataset, h5py.Dataset)
        chunk = dataset.id.get_chunk_info(0)
    data[chunk.byte_offset + 10 : chunk.byte_offset + 40] = bytes(30)
    path.write_bytes(data)
    source = SourceTextHDF5.open(path)
    with pytest.raises(ValueError, match=r"3\.jpg cannot be read .*; make or fetch it again"):
        source.read(2)
    assert source.read(1).size == (178, 218)


def test_an_image_that_was_never_written_is_rejected(path: Path):
    replaced(path, lambda group: group.create_dataset("5.jpg", SHAPE, np.uint8))
    source = SourceTextHDF5.open(path)
    with pytest.raises(ValueError, match=r"5\.jpg was created and never written"):
        source.read(source.names.index("5.jpg"))
