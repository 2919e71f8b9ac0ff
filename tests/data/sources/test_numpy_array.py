import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ganray.data.sources import numpy_array
from ganray.data.sources.numpy_array import NumpyArray
from ganray.data.writer import write_shards
from ganray.errors import UserError
from tests.data.sources.test_cifar10 import Attack, traced_peak

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 6, 3), np.uint8)
LABELS = np.arange(12) % 3


def rejected(path: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as error:
        NumpyArray.open(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_and_labels_as_guided_diffusion_writes_them(tmp_path: Path, save: Any):
    path = tmp_path / "samples_12x8x6x3.npz"
    save(path, PIXELS, LABELS)
    source = pickle.loads(pickle.dumps(NumpyArray.open(path)))
    assert (len(source), source.image_shape) == (12, (8, 6, 3))
    assert source.labels.tolist() == LABELS.tolist()
    assert source.class_names == ("0", "1", "2")
    assert source.notes == ("classes: 3 of arr_1",)
    for index in (5, 11, 0, 3):
        np.testing.assert_array_equal(np.asarray(source.read(index)), PIXELS[index])
    manifest = write_shards(source, tmp_path / "set", processes=1)
    assert (manifest.num_images, manifest.class_names) == (12, ("0", "1", "2"))
    assert NumpyArray.open(path, "none").class_names == ()


def test_a_single_array(tmp_path: Path):
    path = tmp_path / "images.npy"
    np.save(path, PIXELS[..., :1])
    source = NumpyArray.open(path)
    assert (source.image_shape, source.class_names) == ((8, 6, 1), ())
    assert set(source.labels) == {-1}
    np.testing.assert_array_equal(np.asarray(source.read(7)), PIXELS[7, :, :, 0])


def test_the_images_are_arr_0_or_the_first_array_of_their_form(tmp_path: Path):
    path = tmp_path / "x.npz"
    np.savez(path, mu=np.zeros(5), first=PIXELS[:5], second=PIXELS)
    assert len(NumpyArray.open(path)) == 5
    np.savez(path, PIXELS, first=PIXELS[:5])
    assert NumpyArray.open(path).array == "arr_0"


@pytest.mark.parametrize("labels", [LABELS - 1, LABELS.astype(float), LABELS[:5]])
def test_arrays_that_are_no_classes_are_ignored(tmp_path: Path, labels: np.ndarray):
    np.savez(tmp_path / "x.npz", PIXELS, labels)
    assert NumpyArray.open(tmp_path / "x.npz").notes == ("no classes",)


def test_a_pickle_in_an_array_is_not_read(tmp_path: Path):
    mark = tmp_path / "mark"
    attack = np.array([Attack(Path.touch, mark)] * 12, object)
    np.savez(tmp_path / "x.npz", PIXELS, attack, other=attack)
    assert NumpyArray.open(tmp_path / "x.npz").class_names == ()
    np.save(tmp_path / "x.npy", attack)
    rejected(tmp_path / "x.npy", r"contains object \(12,\); give a .npy or .npz file")
    assert not mark.exists()


def test_files_that_cannot_be_used_are_named(tmp_path: Path):
    rejected(tmp_path / "nowhere.npz", "nowhere.npz: no such file; give a .npy or .npz file")
    path = tmp_path / "x.npy"
    for array, match in (
        (PIXELS.astype(np.float32), r"float32 \(12, 8, 6, 3\); give"),
        (PIXELS.transpose(0, 3, 1, 2).copy(), r"uint8 \(12, 3, 8, 6\)"),
        (PIXELS[:0], r"uint8 \(0, 8, 6, 3\)"),
        (np.asfortranarray(PIXELS), "Fortran"),
    ):
        np.save(path, array)
        rejected(path, match)
    np.save(path, PIXELS)
    path.write_bytes(path.read_bytes()[:-1])
    rejected(path, "cut short or too long")
    path.write_bytes(b"no array")
    rejected(path, "x.npy: cannot be read")
    np.savez(tmp_path / "x.npz", PIXELS)
    data = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(data[: len(data) // 2])
    rejected(tmp_path / "x.npz", "cannot be read")
    with zipfile.ZipFile(tmp_path / "empty.npz", "w"):
        pass
    rejected(tmp_path / "empty.npz", "contains no array")


def header(shape: tuple[int, ...], version: tuple[int, int] = (1, 0), spaces: int = 0) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}{' ' * spaces}\n".encode()
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text


def test_a_long_header_is_not_read(tmp_path: Path):
    path = tmp_path / "x.npz"
    for version, spaces, match in (
        ((2, 0), 2**26, "the version of its header is 2.0, not 1.0"),
        ((1, 0), 20_000, r"its header has 200\d\d bytes"),
    ):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("arr_0.npy", header((1, 8, 8, 3), version, spaces))
        peak = traced_peak(lambda match=match: rejected(path, rf"x.npz: cannot be read \({match}"))
        assert peak < 2**24
    with pytest.raises(UserError) as error:
        NumpyArray.open(path)
    assert "allow_pickle" not in str(error.value)


def test_the_labels_are_those_that_were_checked(tmp_path: Path):
    path = tmp_path / "x.npz"
    np.savez(path, PIXELS, LABELS)
    other = io.BytesIO()
    np.save(other, LABELS[:5])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("arr_1", other.getvalue())
    assert NumpyArray.open(path).labels.tolist() == LABELS.tolist()


def test_images_that_the_file_cannot_hold_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, shape = tmp_path / "x.npz", (10**9, 1, 1, 1)
    start = header(shape)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", start)
    claimed = struct.pack("<I", len(start) + 10**9)
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<I", len(start)), claimed))
    monkeypatch.setattr(numpy_array, "split_by_name", None)  # is not reached
    rejected(path, r"cannot be read \(arr_0.npy claims more bytes than the file can hold\)")
    (tmp_path / "x.npy").write_bytes(header((1, 2**14, 2**14, 3)))
    with (tmp_path / "x.npy").open("r+b") as file:
        file.truncate(len(header((1, 2**14, 2**14, 3))) + 3 * 2**28)
    rejected(tmp_path / "x.npy", "images of more than 256 MiB each")


def test_a_damaged_image_is_named(tmp_path: Path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, PIXELS)
    source = NumpyArray.open(path)
    data = bytearray(path.read_bytes())
    data[300:400] = bytes(100)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x.npz: image 11 cannot be read"):
        source.read(11)
