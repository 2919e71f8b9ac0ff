"""MNIST and Fashion-MNIST as torchvision stores them, and stacked MNIST made of the former."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ganray.errors import UserError

# The parts in order, with their place in SPLITS. An idx file is a magic number, the lengths of its
# axes, both big-endian, and bytes. torchvision could read them too, but costs a worker 3 s.
PARTS = {"train": 0, "t10k": 2}
IMAGES, LABELS = "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte"
SIDE, CLASSES = 28, 10

# Keeps the draws of stacked MNIST apart from others that are derived from the same rng_seed.
TRIPLES_STREAM = 0x747269706C65
# Held-out triples are numbered from here, so that those for training can become more and more.
FIRST_HELD_OUT = 10**9
NUM_HELD_OUT = 26_000


class MNIST:
    """MNIST: 60,000 handwritten digits of 28x28 pixels to train on, then 10,000 to test on.

    Made by ``MNIST.open``. Its 55 MB are held in memory. It is pickled by its path: the other
    process reads the files itself.
    """

    name: str = "mnist"
    """What recipes and manifests call this source."""
    image_shape: tuple[int, int, int] = (SIDE, SIDE, 1)
    """Height, width and channels of every image."""
    class_names: tuple[str, ...] = tuple("0123456789")
    """Names of the values of ``labels``."""
    attribute_names: tuple[str, ...] = ()
    """None: there are classes and no attributes."""
    dataset: str = "MNIST"
    """What torchvision calls its class and its folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        folder = root / self.dataset / "raw"
        _refuse_absent(root, folder, self.dataset)
        parts = [
            (_read_idx(folder / IMAGES.format(part)), _read_idx(folder / LABELS.format(part)))
            for part in PARTS
        ]
        for part, (images, labels) in zip(PARTS, parts, strict=True):
            _refuse_unfit(folder / LABELS.format(part), images, labels)
        self.images = np.concatenate([images for images, _ in parts])
        """uint8 (N, 28, 28), white on black"""
        self.labels = np.concatenate([labels for _, labels in parts]).astype(np.int64)
        """int64 (N,) in 0..9"""
        counts = [len(labels) for _, labels in parts]
        self.split = np.repeat(np.array(list(PARTS.values()), np.uint8), counts)
        """uint8 (N,) 0 train, then 2 test"""
        self.ids = np.arange(len(self.labels))
        """int64 (N,) place in the files of both parts, one after the other, from 0"""
        self.attributes = np.zeros((len(self.labels), 0), np.uint8)
        """uint8 (N, 0), as there are none"""

    @classmethod
    def open(cls, root: Path, *, download: bool = False) -> Self:
        """Open the set as torchvision lays it out.

        Args:
            root: Holds ``MNIST/raw/train-images-idx3-ubyte`` and three more (``FashionMNIST/raw/``
                for that one).
            download: Let torchvision fetch what is absent. Needs the network and 70 MB.

        Raises:
            ValueError: A file is absent, damaged or does not fit the others, or did not arrive.
        """
        root = Path(root).expanduser().absolute()
        if download and _absent(root / cls.dataset / "raw"):
            _download(cls.dataset, root)
        return cls(root)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle the path: the other process reads the files itself, in less time than a pipe."""
        return type(self).open, (self.root,)

    def read(self, index: int) -> Image.Image:
        """Return one image: grey, 28x28, white on black."""
        return Image.fromarray(self.images[index])

    def fingerprint(self) -> str:
        """Return the SHA-256 in hex of all pixels and labels."""
        digest = hashlib.sha256(self.images.data)
        for array in (self.labels, self.split):
            digest.update(array.data)
        return digest.hexdigest()


class FashionMNIST(MNIST):
    """Fashion-MNIST: 70,000 pictures of clothes, in all else like MNIST."""

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


class StackedMNIST:
    """Three MNIST digits as the red, green and blue of one image: 1,000 classes to count.

    Made by ``StackedMNIST.open``. Red is the hundreds. The digits of each image are drawn
    independently, ``count`` images from MNIST's training part and then 26,000 to hold out from its
    test part, so that no digit is on both sides. Which digits the image of an id stacks depends on
    ``(rng_seed, id)`` and nothing else: a larger ``count`` adds images and changes none.
    """

    name: str = "stacked-mnist"
    """What recipes and manifests call this source."""
    image_shape: tuple[int, int, int] = (SIDE, SIDE, 3)
    """Height, width and channels of every image."""
    class_names: tuple[str, ...] = tuple(f"{label:03d}" for label in range(CLASSES**3))
    """``000`` to ``999``: the digit in red, in green, in blue."""
    attribute_names: tuple[str, ...] = ()
    """None: there are classes and no attributes."""

    def __init__(self, digits: MNIST, *, rng_seed: int = 0, count: int = 128_000) -> None:
        if rng_seed < 0 or not 1 <= count <= FIRST_HELD_OUT:
            raise UserError(
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
        """int64 (N, 3) indices of the digits in red, green and blue"""
        self.labels = digits.labels[self.triples] @ np.array([100, 10, 1])
        """int64 (N,) in 0..999"""
        self.split = np.repeat(np.array(list(counts), np.uint8), list(counts.values()))
        """uint8 (N,) 0 train, then 2 test"""
        self.ids = np.concatenate([np.arange(count), FIRST_HELD_OUT + np.arange(NUM_HELD_OUT)])
        """int64 (N,) from 0 for training and from 10**9 for test"""
        self.attributes = np.zeros((len(self.ids), 0), np.uint8)
        """uint8 (N, 0), as there are none"""

    @classmethod
    def open(
        cls, root: Path, *, rng_seed: int = 0, count: int = 128_000, download: bool = False
    ) -> Self:
        """Open MNIST and draw the triples.

        Args:
            root: As for ``MNIST.open``.
            rng_seed: Which triples are drawn, at least 0.
            count: Images for training, 1 to 10**9; 128,000 is what PacGAN uses.
            download: As for ``MNIST.open``.

        Raises:
            ValueError: As for ``MNIST.open``, or a number is out of range.
        """
        return cls(MNIST.open(root, download=download), rng_seed=rng_seed, count=count)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle what it was made of: the other process draws the same triples."""
        return partial(type(self), rng_seed=self.rng_seed, count=self.count), (self.digits,)

    def read(self, index: int) -> Image.Image:
        """Return one image: RGB, 28x28."""
        return Image.fromarray(np.stack(list(self.digits.images[self.triples[index]]), axis=-1))

    def fingerprint(self) -> str:
        """Return a SHA-256 in hex of all digits and of which are stacked."""
        digest = hashlib.sha256(self.digits.fingerprint().encode())
        digest.update(self.triples.astype("<i8").data)
        return digest.hexdigest()


def draw_triples(
    digits: NDArray[np.int64], rng_seed: int, split: int, count: int
) -> NDArray[np.int64]:
    """Draw three of ``digits`` for each image, with replacement.

    Row i depends on ``(digits, rng_seed, split, i)``, not on ``count``.

    Args:
        digits: int64 (n,) the indices to draw from, n at least 1.
        rng_seed: Not negative.
        split: Keeps the draws of two splits apart.
        count: How many triples.

    Returns:
        int64 ``(count, 3)``.
    """
    # Raw words, and not Generator.integers: numpy promises that bit streams stay the same in later
    # versions, but not what Generator makes of them. 2**64 is so far beyond the number of digits
    # that the remainder favours none by more than one in 10**14.
    stream = np.random.Philox(np.random.SeedSequence([rng_seed, split, TRIPLES_STREAM]))
    words = np.asarray(stream.random_raw(3 * count), np.uint64)
    return digits[(words % np.uint64(len(digits))).astype(np.int64)].reshape(count, 3)


def _absent(folder: Path) -> list[str]:
    names = [name.format(part) for part in PARTS for name in (IMAGES, LABELS)]
    return [name for name in names if not (folder / name).is_file()]


def _refuse_absent(root: Path, folder: Path, dataset: str) -> None:
    absent = _absent(folder)
    if absent:
        raise UserError(
            f"{root}: holds no {dataset}; looked in {folder} and found no {', '.join(absent)}; "
            "let torchvision fetch it with --data.download true, or use the source digits, which "
            "needs no files"
        )


def _download(dataset: str, root: Path) -> None:
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # torchvision sets none, and a silent network would hold us
    try:
        import torchvision

        getattr(torchvision.datasets, dataset)(root=str(root), download=True)
    # torchvision and urllib each raise kinds of their own for a net that is not there.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{root}: {dataset} could not be downloaded ({type(error).__name__}: {reason}); fetch "
            f"it on a machine that can and copy its folder {dataset} here, or use the source "
            "digits, which needs no files"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an idx file of bytes: (N, 28, 28) or (N,), as its name says."""
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


def _refuse_unfit(path: Path, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    if len(images) != len(labels) or not len(labels) or labels.max() >= CLASSES:
        raise UserError(
            f"{path}: has {len(labels)} labels up to {labels.max(initial=0)} for {len(images)} "
            f"images; there must be one each, of 0 to {CLASSES - 1}; delete all four files and "
            "download again"
        )
