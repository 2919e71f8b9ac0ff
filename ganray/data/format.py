"""The format of image sets on disk: what a folder of shards holds.

``convert`` writes it, ``shard_file`` checks it, ``reader`` reads it; all keep to what is said here.

Format ``ganray-shards``, version 2. A folder holds ``manifest.json``, ``shard-00000.h5``,
``shard-00001.h5`` and so on, 128-256 MB each. The manifest is written last: a folder without it is
unfinished. A shard of n images has these datasets, all contiguous, without chunks or filters:

    images      (n, H, W, C) uint8   pixels, from a byte offset that is a multiple of 4096 (below)
    labels      (n,) int64           class of each image, named by ``class_names``; -1 for none
    attributes  (n, A) uint8         0 or 1, named by ``attribute_names``
    ids         (n,) int64           number of the original file
    split       (n,) uint8           0 train, 1 valid, 2 test
    check       (ceil(n / 64),) uint64   XXH3 of the pictures of each 64 images

and these attributes: ``format``, ``version``, ``first_row`` (its place in the set) and ``recipe``
(JSON: what was done to which source). A set of encoding ``jpeg`` holds, instead of ``images``,

    jpeg        (bytes,) uint8       the original files, one after the other
    offsets     (n + 1,) int64       image i is jpeg[offsets[i] : offsets[i + 1]]

which is 16 times smaller and 15 times slower to read. Never variable-length data: HDF5 makes three
reads of each such item.

In every raw shard but the last ``images`` is a whole number of 4096-byte pages, so that all of them
can be mapped side by side as one array: a batch is then one gather, without HDF5, whose calls and
fancy indexing are 20 to 1000 times slower. HDF5 stays what it is good at: a container that any tool
opens. The offset is congruent modulo 2 MiB to the place of the shard's first byte in that array, so
that the kernel can map huge pages: a seventh faster. (Shards of less than 2 MiB, and sets written
by earlier versions, begin at any page.)
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image

from ganray.errors import UserError

FORMAT, VERSION = "ganray-shards", 2
PAGE, HUGE_PAGE = 4096, 2 * 2**20
BLOCK = 64  # images per check value
SPLITS = ("train", "valid", "test")
MANIFEST = "manifest.json"
REPAIR = "delete it and prepare again into this folder: the other shards are kept"

Shape = tuple[int, int, int]
Encoding = Literal["raw", "jpeg"]
PIXELS: dict[str, str] = {"raw": "images", "jpeg": "jpeg"}
"""The dataset that holds the pictures, by encoding."""


class ImageSource(Protocol):
    """What ``write_shards`` needs of an image set; it is pickled to the conversion workers."""

    @property
    def name(self) -> str:
        """What recipes and manifests call this source."""
        ...

    @property
    def image_shape(self) -> Shape:
        """Height, width and channels of every image; (0, 0, C) where they differ in size."""
        ...

    @property
    def ids(self) -> NDArray[np.int64]:
        """(N,) number of the original, whatever that counts from."""
        ...

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) class of each image; -1 for none."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; empty where there are none."""
        ...

    @property
    def attributes(self) -> NDArray[np.uint8]:
        """(N, A) 0 or 1."""
        ...

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """Names of the A attributes."""
        ...

    @property
    def split(self) -> NDArray[np.uint8]:
        """(N,) 0 train, 1 valid, 2 test."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def read(self, index: int) -> Image.Image:
        """Return one image: 8-bit RGB or grey, of the size that ``image_shape`` says."""
        ...

    def fingerprint(self) -> str:
        """Return a text that changes when the data change."""
        ...


class JpegSource(ImageSource, Protocol):
    """A source of JPEG files, which can be stored unchanged."""

    def read_bytes(self, index: int) -> bytes:
        """Return the file of one image."""
        ...

    def num_bytes(self) -> NDArray[np.int64]:
        """Return the size of every file, (N,), without reading them."""
        ...


@dataclass(frozen=True)
class ConversionSpec:
    """Everything that the pixels of a set depend on; equal specs give equal shards."""

    source: str
    """Name of the source, such as ``celeba``."""
    fingerprint: str
    """SHA-256 that tells the source's data from any other's."""
    size: int
    """Height and width in pixels after resizing and cropping; 0 keeps the original size."""
    images: int
    """Number of images, from the first of the split on."""
    split: str
    """``all``, ``train``, ``valid`` or ``test``."""
    encoding: Encoding = "raw"
    """``raw`` pixels, or the source's own ``jpeg`` files."""

    def json(self) -> str:
        """Return the spec as JSON text, which every shard contains."""
        return json.dumps(asdict(self), sort_keys=True)

    def digest(self) -> str:
        """Return the digest of the spec, 16 hex digits."""
        return _short_sha256(self.json())

    def __str__(self) -> str:
        """Return a description for messages."""
        size = f"{self.size} px" if self.size else "original size"
        return (
            f"{self.source}, {self.encoding}, {size}, {self.images} images of split {self.split}"
            f" [{self.digest()}]"
        )


@dataclass(frozen=True)
class ShardSpec:
    """Location and required contents of a shard, for both writer and reader."""

    path: Path
    first: int
    rows: int
    num_bytes: int
    """Size of the images, the dataset ``images`` or ``jpeg``."""
    image_shape: Shape
    num_attributes: int
    recipe: ConversionSpec

    @property
    def pixels(self) -> str:
        """Name of the dataset with the images."""
        return PIXELS[self.recipe.encoding]

    @property
    def datasets(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape by name."""
        pictures: dict[str, tuple[str, tuple[int, ...]]] = {
            "images": ("uint8", (self.rows, *self.image_shape))
        }
        if self.recipe.encoding == "jpeg":
            pictures = {
                "jpeg": ("uint8", (self.num_bytes,)),
                "offsets": ("int64", (self.rows + 1,)),
            }
        return pictures | {
            "labels": ("int64", (self.rows,)),
            "attributes": ("uint8", (self.rows, self.num_attributes)),
            "ids": ("int64", (self.rows,)),
            "split": ("uint8", (self.rows,)),
            "check": ("uint64", (len(self.blocks),)),
        }

    @cached_property
    def blocks(self) -> list[slice]:
        """Rows of each block, one per check value."""
        return [slice(b, min(b + BLOCK, self.rows)) for b in range(0, self.rows, BLOCK)]


@dataclass(frozen=True)
class Shard:
    """One file of a set."""

    name: str
    rows: int
    num_bytes: int
    """Size of its images."""
    bytes: int
    """Size of the file."""
    sha256: str
    """SHA-256 of the file in hex."""


@dataclass(frozen=True)
class Manifest:
    """Contents of a finished folder."""

    recipe: ConversionSpec
    image_shape: Shape
    num_images: int
    class_names: tuple[str, ...]
    """Names of the classes; empty if unlabelled."""
    attribute_names: tuple[str, ...]
    shards: tuple[Shard, ...]
    created_by: str
    """Command line of the conversion."""

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check ``manifest.json``.

        Raises:
            ValueError: It is missing, damaged, or of another version.
        """
        path = folder / MANIFEST
        if not path.exists():
            raise UserError(f"{folder}: no {MANIFEST}, so no finished shards; prepare it again")
        try:
            text = json.loads(path.read_bytes())
            kind = text.pop("format"), text.pop("version")
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{path}: damaged ({error!r}); {REPAIR}") from error
        if kind != (FORMAT, VERSION):
            raise UserError(
                f"{path}: is {kind[0]} version {kind[1]}, but this ganray reads {FORMAT} version "
                f"{VERSION}; use the ganray that wrote it, or prepare again into another folder"
            )
        try:
            text["recipe"] = ConversionSpec(**text["recipe"])
            text["image_shape"] = tuple(text["image_shape"])
            text["class_names"] = tuple(text["class_names"])
            text["attribute_names"] = tuple(text["attribute_names"])
            text["shards"] = tuple(Shard(**shard) for shard in text["shards"])
            manifest = cls(**text)
            manifest._check()
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: damaged ({error!r}); {REPAIR}") from error
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
            "encoding must be raw or jpeg": self.recipe.encoding in get_args(Encoding),
            "a raw shard's num_bytes must be its rows times the size of an image": all(
                shard.num_bytes == shard.rows * math.prod(self.image_shape)
                for shard in self.shards
                if self.recipe.encoding == "raw"
            ),
            "num_images must be the sum of the shards' rows": self.num_images
            == sum(shard.rows for shard in self.shards)
            > 0,
        }
        for rule, holds in rules.items():
            if not holds:
                raise UserError(rule)

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` atomically."""
        text = {"format": FORMAT, "version": VERSION} | asdict(self)
        part = folder / f"{MANIFEST}.part"
        part.write_text(json.dumps(text, indent=1) + "\n")
        publish(part, folder / MANIFEST)

    def digest(self) -> str:
        """Return the digest of the contents, 16 hex digits, without the command line."""
        return _short_sha256(json.dumps(asdict(self) | {"created_by": ""}, sort_keys=True))

    def places(self, folder: Path) -> list[ShardSpec]:
        """Return the location and required contents of each shard."""
        places, first = [], 0
        num_attributes = len(self.attribute_names)
        for shard in self.shards:
            size = shard.rows, shard.num_bytes
            path, shape = folder / shard.name, self.image_shape
            places.append(ShardSpec(path, first, *size, shape, num_attributes, self.recipe))
            first += shard.rows
        return places


@dataclass(frozen=True)
class Annotations:
    """Labels and other annotations of n images."""

    labels: NDArray[np.int64]
    """(n,) class, named by the manifest's ``class_names``; -1 for none."""
    attributes: NDArray[np.uint8]
    """(n, A) 0 or 1, named by the manifest's ``attribute_names``."""
    ids: NDArray[np.int64]
    """(n,) number of the original file."""
    split: NDArray[np.uint8]
    """(n,) 0 train, 1 valid, 2 test."""


def publish(part: Path, path: Path) -> None:
    """Rename a finished file atomically, so that its final name never denotes a partial file."""
    with part.open("r+b") as file:
        os.fsync(file.fileno())
    part.replace(path)


def _short_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# Single shards: opening, validation, damage.


@dataclass(frozen=True)
class ShardHeader:
    """What the header of a shard tells, and its small datasets."""

    start: int
    """Byte of the file at which the pictures begin."""
    offsets: NDArray[np.int64]
    """(n + 1,) where each picture begins and ends, in bytes from there."""
    labels: NDArray[np.int64]
    attributes: NDArray[np.uint8]
    ids: NDArray[np.int64]
    split: NDArray[np.uint8]
    check: NDArray[np.uint64]


def open_shard(place: ShardSpec, file_bytes: int | None = None) -> ShardHeader:
    """Read all of a shard but its pictures, and check that it is what its place asks for.

    Args:
        place: Where it is and what it must hold.
        file_bytes: The size its manifest gives; None where there is no manifest yet.

    Raises:
        ValueError: It is missing, damaged, or stored in a way that cannot be mapped.
    """
    if not place.path.exists():
        raise UserError(f"{place.path}: missing; prepare again into this folder: the others stay")
    found = place.path.stat().st_size
    if file_bytes not in (found, None):
        raise UserError(
            f"{place.path}: has {found} bytes, but the manifest says {file_bytes}; {REPAIR}"
        )
    # Through a file of our own: HDF5 would lock it, which network file systems may refuse, and
    # would not open it at all beside a handle of this process that locks in another way.
    with place.path.open("rb") as raw:
        try:
            with h5py.File(raw, "r") as file:
                problem = _problem(file, place)
                if problem is None:
                    return _contents(file, place)
        except Exception as error:  # HDF5 reports damage as OSError, KeyError and others
            problem = f"cannot be read ({' '.join(str(error).split())})"
    raise UserError(f"{place.path}: {problem}; {REPAIR}")


def _contents(file: h5py.File, place: ShardSpec) -> ShardHeader:
    names = [name for name in place.datasets if name != place.pixels]
    small: dict[str, Any] = {name: get_dataset(file, name)[...] for name in names}
    if "offsets" not in small:
        small["offsets"] = np.arange(place.rows + 1) * math.prod(place.image_shape)
    offsets = small["offsets"]
    if offsets[0] != 0 or offsets[-1] != place.num_bytes or (np.diff(offsets) <= 0).any():
        raise UserError(f"'offsets' do not rise from 0 to {place.num_bytes}")
    return ShardHeader(get_dataset(file, place.pixels).id.get_offset(), **small)


def _problem(file: h5py.File, place: ShardSpec) -> str | None:
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
    start, size = get_dataset(file, place.pixels).id.get_offset(), place.path.stat().st_size
    if start is None or start % PAGE or start + place.num_bytes > size:
        return (
            f"{place.pixels!r} at byte {start} is not at a page of {PAGE} bytes or reaches past "
            "the end"
        )
    return None


def get_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Return ``file[name]``, which may be a group in a file that is not ours."""
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise TypeError(f"{name!r} is not a dataset")
    return dataset


def check_value(pictures: Any) -> int:
    """Return the digest of a block's bytes: XXH3, ten times as fast as CRC-32 or SHA-256 here."""
    return xxhash.xxh3_64_intdigest(pictures)


def damaged_rows(place: ShardSpec) -> list[slice]:
    """Return the blocks of rows whose pictures do not match their check value."""
    shard = open_shard(place)
    pictures = np.memmap(place.path, np.uint8, "r", shard.start, (place.num_bytes,))
    return [
        rows
        for rows, check in zip(place.blocks, shard.check, strict=True)
        if check_value(pictures[shard.offsets[rows.start] : shard.offsets[rows.stop]]) != check
    ]


def describe(path: Path, place: ShardSpec) -> Shard:
    """Return what the manifest says of a shard; ``path`` is where it stands for now."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Shard(place.path.name, place.rows, place.num_bytes, path.stat().st_size, digest)
