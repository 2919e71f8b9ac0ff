"""The source text's file read in place."""

import fcntl
import os
import pickle
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ganray.data import source_text
from ganray.data.source_text import SourceTextReader
from ganray.data.sources.source_text import GROUP, SourceTextHDF5
from tests.data.sources.source_text_files import (
    NUMBERS,
    PIXELS,
    SHAPE,
    expected,
    gathered,
    is_open,
    open_objects,
    write_text,
)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("userblock", [0, 512])
def test_the_reader_gathers_rows_in_any_order(tmp_path: Path, libver: str, userblock: int):
    path = tmp_path / "faces.h5py"
    with h5py.File(path, "w", libver=libver, userblock_size=userblock) as file:
        for number in NUMBERS:
            file[f"{GROUP}/{number}.jpg"] = PIXELS[number]
    reader = SourceTextReader(path, tmp_path / "cache")
    assert (len(reader), reader.image_shape) == (len(NUMBERS), SHAPE)
    assert reader.ids.tolist() == NUMBERS
    for rows in (None, [12, 0, 5, 5, 1], [7]):
        np.testing.assert_array_equal(gathered(reader, rows), expected(rows))
    assert gathered(reader, []).shape == (0, *SHAPE)
    rows = reader.annotations(np.array([3, 3]))
    assert (rows.labels.tolist(), rows.attributes.shape) == ([-1, -1], (2, 0))


def test_gather_refuses_what_does_not_fit(raw: Path, cache: Path):
    reader = SourceTextReader(raw, cache)
    for rows in ([len(NUMBERS)], [-1]):
        with pytest.raises(ValueError, match=f"there are {len(NUMBERS)}"):
            gathered(reader, rows)
    rows, shape = np.arange(2), (2, *SHAPE)
    for out in (
        torch.empty(shape),
        torch.empty((3, *SHAPE), dtype=torch.uint8),
        torch.empty((4, *SHAPE), dtype=torch.uint8)[::2],
    ):
        with pytest.raises(ValueError, match="must be contiguous uint8"):
            reader.read_batch(rows, out)


def test_the_index_is_made_once_and_again_when_the_file_changes(
    path: Path, cache: Path, monkeypatch
):
    made = []
    make_index = source_text._make_index
    monkeypatch.setattr(
        source_text, "_make_index", lambda *args: made.append(args) or make_index(*args)
    )
    for _ in range(2):
        np.testing.assert_array_equal(gathered(SourceTextReader(path, cache)), expected())
    assert len(made) == 1
    with h5py.File(path, "r+") as file:
        del file[f"{GROUP}/200.jpg"]
    os.utime(path, ns=(0, 1))
    assert len(SourceTextReader(path, cache)) == len(NUMBERS) - 1
    assert len(made) == 2
    assert [file.suffix for file in cache.iterdir()] == [".npz", ".npz"]  # and no .part


@pytest.mark.parametrize("damage", ["empty", "cut", "pickle", "beyond", "floats", "lengths"])
def test_a_damaged_index_is_made_again(path: Path, cache: Path, damage: str):
    SourceTextReader(path, cache)
    (index,) = cache.iterdir()
    arrays = dict(np.load(index))
    if damage == "empty":
        index.write_bytes(b"")
    elif damage == "cut":
        index.write_bytes(index.read_bytes()[:-100])
    else:
        size = path.stat().st_size
        bad = {
            "pickle": {"ids": np.array([print], object)},
            "beyond": {"offsets": arrays["offsets"] + size},
            "floats": {"offsets": arrays["offsets"].astype(float)},
            "lengths": {"ids": arrays["ids"][1:]},
        }
        np.savez(index, **arrays | bad[damage])
    np.testing.assert_array_equal(gathered(SourceTextReader(path, cache)), expected())
    np.testing.assert_array_equal(np.load(index)["offsets"], arrays["offsets"])


def test_a_cache_folder_that_cannot_be_written_is_named(raw: Path, tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ValueError, match="give a cache folder that can be written"):
        SourceTextReader(raw, tmp_path / "file")


def test_no_hdf5_object_outlives_the_opening(raw: Path, cache: Path):
    before = open_objects()
    reader = SourceTextReader(raw, cache)
    assert open_objects() == before
    del reader
    assert not is_open(raw)  # its map holds the file
    reader = SourceTextReader(raw, cache)
    assert len(gathered(reader, [0])) == 1


def test_a_pickled_reader_maps_the_file_itself(raw: Path, cache: Path):
    reader = SourceTextReader(raw, cache)
    text = pickle.dumps(reader)
    assert len(text) < 1000
    copy = pickle.loads(text)
    assert copy._file.ctypes.data != reader._file.ctypes.data
    np.testing.assert_array_equal(gathered(copy), expected())


def test_a_forked_process_reads_on(raw: Path, packed: Path, cache: Path):
    reader, source = SourceTextReader(raw, cache), SourceTextHDF5.open(packed)
    source.read(0)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        same = np.array_equal(gathered(reader, [7]), expected([7]))
        assert source._handle is not None
        inherited = source._handle[1]
        same &= source.read(7).tobytes() == PIXELS[NUMBERS[7]].tobytes()
        same &= source._handle[1] is not inherited
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip", "compression_opts": 9},
        {"chunks": SHAPE},
        {"fletcher32": True, "chunks": SHAPE},
    ],
)
def test_a_compressed_or_chunked_file_is_converted_not_read_in_place(
    tmp_path: Path, cache: Path, options: dict[str, object]
):
    path = write_text(tmp_path / "faces.h5py", **options)
    with pytest.raises(
        ValueError, match=f"convert it by `python jobs/shard.py source-text {path}`"
    ):
        SourceTextReader(path, cache)
    np.testing.assert_array_equal(np.asarray(SourceTextHDF5.open(path).read(3)), expected([3])[0])


def test_a_compact_or_unwritten_image_has_no_place_in_the_file(tmp_path: Path, cache: Path):
    small = np.zeros((8, 8, 3), np.uint8)
    compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    compact.set_layout(h5py.h5d.COMPACT)
    for number, options in enumerate([{"data": small, "dcpl": compact}, {"shape": small.shape}]):
        path = tmp_path / f"{number}.h5py"
        with h5py.File(path, "w") as file:
            file.create_dataset(f"{GROUP}/0.jpg", dtype=np.uint8, **options)
        with pytest.raises(ValueError, match="cannot be read in place; convert it"):
            SourceTextReader(path, cache)


def test_the_index_refuses_what_reaches_past_the_end_whatever_hdf5_says(raw: Path):
    with pytest.raises(ValueError, match=r"1\.jpg begins at byte \d+ of \d+ and reaches past"):
        source_text._make_index(raw, raw.stat().st_size - 1)


def test_a_file_that_another_has_locked_can_be_read(path: Path, cache: Path):
    """As on a network file system, where the lock that HDF5 asks for is refused."""
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="lock"):
            h5py.File(path, "r", locking=True)
        assert len(gathered(SourceTextReader(path, cache))) == len(NUMBERS)
        assert SourceTextHDF5.open(path).read(0).size == (178, 218)


def test_a_read_only_folder_is_left_as_it_is(raw: Path, tmp_path: Path, cache: Path):
    folder = tmp_path / "read-only"
    folder.mkdir()
    path = folder / "faces.h5py"
    path.write_bytes(raw.read_bytes())
    path.chmod(0o444)
    folder.chmod(0o555)
    before = path.read_bytes(), path.stat().st_mtime_ns, folder.stat().st_mtime_ns
    try:
        assert len(gathered(SourceTextReader(path, cache))) == len(NUMBERS)
        SourceTextHDF5.open(path).read(0)
        # Root may write there all the same, so that this says more than a refusal would.
        assert (path.read_bytes(), path.stat().st_mtime_ns, folder.stat().st_mtime_ns) == before
        assert [entry.name for entry in folder.iterdir()] == ["faces.h5py"]
    finally:
        folder.chmod(0o755)


def test_a_tenth_is_held_out_alike_by_both(raw: Path, cache: Path):
    source, reader = SourceTextHDF5.open(raw), SourceTextReader(raw, cache)
    assert source.split.tolist() == [2 if number in (1, 6) else 0 for number in NUMBERS]
    assert reader.split.tolist() == source.split.tolist()
