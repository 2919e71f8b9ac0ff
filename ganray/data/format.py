"""The format of image sets on disk: a folder of HDF5 shards and a manifest.

``writer`` writes it, ``integrity`` verifies it, ``reader`` reads it.

Format ``ganray-shards``, version 3. A folder contains ``manifest.json``, ``shard-00000.h5``,
``shard-00001.h5`` and so on, 128-256 MB each. The manifest is written last: a folder without one is
unfinished. A shard of n images has these datasets, all contiguous, without chunks or filters:

    images      (n, H, W, C) uint8   pixels, at a byte offset that is a multiple of 4096 (see below)
    labels      (n,) int64           class of each image, named by ``class_names``; -1 for none
    attributes  (n, A) uint8         0 or 1, named by ``attribute_names``
    ids         (n,) int64           number of the original file
    split       (n,) uint8           0 train, 1 valid, 2 test
    check       (ceil(n / 64),) uint64   XXH3 digest of each block of 64 images

and these attributes: ``format``, ``version``, ``first_row`` (index of its first image in the set)
and ``recipe`` (JSON of the ``ConversionSpec``). A set with encoding ``jpeg`` has, instead of
``images``,

    jpeg        (bytes,) uint8       the original files, concatenated
    offsets     (n + 1,) int64       image i is jpeg[offsets[i] : offsets[i + 1]]

which is 16 times smaller and 15 times slower to read. There is no variable-length data, because
HDF5 makes three reads for each such item.

In every raw shard but the last, ``images`` fills whole pages of 4096 bytes, so that all shards can
be mapped side by side as one array. A batch is then one gather without HDF5, whose calls and fancy
indexing are 20 to 1000 times slower; HDF5 serves as a container that any tool opens. The offset is
congruent modulo 2 MiB to the position of the shard's first byte in that array, so that the kernel
can map huge pages, which is a seventh faster. (Shards of less than 2 MiB begin at any page.)
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from ganray.config.schema import Encoding
from ganray.errors import UserError
from ganray.files import write_atomic

FORMAT, VERSION = "ganray-shards", 3
PAGE, HUGE_PAGE = 4096, 2 * 2**20
BLOCK = 64  # images per check value
SPLITS = ("train", "valid", "test")
MANIFEST = "manifest.json"
REPAIR = "delete it and prepare again into this folder: the other shards are kept"

Shape = tuple[int, int, int]
IMAGE_DATASET: dict[str, str] = {"raw": "images", "jpeg": "jpeg"}
"""Name of the dataset with the images, by encoding."""


@dataclass(frozen=True)
class ConversionSpec:
    """Everything that the images of a set depend on; equal specs give equal shards."""

    source: str
    """Name of the source, such as ``celeba``."""
    fingerprint: str
    """SHA-256 that identifies the source's data."""
    size: int
    """Height and width in pixels after resizing and cropping; 0 keeps the original size."""
    images: int
    """Number of images: the first ones of the split."""
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
    num_classes: int
    recipe: ConversionSpec

    @property
    def image_dataset(self) -> str:
        """Name of the dataset with the images."""
        return IMAGE_DATASET[self.recipe.encoding]

    @property
    def datasets(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of each dataset."""
        datasets: dict[str, tuple[str, tuple[int, ...]]] = {
            "images": ("uint8", (self.rows, *self.image_shape))
        }
        if self.recipe.encoding == "jpeg":
            datasets = {
                "jpeg": ("uint8", (self.num_bytes,)),
                "offsets": ("int64", (self.rows + 1,)),
            }
        return datasets | {
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
    start: int
    """Byte of the file at which the images begin."""
    header: str
    """XXH3 digest in hex of all bytes but the images: HDF5 might hang on damaged ones."""


@dataclass(frozen=True)
class Manifest:
    """Contents of a finished folder."""

    recipe: ConversionSpec
    image_shape: Shape
    num_images: int
    class_names: tuple[str, ...]
    """Names of the classes; empty if unlabeled."""
    attribute_names: tuple[str, ...]
    shards: tuple[Shard, ...]
    created_by: str
    """Command line of the conversion."""

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and validate ``manifest.json``.

        Raises:
            UserError: It is missing, damaged, or of another version.
        """
        path = folder / MANIFEST
        if not path.exists():
            raise UserError(
                f"{folder}: no {MANIFEST}, so no finished shards; name another, or prepare it again"
            )
        try:
            fields = json.loads(path.read_bytes())
            kind = fields.pop("format"), fields.pop("version")
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{path}: damaged ({error!r}); {REPAIR}") from error
        if kind != (FORMAT, VERSION):
            raise UserError(
                f"{path}: is {kind[0]} version {kind[1]}, but this ganray reads {FORMAT} version "
                f"{VERSION}; use the ganray that wrote it, or prepare again into another folder"
            )
        try:
            fields["recipe"] = ConversionSpec(**fields["recipe"])
            for name in ("image_shape", "class_names", "attribute_names"):
                fields[name] = tuple(fields[name])
            fields["shards"] = tuple(Shard(**shard) for shard in fields["shards"])
            manifest = cls(**fields)
            manifest._validate()
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: damaged ({error!r}); {REPAIR}") from error
        return manifest

    def _validate(self) -> None:
        rules = {
            "image_shape must be three positive numbers": len(self.image_shape) == 3
            and all(side > 0 for side in self.image_shape),
            # A name such as ../x.h5 would be outside of the folder.
            "shards must be named shard-00000.h5 and so on": all(
                re.fullmatch(r"shard-\d{5,}\.h5", shard.name) for shard in self.shards
            ),
            "the numbers of a shard must be whole": all(
                type(number) is int and 0 <= number < 2**63
                for shard in self.shards
                for number in (shard.rows, shard.num_bytes, shard.bytes, shard.start)
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
                raise ValueError(rule)

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` atomically."""
        fields = {"format": FORMAT, "version": VERSION} | asdict(self)
        write_atomic(folder / MANIFEST, json.dumps(fields, indent=1) + "\n")

    def digest(self) -> str:
        """Return the digest of the contents, 16 hex digits, without the command line."""
        return _short_sha256(json.dumps(asdict(self) | {"created_by": ""}, sort_keys=True))

    def shard_specs(self, folder: Path) -> list[ShardSpec]:
        """Return the location and required contents of each shard."""
        specs, first = [], 0
        counts = len(self.attribute_names), len(self.class_names)
        for shard in self.shards:
            size = shard.rows, shard.num_bytes
            path, shape = folder / shard.name, self.image_shape
            specs.append(ShardSpec(path, first, *size, shape, *counts, self.recipe))
            first += shard.rows
        return specs


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


def _short_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
