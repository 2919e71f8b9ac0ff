"""An HDF5 file with all images in one dataset, as BigGAN's and StudioGAN's tools write it."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ganray.data.sources.hdf5_file import is_elsewhere, one_line, open_file, sample_digest
from ganray.data.sources.labeled_images import NumberedImages
from ganray.data.sources.listing import printable, split_by_name
from ganray.errors import UserError

NAMES, LABEL_NAMES = ("imgs", "images", "x", "data"), ("labels", "label", "y")
_ADVICE = "give an HDF5 file with a dataset of images, (N, H, W, 3) or (N, 3, H, W)"
_CACHE_BYTES = 2**28
"""Cache of chunks per process: one chunk of BigGAN's files holds 500 images."""
_NUM_SAMPLES = 64
_MAX_CLASSES = 100_000

Range = tuple[float, float]


@dataclass(eq=False, repr=False)
class HDF5Array(NumberedImages):
    """Images (N, H, W, C), (N, C, H, W) or (N, H, W), C being 1 or 3, of integers or floats.

    Created by ``HDF5Array.open``. It can be pickled to other processes: each process opens the file
    itself. A tenth of the images is held out as ``test``, by a hash of the index.
    """

    path: Path
    dataset: str
    """Path of the dataset in the file."""
    values: Range
    """Values of black and white."""
    is_channels_first: bool
    labels: NDArray[np.int64]
    """(N,) index into ``class_names``; -1 if there are none."""
    class_names: tuple[str, ...]
    """The numbers in the dataset of labels, from 0 on."""
    image_shape: tuple[int, int, int]
    split: NDArray[np.uint8]
    """(N,) 0 train, 2 test."""
    notes: tuple[str, ...]
    """Detected range, layout and labels, for the plan."""
    name: str = "hdf5"
    """Name of the source in recipes and manifests."""
    _handle: tuple[int, BinaryIO, h5py.File] | None = None

    @classmethod
    def open(
        cls, path: Path, dataset: str | None = None, labels: Literal["auto", "none"] = "auto"
    ) -> HDF5Array:
        """Find the dataset of images, and that of labels beside it.

        Args:
            path: The file.
            dataset: Path of the dataset in the file; None: ``imgs`` or similar, or the only one.
            labels: ``none``: labels are ignored.

        Raises:
            UserError: There is none, or several, or it cannot be used as images.
        """
        path = Path(path).expanduser().absolute()
        with _opened(path) as file:
            images = _find_images(file, path, dataset)
            where = f"{path}: {images.name}"
            shape, is_channels_first = _layout(images, where)
            _check_written(images, where)
            values = _detect_range(images, where)
            given = _read_labels(images, where) if labels != "none" else None
            count = len(images)
            note = f"{images.name}: {images.dtype} in [{values[0]:g}, {values[1]:g}], as detected"
            names = () if given is None else tuple(map(str, range(int(given.max()) + 1)))
            return cls(
                path,
                str(images.name),
                values,
                is_channels_first,
                np.full(count, -1) if given is None else given,
                names,
                shape,
                split_by_name(range(count)),
                (note, f"classes: {len(names)} of the labels" if names else "no classes"),
            )

    def read(self, index: int) -> Image.Image:
        """Return one image, gray or RGB.

        Raises:
            UserError: It is damaged, or its values are outside the range that was detected.
        """
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = os.getpid(), *open_file(self.path, _ADVICE, _CACHE_BYTES)
        where = f"{self.path}: image {index} of {self.dataset}"
        try:
            pixels = np.asarray(self._handle[-1][self.dataset][index])  # pyright: ignore
        except Exception as error:  # filters raise exceptions of several kinds
            raise UserError(f"{where} cannot be read ({one_line(error)})") from error
        low, high = self.values
        if pixels.dtype != np.uint8:
            scaled = (pixels.astype(np.float64) - low) * (255 / (high - low))
            if not (scaled.min() > -0.5 and scaled.max() < 255.5):  # also NaN
                raise UserError(f"{where} has values outside [{low:g}, {high:g}]")
            pixels = np.rint(scaled).astype(np.uint8)
        if self.is_channels_first:
            pixels = np.moveaxis(pixels, 0, -1)
        return Image.fromarray(np.ascontiguousarray(pixels.reshape(self.image_shape).squeeze()))

    def fingerprint(self) -> str:
        """Return a SHA-256 in hex of a sample of the file, the dataset's name and the labels."""
        digest = hashlib.sha256(f"{sample_digest(self.path)} {self.dataset}".encode())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the handle, because HDF5 objects cannot be pickled."""
        return self.__dict__ | {"_handle": None}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    raw, file = open_file(path, _ADVICE, _CACHE_BYTES)
    with raw, file:
        yield file


def _find_images(file: h5py.File, path: Path, name: str | None) -> h5py.Dataset:
    if file.get("img_align_celeba", getlink=True) is not None:
        raise UserError(f"{path}: is the source text's file; use --data.source source-text")
    found: dict[str, h5py.Dataset] = {}

    def visit(inside: str, item: object) -> bool | None:  # hard links only
        if isinstance(item, h5py.Dataset):
            found[inside] = item
        return True if len(found) > 1000 else None

    try:
        file.visititems(visit)
    except Exception as error:  # HDF5 reports damage as several kinds
        raise UserError(f"{path}: cannot be listed ({one_line(error)}); {_ADVICE}") from error
    images = [inside for inside, item in found.items() if len(item.shape or ()) in (3, 4)]
    named = [inside for inside in images if inside.rpartition("/")[2].lower() in NAMES]
    chosen = [name.strip("/")] if name is not None else named if len(named) == 1 else images
    if len(chosen) != 1 or chosen[0] not in found:
        shown = [f"{printable(n)} {item.dtype} {item.shape}" for n, item in found.items()][:8]
        raise UserError(
            f"{path}: {'no' if name or not images else 'more than one'} dataset"
            f" {printable(name) if name else 'of images'}; it contains"
            f" {', '.join(shown) or 'none'}; name one with --data.dataset"
        )
    dataset = found[chosen[0]]
    if is_elsewhere(dataset.id):
        raise UserError(
            f"{path}: {dataset.name} is in another file, which is not read, because it could be any"
            f" file of this machine; {_ADVICE}"
        )
    return dataset


def _layout(images: h5py.Dataset, where: str) -> tuple[tuple[int, int, int], bool]:
    """Return height, width and channels, and whether the channels are the second axis."""
    shape = images.shape
    if images.dtype.kind in "uif" and 0 not in shape:
        if len(shape) == 3:
            return (*shape[1:], 1), False
        if len(shape) == 4 and shape[3] in (1, 3):
            return (shape[1], shape[2], shape[3]), False
        if len(shape) == 4 and shape[1] in (1, 3):
            return (shape[2], shape[3], shape[1]), True
    raise UserError(
        f"{where} is {images.dtype} {shape}, not numbers of shape (N, H, W), (N, H, W, 1 or 3) or"
        f" (N, 1 or 3, H, W); name another one with --data.dataset"
    )


def _check_written(images: h5py.Dataset, where: str) -> None:
    """Raise UserError if images were created and never written: HDF5 reads them as zeros."""
    total = written = 1
    if images.chunks:
        pairs = zip(images.shape, images.chunks, strict=True)
        total = math.prod(math.ceil(size / chunk) for size, chunk in pairs)
        written = images.id.get_num_chunks()
    elif not images.id.get_storage_size():
        written = 0
    if written < total:
        raise UserError(
            f"{where}: only {written / total:.0%} of it was ever written; make the file again"
        )


def _detect_range(images: h5py.Dataset, where: str) -> Range:
    """Return the values of black and white: of float [0, 1], [-1, 1] or [0, 255]."""
    if images.dtype == np.uint8:
        return 0.0, 255.0
    rows = range(0, len(images), max(1, len(images) // _NUM_SAMPLES))
    try:
        sample = np.stack([images[row] for row in rows])
    except Exception as error:  # filters raise exceptions of several kinds
        raise UserError(f"{where}: cannot be read ({one_line(error)}); {_ADVICE}") from error
    low, high = float(sample.min()), float(sample.max())
    if low >= 0 and high <= 1 and images.dtype.kind == "f":
        return 0.0, 1.0
    if low >= -1 and high <= 1 and images.dtype.kind == "f":
        return -1.0, 1.0
    if low >= 0 and high <= 255:
        return 0.0, 255.0
    raise UserError(
        f"{where} has values from {low:g} to {high:g}; images have them in [0, 1], [-1, 1] or"
        " [0, 255]"
    )


def _read_labels(images: h5py.Dataset, where: str) -> NDArray[np.int64] | None:
    """Return the labels beside the images, (N,); None if there are none."""
    group = images.parent
    assert isinstance(group, h5py.Group)
    for name in LABEL_NAMES:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            continue
        labels = group[name]
        if isinstance(labels, h5py.Dataset) and not is_elsewhere(labels.id):
            values = np.asarray(labels)
            if values.size == len(images) and values.dtype.kind in "ui":
                values = values.reshape(-1).astype(np.int64)
                if values.min() >= 0 and values.max() < _MAX_CLASSES:
                    return values
        raise UserError(
            f"{where}: the dataset {name} beside it must hold one whole number from 0 on for each"
            " image; use --data.labels none to ignore it"
        )
    return None
