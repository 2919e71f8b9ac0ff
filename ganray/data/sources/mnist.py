"""MNIST and Fashion-MNIST as torchvision stores them, and stacked MNIST."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ganray.data.sources import labeled_images
from ganray.data.sources.labeled_images import LabeledImages, WithoutAttributes
from ganray.errors import UserError

# The parts in order, with their index in SPLITS. An idx file consists of a magic number and the
# lengths of its axes, both big-endian, and bytes. Importing torchvision would cost a worker 3 s.
PARTS = {"train": 0, "t10k": 2}
IMAGES, LABELS = "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte"
SIDE, CLASSES = 28, 10

# Separates this random stream from others that are derived from the same rng_seed.
TRIPLES_STREAM = 0x747269706C65
# The ids of held-out triples begin here, so that the number of training triples can grow.
FIRST_HELD_OUT = 10**9
NUM_HELD_OUT = 26_000


class MNIST(LabeledImages):
    """MNIST: 60,000 handwritten digits of 28x28 pixels for training, then 10,000 for testing.

    Created by ``MNIST.open``. Its 55 MB are kept in memory.
    """

    name: str = "mnist"
    image_shape: tuple[int, int, int] = (SIDE, SIDE, 1)
    class_names: tuple[str, ...] = tuple("0123456789")
    dataset: str = "MNIST"
    """Name of torchvision's class and folder."""

    def __init__(self, root: Path) -> None:
        folder = root / self.dataset / "raw"
        _check_files(root, folder, self.dataset)
        parts = {}
        for part, split in PARTS.items():
            labels_file = folder / LABELS.format(part)
            images, labels = _read_idx(folder / IMAGES.format(part)), _read_idx(labels_file)
            _check_labels(labels_file, images, labels)
            parts[split] = images, labels
        super().__init__(root, parts)

    @classmethod
    def open(cls, root: Path, *, download: bool = False) -> Self:
        """Open the set in torchvision's layout.

        Args:
            root: Contains ``MNIST/raw/train-images-idx3-ubyte`` and three more files
                (``FashionMNIST/raw/...`` for Fashion-MNIST).
            download: Let torchvision download missing files (70 MB).

        Raises:
            UserError: A file is missing or damaged, files do not match, or the download failed.
        """
        root = Path(root).expanduser().absolute()
        if download and _missing_files(root / cls.dataset / "raw"):
            _download(cls.dataset, root)
        return cls(root)


class FashionMNIST(MNIST):
    """Fashion-MNIST: 70,000 images of clothes, otherwise like MNIST."""

    name: str = "fashion-mnist"
    class_names: tuple[str, ...] = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    dataset: str = "FashionMNIST"


class StackedMNIST(WithoutAttributes):
    """Three MNIST digits as the channels of one image, which gives 1,000 classes.

    Created by ``StackedMNIST.open``. Red is the hundreds digit. The digits of each image are drawn
    independently: ``count`` images from MNIST's training part, then 26,000 held-out images from its
    test part, so that the splits share no digit. The digits of an image depend on ``(rng_seed,
    id)`` only: a larger ``count`` adds images and changes none.
    """

    name: str = "stacked-mnist"
    """Name of the source in recipes and manifests."""
    image_shape: tuple[int, int, int] = (SIDE, SIDE, 3)
    """Height, width and channels of every image."""
    class_names: tuple[str, ...] = tuple(f"{label:03d}" for label in range(CLASSES**3))
    """``000`` to ``999``: the digit in red, in green, in blue."""

    def __init__(self, digits: MNIST, *, rng_seed: int = 0, count: int = 128_000) -> None:
        if rng_seed < 0 or not 1 <= count <= FIRST_HELD_OUT:
            raise ValueError(
                f"rng_seed={rng_seed}, count={count}: rng_seed must be at least 0 and count from 1 "
                f"to {FIRST_HELD_OUT}"
            )
        self.digits, self.rng_seed, self.count = digits, rng_seed, count
        counts = {0: count, 2: NUM_HELD_OUT}
        self.triples = np.concatenate(
            [
                draw_triples(np.flatnonzero(digits.split == split), rng_seed, split, number)
                for split, number in counts.items()
            ]
        )
        """int64 (N, 3) indices of the digits in red, green and blue."""
        self.labels = digits.labels[self.triples] @ np.array([100, 10, 1])
        """int64 (N,) in 0..999."""
        self.split = np.repeat(np.array(list(counts), np.uint8), list(counts.values()))
        """uint8 (N,) 0 train, then 2 test."""
        self.ids = np.concatenate([np.arange(count), FIRST_HELD_OUT + np.arange(NUM_HELD_OUT)])
        """int64 (N,) from 0 for training and from 10**9 for test images."""

    @classmethod
    def open(
        cls, root: Path, *, rng_seed: int = 0, count: int = 128_000, download: bool = False
    ) -> Self:
        """Open MNIST and draw the triples.

        Args:
            root: See ``MNIST.open``.
            rng_seed: Seed of the triples, at least 0.
            count: Number of training images, 1 to 10**9; PacGAN uses 128,000.
            download: See ``MNIST.open``.

        Raises:
            UserError: See ``MNIST.open``.
        """
        return cls(MNIST.open(root, download=download), rng_seed=rng_seed, count=count)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle the arguments: the other process draws the same triples."""
        return partial(type(self), rng_seed=self.rng_seed, count=self.count), (self.digits,)

    def read(self, index: int) -> Image.Image:
        """Return one image: RGB, 28x28."""
        return Image.fromarray(np.stack(list(self.digits.images[self.triples[index]]), axis=-1))

    def fingerprint(self) -> str:
        """Return a SHA-256 in hex of all digits and triples."""
        digest = hashlib.sha256(self.digits.fingerprint().encode())
        digest.update(self.triples.astype("<i8").data)
        return digest.hexdigest()


def draw_triples(
    digits: NDArray[np.int64], rng_seed: int, split: int, count: int
) -> NDArray[np.int64]:
    """Draw three of ``digits`` for each image, with replacement: int64 ``(count, 3)``.

    Row i depends on ``(digits, rng_seed, split, i)``, not on ``count``.
    """
    # Raw words, because numpy guarantees stable bit streams across versions, but not a stable
    # Generator.integers. The bias of the remainder is below 1e-14.
    stream = np.random.Philox(np.random.SeedSequence([rng_seed, split, TRIPLES_STREAM]))
    words = np.asarray(stream.random_raw(3 * count), np.uint64)
    return digits[(words % np.uint64(len(digits))).astype(np.int64)].reshape(count, 3)


def _missing_files(folder: Path) -> list[str]:
    names = [name.format(part) for part in PARTS for name in (IMAGES, LABELS)]
    return [name for name in names if not (folder / name).is_file()]


def _check_files(root: Path, folder: Path, dataset: str) -> None:
    absent = _missing_files(folder)
    if absent:
        raise UserError(
            f"{root}: contains no {dataset}; looked in {folder} and found no {', '.join(absent)}; "
            "let torchvision fetch it with --data.download true, or use the source digits, which "
            "needs no files"
        )


def _download(dataset: str, root: Path) -> None:
    def fetch() -> None:
        import torchvision

        getattr(torchvision.datasets, dataset)(root=str(root), download=True)

    advice = (
        f"fetch it on a machine that can and copy its folder {dataset} here, or use the source"
        " digits, which needs no files"
    )
    labeled_images.download(dataset, root, fetch, advice)


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an idx file of bytes: (N, 28, 28) or (N,), according to its name."""
    data = np.fromfile(path, np.uint8)
    num_axes = 3 if "idx3" in path.name else 1
    header = 4 + 4 * num_axes
    magic, *shape = data[:header].view(">u4").tolist() if len(data) >= header else [0]
    if magic != 0x800 + num_axes or shape[1:] != [SIDE] * (num_axes - 1):
        kind = f"{SIDE}x{SIDE} images" if num_axes == 3 else "labels"
        raise UserError(
            f"{path}: damaged or another set; it must be an idx file of {kind}; delete it and "
            "download again"
        )
    if len(data) - header != np.prod(shape, dtype=np.int64):
        raise UserError(
            f"{path}: cut short or too long: {len(data)} bytes for {shape[0]} entries; delete it "
            "and download again"
        )
    return data[header:].reshape(shape)


def _check_labels(path: Path, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    if len(images) != len(labels) or not len(labels) or labels.max() >= CLASSES:
        raise UserError(
            f"{path}: has {len(labels)} labels up to {labels.max(initial=0)} for {len(images)} "
            f"images; there must be one each, of 0 to {CLASSES - 1}; delete all four files and "
            "download again"
        )
