import gzip
import pickle
import shutil
import struct
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision

from ganray.data.sources import cifar10
from ganray.data.sources.cifar10 import CIFAR10
from ganray.data.writer import write_shards
from ganray.errors import UserError

PART = 4  # images in each of the six files
PIXELS = np.random.default_rng(0).integers(0, 256, (6, PART, 3072), np.uint8)
LABELS = np.random.default_rng(1).integers(0, 10, (6, PART))
BINARY, PYTHON = cifar10.LAYOUTS


def python2_pickle(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    """Return the pickle that Python 2 and its NumPy wrote for CIFAR-10, whose texts are bytes."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    shape = b"".join(b"M" + struct.pack("<H", side) for side in pixels.shape)
    items = b"".join(b"K" + bytes([label]) for label in labels)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    )
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = b"(K\x01" + shape + b"\x86" + dtype + b"\x89" + text(pixels.tobytes()) + b"tb"
    entries = text(b"labels") + b"](" + items + b"e" + text(b"data") + array + state
    return b"\x80\x02}(" + entries + b"u."


def write_layout(root: Path, layout: cifar10._Layout, *, python2: bool = False) -> Path:
    """Write a small set as a folder; every image has pixels of its own."""
    folder = root / layout.folder
    folder.mkdir(parents=True)
    for name, pixels, labels in zip(cifar10.BATCHES, PIXELS, LABELS, strict=True):
        if layout.suffix:
            data = np.hstack([labels[:, None].astype(np.uint8), pixels]).tobytes()
        elif python2:
            data = python2_pickle(pixels, labels)
        else:
            data = pickle.dumps({"data": pixels, "labels": labels.tolist()})
        (folder / (name + layout.suffix)).write_bytes(data)
    return root


def pack(root: Path, layout: cifar10._Layout) -> Path:
    """Replace the folder by its archive."""
    with tarfile.open(root / layout.archive, "w:gz") as tar:
        tar.add(root / layout.folder, layout.folder)
    shutil.rmtree(root / layout.folder)
    return root


def rejected(root: Path, match: str, **options: Any) -> None:
    with pytest.raises(UserError, match=match) as error:
        CIFAR10.open(root, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["binary", "python", "python 2"])
def test_images_of_every_layout(tmp_path: Path, kind: str, packed: bool):
    layout = BINARY if kind == "binary" else PYTHON
    root = write_layout(tmp_path, layout, python2=kind == "python 2")
    if packed:
        pack(root, layout)
    source = pickle.loads(pickle.dumps(CIFAR10.open(root)))
    expected = PIXELS.reshape(-1, 3, 32, 32)
    for index in (0, PART + 1, 6 * PART - 1):
        pixels = np.asarray(source.read(index))
        np.testing.assert_array_equal(pixels.transpose(2, 0, 1), expected[index])
    assert source.labels.tolist() == LABELS.ravel().tolist()
    assert source.split.tolist() == [0] * 5 * PART + [2] * PART
    assert source.ids.tolist() == list(range(6 * PART))
    other = CIFAR10.open(write_layout(tmp_path / "other", BINARY))
    assert source.fingerprint() == other.fingerprint()


def test_pixels_labels_and_classes_are_those_torchvision_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = write_layout(tmp_path, PYTHON)
    meta = {"label_names": list(CIFAR10.class_names)}
    (root / PYTHON.folder / "batches.meta").write_bytes(pickle.dumps(meta))
    # Of the small files the checksums are others.
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    parts = [torchvision.datasets.CIFAR10(str(root), train=train) for train in (True, False)]
    source = CIFAR10.open(root)
    pixels = np.stack([np.asarray(source.read(i)) for i in range(len(source))])
    np.testing.assert_array_equal(pixels, np.concatenate([part.data for part in parts]))
    assert source.labels.tolist() == [label for part in parts for label in part.targets]


def test_the_folders_and_archives_are_those_of_torchvision():
    published = torchvision.datasets.CIFAR10
    assert (published.base_folder, published.filename) == PYTHON[:2]
    names = [name for name, _ in published.train_list + published.test_list]
    assert names == list(cifar10.BATCHES)


def test_shards_of_cifar10(tmp_path: Path):
    source = CIFAR10.open(write_layout(tmp_path, BINARY))
    manifest = write_shards(source, tmp_path / "set", split="test", processes=1)
    assert (manifest.num_images, manifest.image_shape) == (PART, (32, 32, 3))
    assert manifest.class_names[3] == "cat"


class Attack:
    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_calls_nothing(tmp_path: Path, protocol: int):
    root, mark = write_layout(tmp_path, PYTHON), tmp_path / "mark"
    path = root / PYTHON.folder / "data_batch_3"
    for attack in (Attack(Path.touch, mark), Attack(eval, f"open({str(mark)!r}, 'w')")):
        for content in (attack, {"data": attack, "labels": [1]}):
            path.write_bytes(pickle.dumps(content, protocol))
            rejected(root, r"data_batch_3: not a batch of .* names \S+, which an array of bytes")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "EOFError"),
        (b"\x80\x04r\xff\xff\xff\xff.", "not a batch"),  # a memo of 2^32 entries
        (pickle.dumps([1]), "not a batch"),
        (pickle.dumps({"data": PIXELS[0]}), "KeyError: 'labels'"),
        (pickle.dumps({"data": PIXELS[0].astype(int), "labels": [1]}), "not bytes in C order"),
        (pickle.dumps({"data": np.asfortranarray(PIXELS[0]), "labels": [1]}), "not bytes in C"),
        (pickle.dumps({"data": PIXELS[0], "labels": [1]}), "there are 1 labels for 4 images"),
        (pickle.dumps({"data": PIXELS[0], "labels": [[1]] * 4}), "not a list of integers"),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b".", "not a batch"),  # a bytearray
        (b"\x80\x02c\x1b[2J\nx\n.", r"names '.x1b\[2J.x', which"),
        (pickle.dumps({"data": PIXELS[0, :, 1:], "labels": [1] * PART}), r"pixels \(4, 3071\)"),
        (pickle.dumps({"data": PIXELS[0], "labels": [10] * PART}), "labels outside 0 to 9"),
    ],
)
def test_a_damaged_pickle_is_named(tmp_path: Path, content: bytes, match: str):
    root = write_layout(tmp_path, PYTHON)
    (root / PYTHON.folder / "data_batch_2").write_bytes(content)
    rejected(root, f"data_batch_2.*{match}.*delete it and download again")


def test_damaged_binary_files_and_archives_are_named(tmp_path: Path):
    root = write_layout(tmp_path / "a", BINARY)
    path = root / BINARY.folder / "test_batch.bin"
    for data, match in (
        (path.read_bytes()[:-1], "cut short or another file: 12291 bytes"),
        (b"", r"pixels \(0, 3072\)"),
        (b"\x0a" * 3073, "labels outside"),
    ):
        path.write_bytes(data)
        rejected(root, f"test_batch.bin: .*{match}")
    path.unlink()
    rejected(root, "cifar-10-batches-bin: contains no test_batch.bin")
    archive = pack(write_layout(tmp_path / "b", BINARY), BINARY) / BINARY.archive
    archive.write_bytes(archive.read_bytes()[:5000])
    rejected(tmp_path / "b", "cifar-10-binary.tar.gz: cannot be read")
    rejected(tmp_path / "c", "contains no CIFAR-10; looked for .*-python.tar.gz; let torchvision")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = write_layout(tmp_path, BINARY)
    monkeypatch.setattr(cifar10, "_MAX_BYTES", 3000)
    rejected(root, "larger than 0 MiB")
    rejected(pack(root, BINARY), "larger than 0 MiB")


def traced_peak(function: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_small_pickle_takes_little_memory(tmp_path: Path):
    root = write_layout(tmp_path, PYTHON)
    shared = [[1] * 4000] * 3000
    for content in (
        b"\x80\x05\x96" + struct.pack("<Q", 2**27) + b".",  # a bytearray
        pickle.dumps({"data": PIXELS[0], "labels": shared}),
    ):
        (root / PYTHON.folder / "data_batch_1").write_bytes(content)
        assert traced_peak(lambda: rejected(root, "data_batch_1: not a batch")) < 2**24


def test_a_small_archive_takes_little_memory(tmp_path: Path):
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**26
    with gzip.open(tmp_path / BINARY.archive, "wb", compresslevel=1) as file:
        file.write(header.tobuf())
        file.write(bytes(2**26))
    peak = traced_peak(lambda: rejected(tmp_path, "a header has more than 1 MiB"))
    assert peak < 2**24


def test_an_archive_that_unpacks_to_too_much_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = pack(write_layout(tmp_path, BINARY), BINARY)
    monkeypatch.setattr(cifar10, "_MAX_MEMBERS", 3)
    rejected(root, "it has more than 3 members")
    monkeypatch.setattr(cifar10, "_MAX_ARCHIVE_BYTES", 20_000)
    rejected(root, "it unpacks to more than 0 MiB")


def test_a_download_fetches_the_archive_and_unpickles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = []

    def fetch(url: str, root: str, filename: str, md5: str):
        calls.append((filename, len(md5)))
        pack(write_layout(Path(root), PYTHON), PYTHON)
        (Path(root) / PYTHON.archive).rename(Path(root) / filename)

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", fetch)
    for _ in range(2):
        assert len(CIFAR10.open(tmp_path / "root", download=True)) == 6 * PART
    assert calls == [("cifar-10-python.tar.gz.part", 32)]
    assert [path.name for path in (tmp_path / "root").iterdir()] == [PYTHON.archive]

    def interrupted(url: str, root: str, filename: str, md5: str):
        Path(root).mkdir()
        (Path(root) / filename).write_bytes(b"part")
        raise KeyboardInterrupt

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", interrupted)
    with pytest.raises(KeyboardInterrupt):
        CIFAR10.open(tmp_path / "again", download=True)
    monkeypatch.setattr(torchvision.datasets.utils, "download_url", fetch)
    assert len(CIFAR10.open(tmp_path / "again", download=True)) == 6 * PART

    def no_network(*_: str):
        raise RuntimeError("no route\nto host")

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", no_network)
    rejected(
        tmp_path,
        r"CIFAR-10 could not be downloaded \(RuntimeError: no route to host\); fetch cifar-10-bin",
        download=True,
    )
