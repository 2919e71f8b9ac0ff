"""Verification of shards: when they are opened, when they are first read, and of a whole set."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from ganray.data.format import (
    BLOCK,
    FORMAT,
    PAGE,
    REPAIR,
    SPLITS,
    VERSION,
    Manifest,
    Shard,
    ShardSpec,
)
from ganray.data.mapping import Mapping
from ganray.errors import UserError
from ganray.progress import Progress


@dataclass(frozen=True)
class ShardHeader:
    """Everything in a shard but the images."""

    start: int
    """Byte of the file at which the images begin."""
    offsets: NDArray[np.int64]
    """(n + 1,) boundaries of the images, in bytes from ``start``."""
    labels: NDArray[np.int64]
    attributes: NDArray[np.uint8]
    ids: NDArray[np.int64]
    split: NDArray[np.uint8]
    check: NDArray[np.uint64]


def open_shard(spec: ShardSpec, shard: Shard | None = None) -> ShardHeader:
    """Read the header of a shard and compare it with its spec.

    Args:
        spec: Location and required contents.
        shard: Its entry in the manifest; None if there is no manifest yet.

    Raises:
        UserError: The shard is missing, damaged, or stored in a way that cannot be mapped.
    """
    if not spec.path.exists():
        raise UserError(f"{spec.path}: missing; prepare again into this folder: the others stay")
    if shard is not None:
        size = spec.path.stat().st_size
        if size != shard.bytes:
            raise UserError(
                f"{spec.path}: has {size} bytes, but the manifest has {shard.bytes}; {REPAIR}"
            )
        if header_digest(spec.path, shard.start, shard.num_bytes) != shard.header:
            raise UserError(f"{spec.path}: is damaged in its header or labels; {REPAIR}")
    # HDF5 gets an open file: it would lock a path, which network file systems may refuse, and could
    # not open it at all beside a handle of this process that locks in another way.
    with spec.path.open("rb") as raw:
        try:
            with h5py.File(raw, "r") as file:
                problem = _find_problem(file, spec)
                if problem is None:
                    return _read_header(file, spec)
        except Exception as error:  # HDF5 reports damage as OSError, KeyError and others
            problem = f"cannot be read ({' '.join(str(error).split())})"
    raise UserError(f"{spec.path}: {problem}; {REPAIR}")


def _read_header(file: h5py.File, spec: ShardSpec) -> ShardHeader:
    names = [name for name in spec.datasets if name != spec.image_dataset]
    arrays: dict[str, Any] = {name: get_dataset(file, name)[...] for name in names}
    if "offsets" not in arrays:
        arrays["offsets"] = np.arange(spec.rows + 1) * math.prod(spec.image_shape)
    offsets = arrays["offsets"]
    if offsets[0] != 0 or offsets[-1] != spec.num_bytes or (np.diff(offsets) <= 0).any():
        raise ValueError(f"'offsets' do not increase from 0 to {spec.num_bytes}")
    for name, low, high in (
        ("labels", -1, spec.num_classes - 1),
        ("attributes", 0, 1),
        ("split", 0, len(SPLITS) - 1),
    ):
        if ((arrays[name] < low) | (arrays[name] > high)).any():
            raise ValueError(f"{name!r} are not all from {low} to {high}")
    return ShardHeader(get_dataset(file, spec.image_dataset).id.get_offset(), **arrays)


def _find_problem(file: h5py.File, spec: ShardSpec) -> str | None:
    """Return a description of what differs from the spec; None if nothing does."""
    attrs = file.attrs
    kind = attrs.get("format"), attrs.get("version")
    if kind != (FORMAT, VERSION):
        return f"is {kind[0]} version {kind[1]}, not {FORMAT} version {VERSION}"
    if attrs.get("recipe") != spec.recipe.json():
        return "was made by another recipe than the manifest's"
    if attrs.get("first_row") != spec.first:
        return f"begins at image {attrs.get('first_row')} of the set, not at {spec.first}"
    for name, (dtype, shape) in spec.datasets.items():
        # A link could lead to any file of this machine.
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            return f"{name!r} is missing, or a link to another object"
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
    start = get_dataset(file, spec.image_dataset).id.get_offset()
    if start is None or start % PAGE or start + spec.num_bytes > spec.path.stat().st_size:
        return (
            f"{spec.image_dataset!r} at byte {start} is not at a page of {PAGE} bytes or reaches"
            " past the end"
        )
    return None


def get_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Return ``file[name]``, which may be a group in a foreign file."""
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise TypeError(f"{name!r} is not a dataset")
    return dataset


def check_value(block: Any) -> int:
    """Return the digest of a block's bytes: XXH3, ten times as fast as CRC-32 or SHA-256 here."""
    return xxhash.xxh3_64_intdigest(block)


def header_digest(path: Path, start: int, num_bytes: int) -> str:
    """Return the XXH3 digest in hex of a shard's bytes but the images, at the byte `start`."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        digest.update(file.read(start))
        file.seek(start + num_bytes)
        digest.update(file.read())
    return digest.hexdigest()


def damaged_rows(spec: ShardSpec, shard: Shard | None = None) -> list[slice]:
    """Return the blocks of rows that do not match their check value."""
    header = open_shard(spec, shard)
    images = np.memmap(spec.path, np.uint8, "r", header.start, (spec.num_bytes,))
    return [
        rows
        for rows, check in zip(spec.blocks, header.check, strict=True)
        if check_value(images[header.offsets[rows.start] : header.offsets[rows.stop]]) != check
    ]


def describe_shard(path: Path, spec: ShardSpec) -> Shard:
    """Return the manifest entry of an undamaged shard; `path` may be its temporary name."""
    start = open_shard(replace(spec, path=path)).start
    header = header_digest(path, start, spec.num_bytes)
    size = path.stat().st_size
    return Shard(spec.path.name, spec.rows, spec.num_bytes, size, _file_sha256(path), start, header)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_shards(folder: Path) -> Manifest:
    """Verify a set of shards and return its manifest. Logs progress.

    Raises:
        UserError: Something is missing or damaged; names every such shard and its rows.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    specs = manifest.shard_specs(folder)
    problems = []
    with (
        Progress(manifest.num_images, f"verify {folder.absolute().name}", "images") as progress,
        ThreadPoolExecutor() as pool,  # hashing releases the GIL
    ):
        results = pool.map(_verify_shard, specs, manifest.shards)
        for shard, problem in zip(manifest.shards, results, strict=True):
            problems += [problem] if problem else []
            progress.add(shard.rows)
    if problems:
        raise UserError(f"{folder}: {'; '.join(problems)}; {REPAIR}")
    return manifest


def _verify_shard(spec: ShardSpec, shard: Shard) -> str | None:
    """Return a description of the damage; None if there is none."""
    if spec.path.exists() and _file_sha256(spec.path) == shard.sha256:
        return None
    try:
        damage = damaged_rows(spec, shard)
    except UserError as error:
        return str(error).removesuffix(f"; {REPAIR}")
    rows = ", ".join(f"{rows.start}-{rows.stop - 1}" for rows in damage)
    return f"{shard.name} is damaged in {f'rows {rows}' if rows else 'a digest of the manifest'}"


class BlockVerifier:
    """Compares each block of 64 images with its digest the first time one of them is read.

    Args:
        specs: The shards.
        headers: Their headers, which are filled in as shards are opened.
        mapping: Their images.
    """

    def __init__(
        self, specs: list[ShardSpec], headers: Sequence[ShardHeader | None], mapping: Mapping
    ) -> None:
        self._specs, self._headers, self._mapping = specs, headers, mapping
        self._first_rows = np.array([spec.first for spec in specs])
        self._first_blocks = np.cumsum([0, *(len(spec.blocks) for spec in specs)])
        self._verified = np.zeros(self._first_blocks[-1], bool)
        self._num_unverified = len(self._verified)

    def verify(self, ids: NDArray[np.int64]) -> None:
        """Verify the blocks of these images, int64 (n,), whose shards are open.

        Raises:
            UserError: A block is damaged; names the file and the rows.
        """
        if self._num_unverified == 0:
            return
        shards = np.searchsorted(self._first_rows, ids, side="right") - 1
        blocks = self._first_blocks[shards] + (ids - self._first_rows[shards]) // BLOCK
        for block in np.unique(blocks[~self._verified[blocks]]):
            self._verify_block(int(block))

    def _verify_block(self, block: int) -> None:
        number = int(np.searchsorted(self._first_blocks, block, side="right")) - 1
        spec, header = self._specs[number], self._headers[number]
        pixels = self._mapping.pieces[number]
        assert header is not None
        assert pixels is not None
        local = block - int(self._first_blocks[number])
        rows = spec.blocks[local]
        begin, end = header.offsets[[rows.start, rows.stop]]
        if check_value(pixels[begin:end]) != header.check[local]:
            raise UserError(f"{spec.path}: rows {rows.start}-{rows.stop - 1} are damaged; {REPAIR}")
        self._verified[block] = True
        self._num_unverified -= 1
