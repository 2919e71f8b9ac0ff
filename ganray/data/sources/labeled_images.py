"""Labeled images that are kept in memory, and their download by torchvision."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ganray.errors import UserError


class WithoutAttributes:
    """Base of sources whose images have no attributes."""

    labels: NDArray[np.int64]
    attribute_names: tuple[str, ...] = ()
    """None."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def attributes(self) -> NDArray[np.uint8]:
        """(N, 0), as there are none."""
        return np.zeros((len(self), 0), np.uint8)


class NumberedImages(WithoutAttributes):
    """Base of sources whose images are numbered in their order."""

    @property
    def ids(self) -> NDArray[np.int64]:
        """(N,) index of each image in the source's order, from 0."""
        return np.arange(len(self))


class LabeledImages(NumberedImages):
    """Images of one size with a class each, in memory, as torchvision keeps them in files.

    Subclasses read the files and have a class method ``open``. Pickling stores
    only the path; the other process reads the files.
    """

    name: str
    """Name of the source in recipes and manifests."""
    image_shape: tuple[int, int, int]
    """Height, width and channels of every image."""
    class_names: tuple[str, ...]
    """Names of the values of ``labels``."""

    def __init__(
        self, root: Path, parts: Mapping[int, tuple[NDArray[np.uint8], NDArray[Any]]]
    ) -> None:
        """Store images, (n, H, W) or (n, H, W, 3), and labels, (n,), by their split."""
        self.root = root
        self.images = np.concatenate([images for images, _ in parts.values()])
        """uint8 (N, H, W) or (N, H, W, 3)."""
        self.labels = np.concatenate([labels for _, labels in parts.values()]).astype(np.int64)
        """int64 (N,) index into ``class_names``."""
        counts = [len(labels) for _, labels in parts.values()]
        self.split = np.repeat(np.array(list(parts), np.uint8), counts)
        """uint8 (N,) 0 train, then 2 test."""

    @classmethod
    def open(cls, root: Path, *, download: bool = False) -> Self:
        """Open the files in a folder; let torchvision download missing ones if that is wanted."""
        raise NotImplementedError

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle the path, because reading the files is faster than a pipe."""
        return type(self).open, (self.root,)

    def read(self, index: int) -> Image.Image:
        """Return one image: gray or RGB, of the size in ``image_shape``."""
        return Image.fromarray(self.images[index])

    def fingerprint(self) -> str:
        """Return the SHA-256 in hex of all pixels and labels."""
        digest = hashlib.sha256(self.images.data)
        for array in (self.labels, self.split):
            digest.update(array.data)
        return digest.hexdigest()


def download(dataset: str, root: Path, fetch: Callable[[], object], advice: str) -> None:
    """Run a download of torchvision's.

    Args:
        dataset: Name of the images for the message.
        root: Folder of the files.
        fetch: Imports torchvision, which takes seconds, and downloads.
        advice: What to do without a network, for the message.

    Raises:
        UserError: The download failed.
    """
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # torchvision sets none, and would hang on a silent network
    try:
        fetch()
    # torchvision and urllib each raise exceptions of their own without a network.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{root}: {dataset} could not be downloaded ({type(error).__name__}: {reason});"
            f" {advice}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
