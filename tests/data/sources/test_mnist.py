import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torchvision

from ganray.data.sources import mnist
from ganray.data.sources.mnist import MNIST, FashionMNIST, StackedMNIST, draw_triples
from ganray.data.writer import write_shards
from tests.conftest import REAL_MNIST, needs_mnist

ROOT = Path(mnist.__file__).parents[3]
NUM_TRAIN, NUM_TEST = 40, 20


def write_idx(path: Path, values: np.ndarray) -> None:
    header = np.array([0x800 + values.ndim, *values.shape], ">u4").tobytes()
    path.write_bytes(header + values.astype(np.uint8).tobytes())


def write_set(root: Path, dataset: str) -> Path:
    """A small MNIST in which every image has a gray level of its own."""
    raw = root / dataset / "raw"
    raw.mkdir(parents=True)
    for part, first, count in (("train", 0, NUM_TRAIN), ("t10k", 100, NUM_TEST)):
        images = np.zeros((count, 28, 28), np.uint8)
        images += (first + np.arange(count, dtype=np.uint8))[:, None, None]
        images[:, 3, 5] = 255  # neither symmetric nor square
        write_idx(raw / f"{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    root = write_set(tmp_path_factory.mktemp("mnist"), "MNIST")
    return write_set(root, "FashionMNIST")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """One to spoil."""
    return write_set(tmp_path / "copy", "MNIST")


def raw(root: Path, name: str) -> Path:
    return root / "MNIST" / "raw" / name


def rejected(root: Path, **options: bool) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        MNIST.open(root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("source", "oracle"),
    [(MNIST, torchvision.datasets.MNIST), (FashionMNIST, torchvision.datasets.FashionMNIST)],
)
def test_pixels_and_labels_are_those_torchvision_reads(root: Path, source, oracle):
    opened = source.open(root)
    parts = [oracle(str(root), train=train) for train in (True, False)]
    pixels = np.stack([np.asarray(opened.read(i)) for i in range(len(opened))])
    np.testing.assert_array_equal(pixels, np.concatenate([part.data.numpy() for part in parts]))
    labels = np.concatenate([part.targets.numpy() for part in parts])
    np.testing.assert_array_equal(opened.labels, labels)
    assert (pixels.dtype, opened.read(0).mode, opened.labels.dtype) == (np.uint8, "L", np.int64)
    assert opened.class_names == tuple(name.split(" - ")[0] for name in parts[0].classes)


def test_the_training_part_comes_first_and_the_test_part_is_held_out(root: Path):
    source = MNIST.open(root)
    assert len(source) == NUM_TRAIN + NUM_TEST
    assert source.split.tolist() == [0] * NUM_TRAIN + [2] * NUM_TEST
    assert source.ids.tolist() == list(range(NUM_TRAIN + NUM_TEST))
    assert source.attributes.shape == (len(source), 0)
    assert np.asarray(source.read(NUM_TRAIN))[0, 0] == 100


@needs_mnist
def test_the_real_mnist():
    source = MNIST.open(REAL_MNIST)
    train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(source.labels[source.split == 0]).tolist() == train
    assert np.bincount(source.split).tolist() == [60_000, 0, 10_000]
    assert source.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert source.images.mean() == pytest.approx(33.385, abs=0.01)
    stacked = StackedMNIST.open(REAL_MNIST)
    assert len(stacked) == 154_000
    assert len(np.unique(stacked.labels[stacked.split == 2])) == 1000


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST, StackedMNIST])
def test_a_pickled_source_is_small_and_read_without_torch(root: Path, kind):
    source = kind.open(root)
    text = pickle.dumps(source)
    assert len(text) < 1000
    code = (
        "import pickle, sys, hashlib; s = pickle.load(sys.stdin.buffer);"
        "print(hashlib.sha256(s.read(7).tobytes()).hexdigest(), 'torch' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], input=text, capture_output=True, cwd=ROOT, check=True
    )
    expected = hashlib.sha256(source.read(7).tobytes()).hexdigest()
    assert said.stdout.decode().split() == [expected, "False"]


def test_the_fingerprint_follows_pixels_and_labels(root: Path, copy: Path):
    assert MNIST.open(copy).fingerprint() == MNIST.open(root).fingerprint()
    prints = {MNIST.open(root).fingerprint()}
    for name in ("t10k-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        data = bytearray(raw(copy, name).read_bytes())
        data[-1] ^= 1
        raw(copy, name).write_bytes(data)
        prints.add(MNIST.open(copy).fingerprint())
    assert len(prints) == 3


def test_shards_of_mnist_have_one_channel(root: Path, tmp_path: Path):
    manifest = write_shards(MNIST.open(root), tmp_path / "set", processes=1)
    assert manifest.image_shape == (28, 28, 1)
    assert manifest.num_images == NUM_TRAIN + NUM_TEST


def test_absent_files_are_named_with_the_way_out(copy: Path, tmp_path: Path):
    message = rejected(tmp_path / "nowhere")
    for part in (f"{tmp_path}/nowhere/MNIST/raw", "train-images-idx3-ubyte", "--data.download"):
        assert part in message
    assert "digits, which needs no files" in message
    raw(copy, "t10k-labels-idx1-ubyte").unlink()
    assert "found no t10k-labels-idx1-ubyte;" in rejected(copy)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("train-images-idx3-ubyte", b"", "must be an idx file of 28x28 images"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03\0\0\0\x01\0\0\0\x1c\0\0\0\x1d", "of 28x28"),
        ("train-labels-idx1-ubyte", b"\x1f\x8b\x08\0\0\0\0\0\0\0", "must be an idx file of labels"),
        ("train-labels-idx1-ubyte", b"\0\0\x08\x01\xff\xff\xff\xff\0", "cut short or too long"),
        ("train-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x01\0", "1 labels up to 0 for 40 images"),
        ("t10k-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x14" + b"\x0a" * 20, "labels up to 10"),
    ],
)
def test_a_damaged_file_is_named(copy: Path, name: str, data: bytes, message: str):
    raw(copy, name).write_bytes(data)
    said = rejected(copy)
    assert name in said
    assert message in said


def test_a_truncated_file_is_named(copy: Path):
    path = raw(copy, "t10k-images-idx3-ubyte")
    path.write_bytes(path.read_bytes()[:-1])
    assert "t10k-images-idx3-ubyte: cut short" in rejected(copy)


def test_a_download_fetches_what_is_absent_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    calls = []

    def download(root: str, download: bool):
        calls.append(download)
        write_set(Path(root), "MNIST")

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    for _ in range(2):
        assert len(MNIST.open(tmp_path / "root", download=True)) == NUM_TRAIN + NUM_TEST
    assert calls == [True]


def test_a_download_that_fails_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def no_network(root: str, download: bool):
        raise RuntimeError("no route\nto host")

    monkeypatch.setattr(torchvision.datasets, "MNIST", no_network)
    message = rejected(tmp_path, download=True)
    assert "MNIST could not be downloaded (RuntimeError: no route to host)" in message
    assert "copy its folder MNIST here" in message


def test_red_green_and_blue_are_the_three_digits_of_the_label(root: Path):
    digits = MNIST.open(root)
    source = StackedMNIST(digits, count=50)
    assert source.read(0).mode == "RGB"
    for index in (0, 49, 50, 49 + 26_000):
        pixels = np.asarray(source.read(index))
        assert pixels.shape == source.image_shape
        levels = pixels[0, 0].tolist()
        # Level k is digit k % 10, in both parts: see write_set.
        assert source.class_names[source.labels[index]] == "".join(str(v % 10) for v in levels)
        for channel, digit in enumerate(source.triples[index]):
            np.testing.assert_array_equal(pixels[..., channel], np.asarray(digits.read(digit)))


def test_held_out_stacks_are_of_held_out_digits(root: Path):
    source = StackedMNIST.open(root, count=1000)
    assert np.bincount(source.split).tolist() == [1000, 0, 26_000]
    train, test = source.triples[:1000], source.triples[1000:]
    assert set(np.unique(train)) == set(range(NUM_TRAIN))
    assert set(np.unique(test)) == set(range(NUM_TRAIN, NUM_TRAIN + NUM_TEST))


def test_more_images_change_none_and_another_seed_changes_all(root: Path):
    few, many = (StackedMNIST.open(root, rng_seed=3, count=count) for count in (100, 250))
    rows = np.searchsorted(many.ids, few.ids)
    np.testing.assert_array_equal(many.ids[rows], few.ids)
    np.testing.assert_array_equal(many.triples[rows], few.triples)
    other = StackedMNIST.open(root, rng_seed=4, count=100)
    assert (other.triples == few.triples).mean() < 0.1  # 1 in 20 or 40 by chance
    assert len({s.fingerprint() for s in (few, many, other)}) == 3


def test_the_draws_never_change():
    """These numbers are in published sets: no later version may draw others."""
    drawn = draw_triples(np.arange(60_000), rng_seed=0, split=0, count=3)
    words = np.random.Philox(np.random.SeedSequence([0, 0, 0x747269706C65])).random_raw(9)
    assert drawn.ravel().tolist() == [int(word) % 60_000 for word in words]
    assert drawn.tolist() == [[3475, 54030, 49790], [16295, 59828, 4411], [10094, 45653, 31634]]


def test_all_classes_are_drawn_alike(root: Path):
    """Pearson's statistic of 1,000 equal classes: 999 on average, with a deviation of 45."""
    source = StackedMNIST.open(root)
    assert len(source) == 128_000 + 26_000
    counts = np.bincount(source.labels[:128_000], minlength=1000)
    assert 999 - 5 * 45 < ((counts - 128) ** 2 / 128).sum() < 999 + 5 * 45


@pytest.mark.parametrize("wrong", [{"rng_seed": -1}, {"count": 0}, {"count": 10**9 + 1}])
def test_numbers_out_of_range_are_rejected(root: Path, wrong: dict[str, int]):
    with pytest.raises(ValueError, match="rng_seed must be at least 0 and count from 1"):
        StackedMNIST.open(root, **wrong)
