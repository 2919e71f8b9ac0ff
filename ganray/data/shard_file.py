"""One shard: open it, make sure that it is what its place asks for, find damage in it.

No HDF5 object outlives a call of this module, so none crosses a fork, a pickle or a thread.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from ganray.data.shards import FORMAT, PAGE, REPAIR, VERSION, Place, Shard


@dataclass(frozen=True)
class Contents:
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


def open_shard(place: Place, file_bytes: int | None = None) -> Contents:
    """Read all of a shard but its pictures, and check that it is what its place asks for.

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
                    return _contents(file, place)
        except Exception as error:  # HDF5 reports damage as OSError, KeyError and others
            problem = f"cannot be read ({' '.join(str(error).split())})"
    raise ValueError(f"{place.path}: {problem}; {REPAIR}")


def _contents(file: h5py.File, place: Place) -> Contents:
    names = [name for name in place.datasets if name != place.pixels]
    small: dict[str, Any] = {name: get_dataset(file, name)[...] for name in names}
    if "offsets" not in small:
        small["offsets"] = np.arange(place.rows + 1) * math.prod(place.image_shape)
    offsets = small["offsets"]
    if offsets[0] != 0 or offsets[-1] != place.num_bytes or (np.diff(offsets) <= 0).any():
        raise ValueError(f"'offsets' do not rise from 0 to {place.num_bytes}")
    return Contents(get_dataset(file, place.pixels).id.get_offset(), **small)


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


def damaged_rows(place: Place) -> list[slice]:
    """Return the blocks of rows whose pictures do not match their check value."""
    shard = open_shard(place)
    pictures = np.memmap(place.path, np.uint8, "r", shard.start, (place.num_bytes,))
    return [
        rows
        for rows, check in zip(place.blocks, shard.check, strict=True)
        if check_value(pictures[shard.offsets[rows.start] : shard.offsets[rows.stop]]) != check
    ]


def describe(path: Path, place: Place) -> Shard:
    """Return what the manifest says of a shard; ``path`` is where it stands for now."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Shard(place.path.name, place.rows, place.num_bytes, path.stat().st_size, digest)
