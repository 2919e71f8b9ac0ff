"""The HDF5 file that the source text makes of CelebA, with one dataset per image.

The group ``img_align_celeba`` contains ``0.jpg``, ``1.jpg`` and so on. Despite their names these
are not JPEGs but pixels, uint8 (218, 178, 3), which the text stores with gzip 9. The numbers may
begin at 1 and have gaps. The length of the group is never read: in HDF5's old format that takes
16 ms at CelebA's size.

A file may come from anywhere, so anything that would make HDF5 read another file is rejected.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import h5py
import h5py.h5l
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ganray.data.sources.hdf5_file import (
    is_elsewhere,
    is_hdf5,
    one_line,
    open_file,
    sample_digest,
)
from ganray.data.sources.labeled_images import WithoutAttributes
from ganray.data.sources.listing import split_by_name
from ganray.errors import UserError

GROUP = "img_align_celeba"
AS_THE_TEXT = f"give the file that the text's notebook makes, with a group {GROUP}"

_Handle = tuple[BinaryIO, h5py.File, h5py.Group]


@dataclass(eq=False, repr=False)
class SourceTextHDF5(WithoutAttributes):
    """The images of such a file, raw or compressed, for conversion to shards.

    Created by ``SourceTextHDF5.open``. It can be pickled to other processes: each process opens the
    file itself. The file lacks CelebA's attributes and partition, so a tenth of the images is held
    out as ``test``, by a hash of the name.
    """

    path: Path
    names: list[str]
    """Name of the dataset of each image, such as ``0.jpg``, by ascending number."""
    ids: NDArray[np.int64]
    """(N,) the numbers in the names."""
    labels: NDArray[np.int64]
    """(N,) -1, as there are no classes."""
    image_shape: tuple[int, int, int]
    """Shape of the first image, usually (218, 178, 3)."""
    split: NDArray[np.uint8]
    """(N,) 0 train, 2 test."""
    name: str = "source-text"
    """Name of the source in recipes and manifests."""
    class_names: tuple[str, ...] = ()
    """None."""
    _handle: tuple[int, _Handle] | None = None

    @classmethod
    def open(cls, path: Path) -> Self:
        """List the images of a file and open the first.

        Raises:
            UserError: There is no such file, or it is damaged or has another layout.
        """
        path = Path(path).expanduser().absolute()
        with open_group(path) as group:
            names, ids = list_images(group, path)
            shape = open_image(group, names[0], path).shape
        split = split_by_name(f"{number}.jpg" for number in ids)
        return cls(path, names, ids, np.full(len(ids), -1), shape, split)

    def read(self, index: int) -> Image.Image:
        """Return one image: RGB, of ``image_shape``.

        Raises:
            ValueError: It is damaged, or of another shape than the first.
        """
        name = self.names[index]
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = os.getpid(), _open(self.path)
        group = self._handle[1][-1]
        dataset = open_image(group, name, self.path, self.image_shape)
        pixels = np.empty(self.image_shape, np.uint8)
        try:
            dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, pixels)
        except Exception as error:  # filters raise exceptions of several kinds
            raise UserError(
                f"{self.path}: {name} cannot be read ({one_line(error)}); make or fetch it again"
            ) from error
        return Image.fromarray(pixels)

    def fingerprint(self) -> str:
        """Return a SHA-256 in hex of a sample of the file, see `sample_digest`."""
        return sample_digest(self.path)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the handle, because HDF5 objects cannot be pickled."""
        return self.__dict__ | {"_handle": None}


def is_source_text(path: Path) -> bool:
    """Return whether a path is an HDF5 file with the text's group of images."""
    path = path.expanduser()
    if not (path.is_file() and is_hdf5(path)):
        return False
    try:
        with open_group(path):
            return True
    except UserError:
        return False


@contextlib.contextmanager
def open_group(path: Path) -> Iterator[h5py.Group]:
    """Open the group of images and close the file at the end.

    Raises:
        UserError: It is no HDF5 file, contains no such group, or is damaged.
    """
    raw, file, group = _open(path)
    with raw, file:
        yield group


def _open(path: Path) -> _Handle:
    raw, file = open_file(path, AS_THE_TEXT)
    with contextlib.ExitStack() as stack:
        stack.enter_context(raw)
        stack.enter_context(file)
        group = None
        with contextlib.suppress(Exception):  # HDF5 reports damage as KeyError and others
            if isinstance(file.get(GROUP, getlink=True), h5py.HardLink):
                group = file[GROUP]
        if not isinstance(group, h5py.Group):
            raise UserError(
                f"{path}: contains no group {GROUP}, or a damaged one, or a link; {AS_THE_TEXT}"
            )
        stack.pop_all()
    return raw, file, group


def list_images(group: h5py.Group, path: Path) -> tuple[list[str], NDArray[np.int64]]:
    """Return the names of the datasets, by ascending number, and the numbers, int64 (N,).

    Raises:
        UserError: A name is not a number and ``.jpg``, is a link, or a number occurs twice.
    """
    names: dict[int, str] = {}
    problems: list[str] = []

    def visit(raw: bytes, info: Any) -> bool | None:
        """Record one name; return True to end the iteration."""
        number = int(raw[:-4]) if re.fullmatch(rb"\d{1,18}\.jpg", raw) else -1
        if number < 0:
            problems.append(f"{raw!r} in {GROUP} is not a number followed by .jpg")
        elif info.type != h5py.h5l.TYPE_HARD:
            problems.append(f"{raw.decode()} is a link, which could lead to any file")
        elif number in names:
            problems.append(f"{raw.decode()} and {names[number]} are the same number")
        else:
            names[number] = raw.decode()
        return True if problems else None

    try:
        group.id.links.iterate(visit, info=True)
    except Exception as error:  # HDF5 reports damage as RuntimeError and others
        problems.append(f"{GROUP} cannot be listed ({one_line(error)})")
    if not names and not problems:
        problems.append(f"{GROUP} is empty")
    if problems:
        raise UserError(f"{path}: {problems[0]}; {AS_THE_TEXT}")
    numbers = sorted(names)
    return [names[number] for number in numbers], np.array(numbers, np.int64)


def open_image(
    group: h5py.Group, name: str, path: Path, shape: tuple[int, ...] | None = None
) -> h5py.h5d.DatasetID:
    """Open the dataset of one image; check that it is an image stored in this file.

    Args:
        group: Group of images.
        name: Name of the dataset.
        path: Path of the file, for messages.
        shape: Required shape; None: any (H, W, 3).

    Raises:
        UserError: It is damaged, no such image, or stored in another file.
    """
    try:
        dataset = h5py.h5d.open(group.id, name.encode())
        actual, dtype, is_external = dataset.shape, dataset.dtype, is_elsewhere(dataset)
        is_written = dataset.get_storage_size() > 0
    except Exception as error:  # HDF5 reports damage, or a group of that name, as several kinds
        raise UserError(
            f"{path}: {name} cannot be opened as a dataset ({one_line(error)}); make or fetch the "
            "file again"
        ) from error
    required = shape or (*actual[:2], 3)
    if dtype != np.uint8 or actual != required or len(actual) != 3 or 0 in actual:
        raise UserError(
            f"{path}: {name} is {dtype} {actual}, but every image must be uint8 "
            f"{shape or '(218, 178, 3)'} as the first; {AS_THE_TEXT}"
        )
    if not (is_written or is_external):
        raise UserError(
            f"{path}: {name} was created and never written, and would be black; make the file again"
        )
    if is_external:
        raise UserError(
            f"{path}: the pixels of {name} are in another file, which is not read, because it could"
            f" be any file of this machine; {AS_THE_TEXT}"
        )
    return dataset
