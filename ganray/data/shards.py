"""The format of image sets on disk: what a folder of shards holds, and how one shard is checked.

``convert`` writes it, ``reader`` reads it; both keep to what this file says.

Format ``ganray-shards``, version 1. A folder holds ``manifest.json``, ``shard-00000.h5``,
``shard-00001.h5`` and so on, 128-256 MB each. The manifest is written last: a folder without it is
unfinished. A shard of n images has these datasets, all contiguous, without chunks or filters:

    images      (n, H, W, C) uint8   from a byte offset that is a multiple of 4096
    attributes  (n, A) uint8         0 or 1, named by the manifest's ``label_names``
    ids         (n,) int64           number of the original file
    split       (n,) uint8           0 train, 1 valid, 2 test
    check       (ceil(n / 64),) uint32   zlib.crc32 of each 64 images

and these attributes: ``format``, ``version``, ``first_row`` (its place in the set) and ``recipe``
(JSON: what was done to which source). In every shard but the last ``images`` is a whole number of
4096-byte pages, so that all of them can be mapped side by side as one array: a batch is then one
gather, without HDF5, whose calls and fancy indexing are 20 to 1000 times slower. HDF5 stays what it
is good at: a container that any tool opens.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

FORMAT, VERSION = "ganray-shards", 1
PAGE = 4096
BLOCK = 64  # images per check value
SPLITS = ("train", "valid", "test")
MANIFEST = "manifest.json"
REPAIR = "delete it and prepare again into this folder: the other shards are kept"

Shape = tuple[int, int, int]


class Source(Protocol):
    """What ``write_shards`` needs of an image set; it is pickled to the conversion workers."""

    name: str
    image_shape: Shape
    ids: NDArray[np.int64]
    attributes: NDArray[np.uint8]
    label_names: tuple[str, ...]
    split: NDArray[np.uint8]

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def read(self, index: int) -> Image.Image:
        """Return one image: 8-bit RGB or grey, of the size that ``image_shape`` says."""
        ...

    def fingerprint(self) -> str:
        """Return a text that changes when the data change."""
        ...


@dataclass(frozen=True)
class Recipe:
    """What the pixels of a set depend on; equal recipes give equal shards."""

    source: str
    """Name of the source, such as ``celeba``."""
    fingerprint: str
    """SHA-256 that tells the source's data from any other's."""
    size: int
    """Height and width in pixels after resizing and cropping; 0 keeps the original size."""
    images: int
    """How many images, from the first of the split on."""
    split: str
    """``all``, ``train``, ``valid`` or ``test``."""

    def json(self) -> str:
        """Return it as text, as every shard carries it."""
        return json.dumps(asdict(self), sort_keys=True)

    def digest(self) -> str:
        """Return 16 hex digits that stand for this recipe."""
        return _short_sha256(self.json())

    def __str__(self) -> str:
        """Return it in words, for messages."""
        size = f"{self.size} px" if self.size else "original size"
        return (
            f"{self.source}, {size}, {self.images} images of split {self.split} [{self.digest()}]"
        )


@dataclass(frozen=True)
class Place:
    """A shard's place in the set, and what it must hold there; the same for writer and reader."""

    path: Path
    first: int
    rows: int
    image_shape: Shape
    num_labels: int
    recipe: Recipe

    @property
    def num_bytes(self) -> int:
        """Size of ``images``."""
        return self.rows * math.prod(self.image_shape)

    @property
    def datasets(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape by name."""
        return {
            "images": ("uint8", (self.rows, *self.image_shape)),
            "attributes": ("uint8", (self.rows, self.num_labels)),
            "ids": ("int64", (self.rows,)),
            "split": ("uint8", (self.rows,)),
            "check": ("uint32", (len(self.blocks),)),
        }

    @property
    def blocks(self) -> list[slice]:
        """The rows that each check value covers."""
        return [slice(b, min(b + BLOCK, self.rows)) for b in range(0, self.rows, BLOCK)]


@dataclass(frozen=True)
class Shard:
    """One file of a set."""

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a finished folder holds."""

    recipe: Recipe
    image_shape: Shape
    num_images: int
    label_names: tuple[str, ...]
    shards: tuple[Shard, ...]
    created_by: str
    """The command line that made the set."""

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check ``manifest.json``.

        Raises:
            ValueError: It is missing, damaged, or of another version.
        """
        path = folder / MANIFEST
        if not path.exists():
            raise ValueError(f"{folder}: no {MANIFEST}, so no finished shards; prepare it again")
        try:
            text = json.loads(path.read_bytes())
            kind = text.pop("format"), text.pop("version")
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: damaged ({error!r}); {REPAIR}") from error
        if kind != (FORMAT, VERSION):
            raise ValueError(
                f"{path}: is {kind[0]} version {kind[1]}, but this ganray reads {FORMAT} version "
                f"{VERSION}; use the ganray that wrote it, or prepare again into another folder"
            )
        try:
            text["recipe"] = Recipe(**text["recipe"])
            text["image_shape"] = tuple(text["image_shape"])
            text["label_names"] = tuple(text["label_names"])
            text["shards"] = tuple(Shard(**shard) for shard in text["shards"])
            manifest = cls(**text)
            manifest._check()
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: damaged ({error!r}); {REPAIR}") from error
        return manifest

    def _check(self) -> None:
        rules = {
            "image_shape must be three positive numbers": len(self.image_shape) == 3
            and all(side > 0 for side in self.image_shape),
            # A name such as ../x.h5 would lead out of the folder.
            "shards must be named shard-00000.h5 and so on": all(
                re.fullmatch(r"shard-\d{5,}\.h5", shard.name) for shard in self.shards
            ),
            "every shard must have rows": all(shard.rows > 0 for shard in self.shards),
            "num_images must be the sum of the shards' rows": self.num_images
            == sum(shard.rows for shard in self.shards)
            > 0,
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(rule)

    def write(self, folder: Path) -> None:
        """Write ``manifest.json``, whole or not at all."""
        text = {"format": FORMAT, "version": VERSION} | asdict(self)
        part = folder / f"{MANIFEST}.part"
        part.write_text(json.dumps(text, indent=1) + "\n")
        publish(part, folder / MANIFEST)

    def digest(self) -> str:
        """Return 16 hex digits that stand for the content, whatever command made it."""
        return _short_sha256(json.dumps(asdict(self) | {"created_by": ""}, sort_keys=True))

    def places(self, folder: Path) -> list[Place]:
        """Return where each shard is and what it must hold."""
        places, first = [], 0
        for shard in self.shards:
            path, labels = folder / shard.name, len(self.label_names)
            places.append(Place(path, first, shard.rows, self.image_shape, labels, self.recipe))
            first += shard.rows
        return places


def publish(part: Path, path: Path) -> None:
    """Give a finished file its name; after a crash that name stands for a whole file or none."""
    with part.open("r+b") as file:
        os.fsync(file.fileno())
    part.replace(path)


@dataclass(frozen=True)
class Contents:
    """What the header of a shard tells, and its small datasets."""

    offset: int
    attributes: NDArray[np.uint8]
    ids: NDArray[np.int64]
    split: NDArray[np.uint8]
    check: NDArray[np.uint32]


def open_shard(place: Place, file_bytes: int | None = None) -> Contents:
    """Check that the shard is what its place asks for; no HDF5 object outlives this call.

    Args:
        place: Where it is and what it must hold.
        file_bytes: The size its manifest gives; None where there is no manifest yet.

    Raises:
        ValueError: It is missing, damaged, or stored in a way that cannot be mapped.
    """
    if not place.path.exists():
        raise ValueError(f"{place.path}: missing; prepare again into this folder: the others stay")
    found = place.path.stat().st_size
    if file_bytes not in (found, None):
        raise ValueError(
            f"{place.path}: has {found} bytes, but the manifest says {file_bytes}; {REPAIR}"
        )
    # Through a file of our own: HDF5 would lock it, which network file systems may refuse, and
    # would not open it at all beside a handle of this process that locks in another way.
    with place.path.open("rb") as raw:
        try:
            with h5py.File(raw, "r") as file:
                problem = _problem(file, place)
                if problem is None:
                    small: dict[str, Any] = {
                        name: get_dataset(file, name)[...]
                        for name in place.datasets
                        if name != "images"
                    }
                    return Contents(get_dataset(file, "images").id.get_offset(), **small)
        except Exception as error:  # HDF5 reports damage as OSError, KeyError and others
            problem = f"cannot be read ({' '.join(str(error).split())})"
    raise ValueError(f"{place.path}: {problem}; {REPAIR}")


def _problem(file: h5py.File, place: Place) -> str | None:
    """Say what is wrong with a shard, if anything is."""
    attrs = file.attrs
    kind = attrs.get("format"), attrs.get("version")
    if kind != (FORMAT, VERSION):
        return f"is {kind[0]} version {kind[1]}, not {FORMAT} version {VERSION}"
    if attrs.get("recipe") != place.recipe.json():
        return "was made by another recipe than the manifest's"
    if attrs.get("first_row") != place.first:
        return f"begins at image {attrs.get('first_row')} of the set, not at {place.first}"
    for name, (dtype, shape) in place.datasets.items():
        # A link could lead to any file of this machine.
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            return f"{name!r} is missing, or a link to somewhere else"
        dataset = get_dataset(file, name)
        layout = dataset.id.get_create_plist()
        if (
            layout.get_layout() != h5py.h5d.CONTIGUOUS
            or layout.get_external_count()
            or layout.get_nfilters()
        ):
            return f"{name!r} has chunks, filters or external storage; it must be contiguous"
        if (dataset.dtype, dataset.shape) != (np.dtype(dtype), shape):
            return f"{name!r} is {dataset.dtype} {dataset.shape}, not {dtype} {shape}"
    offset, size = get_dataset(file, "images").id.get_offset(), place.path.stat().st_size
    if offset is None or offset % PAGE or offset + place.num_bytes > size:
        return f"'images' at byte {offset} is not at a page of {PAGE} bytes or reaches past the end"
    return None


def get_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Return ``file[name]``, which may be a group in a file that is not ours."""
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise TypeError(f"{name!r} is not a dataset")
    return dataset


def damaged_rows(place: Place) -> list[slice]:
    """Return the blocks of rows whose pixels do not match their check value."""
    contents = open_shard(place)
    shape = place.rows, *place.image_shape
    images = np.memmap(place.path, np.uint8, "r", contents.offset, shape)
    return [
        rows
        for rows, check in zip(place.blocks, contents.check, strict=True)
        if zlib.crc32(images[rows].data) != check
    ]


def describe(path: Path, place: Place) -> Shard:
    """Return what the manifest says of a shard; ``path`` is where it stands for now."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Shard(place.path.name, place.rows, path.stat().st_size, digest)


def _short_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
