import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ganray.data.sources.hdf5_array import HDF5Array
from ganray.data.writer import write_shards
from ganray.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 6, 3), np.uint8)
LABELS = np.arange(12) % 3


def write(path: Path, **datasets: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file.create_dataset(name.replace("__", "/"), data=values)
    return path


def rejected(path: Path, match: str, **options: Any) -> None:
    with pytest.raises(UserError, match=match) as error:
        HDF5Array.open(path, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("images", "values"),
    [
        (PIXELS, (0, 255)),
        (PIXELS.transpose(0, 3, 1, 2), (0, 255)),
        (PIXELS.astype(np.int64), (0, 255)),
        (PIXELS.astype(np.float32), (0, 255)),
        (PIXELS.astype(np.float32) / 255, (0, 1)),
        (PIXELS.transpose(0, 3, 1, 2).astype(np.float16) / 255, (0, 1)),
        (PIXELS.astype(np.float64) / 127.5 - 1, (-1, 1)),
    ],
)
def test_layouts_and_ranges_that_others_write(tmp_path: Path, images: Any, values: Any):
    path = write(tmp_path / "x.hdf5", imgs=images, labels=LABELS)
    source = pickle.loads(pickle.dumps(HDF5Array.open(path)))
    assert (len(source), source.image_shape, source.values) == (12, (8, 6, 3), values)
    assert f"in [{values[0]}, {values[1]}], as detected" in source.notes[0]
    assert source.labels.tolist() == LABELS.tolist()
    assert source.class_names == ("0", "1", "2")
    for index in (0, 5, 11):
        np.testing.assert_array_equal(np.asarray(source.read(index)), PIXELS[index])
    manifest = write_shards(source, tmp_path / "set", processes=1)
    assert (manifest.num_images, manifest.class_names) == (12, ("0", "1", "2"))


@pytest.mark.parametrize("shape", [(12, 8, 6), (12, 8, 6, 1), (12, 1, 8, 6)])
def test_gray_images(tmp_path: Path, shape: tuple[int, ...]):
    gray = PIXELS[..., 0]
    source = HDF5Array.open(write(tmp_path / "x.h5", data=gray.reshape(shape)))
    assert source.image_shape == (8, 6, 1)
    np.testing.assert_array_equal(np.asarray(source.read(3)), gray[3])
    assert source.class_names == ()
    assert set(source.labels) == {-1}


def test_the_dataset_is_found_or_named(tmp_path: Path):
    path = write(tmp_path / "x.h5", train__imgs=PIXELS, other=PIXELS[:5], flat=np.zeros(3))
    assert HDF5Array.open(path).dataset == "/train/imgs"
    assert len(HDF5Array.open(path, "/other")) == 5
    assert HDF5Array.open(path, "other").fingerprint() != HDF5Array.open(path).fingerprint()
    rejected(path, r"no dataset nope; it contains flat float64 \(3,\), other", dataset="nope")
    rejected(path, r"/flat is float64 \(3,\), not numbers of shape", dataset="flat")
    path = write(tmp_path / "y.h5", a=PIXELS, b=PIXELS)
    rejected(path, "more than one dataset of images; .*name one with --data.dataset")
    rejected(write(tmp_path / "z.h5"), "no dataset of images; it contains none;")
    path = write(tmp_path / "t.h5", img_align_celeba__0=PIXELS)
    rejected(path, "use --data.source source-text")
    rejected(tmp_path / "nowhere.h5", "no such file")


def never_written(file: h5py.File) -> None:
    file.create_dataset("imgs", (12, 8, 6, 3), np.uint8)


def half_written(file: h5py.File) -> None:
    dataset = file.create_dataset("imgs", (12, 8, 6, 3), np.uint8, chunks=(1, 8, 6, 3))
    dataset[:6] = PIXELS[:6]


def elsewhere(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((12, 8, 6, 3), np.uint8)
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (12, 8, 6, 3))
    file.create_virtual_dataset("imgs", layout)


def labels_of_some(file: h5py.File) -> None:
    file["imgs"], file["labels"] = PIXELS, LABELS[:5]


def wide_range(file: h5py.File) -> None:
    file["imgs"] = PIXELS.astype(np.float32) * 10


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (never_written, "only 0% of it was ever written"),
        (half_written, "only 50% of it was ever written"),
        (elsewhere, "is in another file"),
        (labels_of_some, "use --data.labels none to ignore it"),
        (wide_range, r"has values from 0 to 2550; images have them in \[0, 1\]"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, make: Callable[[h5py.File], None], match: str):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        make(file)
    rejected(tmp_path / "x.h5", match)
    if make is labels_of_some:
        assert HDF5Array.open(tmp_path / "x.h5", labels="none").class_names == ()


def test_values_outside_the_detected_range_are_not_clipped(tmp_path: Path):
    images = np.full((1000, 8, 6, 3), 0.5, np.float32)
    images[7, 0, 0, 0], images[8, 0, 0, 0] = 1.5, np.nan  # neither is in the sample of 64
    source = HDF5Array.open(write(tmp_path / "x.h5", imgs=images))
    for index in (7, 8):
        with pytest.raises(UserError, match=rf"image {index} of /imgs has values outside"):
            source.read(index)


def test_a_damaged_file_is_rejected(tmp_path: Path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("imgs", data=PIXELS, compression="gzip", chunks=(12, 8, 6, 3))
    source = HDF5Array.open(path)
    data = bytearray(path.read_bytes())
    data[-1000:] = bytes(1000)
    path.write_bytes(data)
    with pytest.raises(UserError, match="cannot be"):
        source.read(0)
    path.write_bytes(b"no HDF5")
    rejected(path, "cannot be opened as HDF5")
