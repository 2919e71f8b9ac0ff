"""Image sets on disk: what a folder of shards holds, how it is written, checked and read.

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

import contextlib
import ctypes
import fcntl
import hashlib
import json
import math
import mmap
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import weakref
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ganray.progress import Progress

if TYPE_CHECKING:  # a conversion worker imports this file and must not pay 3 s for torch
    import torch

FORMAT, VERSION = "ganray-shards", 1
PAGE = 4096
BLOCK = 64  # images per check value
SHARD_BYTES = 192 * 2**20
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

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return one image, uint8 ``image_shape``."""
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
        path = Path(folder) / MANIFEST
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
        part = Path(folder) / f"{MANIFEST}.part"
        part.write_text(json.dumps(text, indent=1) + "\n")
        _publish(part, Path(folder) / MANIFEST)

    def digest(self) -> str:
        """Return 16 hex digits that stand for the content, whatever command made it."""
        return _short_sha256(json.dumps(asdict(self) | {"created_by": ""}, sort_keys=True))

    def places(self, folder: Path) -> list[_Place]:
        """Return where each shard is and what it must hold."""
        places, first = [], 0
        for shard in self.shards:
            path, labels = Path(folder) / shard.name, len(self.label_names)
            place = _Place(path, first, shard.rows, self.image_shape, labels, self.recipe)
            places.append(place)
            first += shard.rows
        return places


@dataclass(frozen=True)
class _Place:
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


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale the short side to ``size`` and cut the square in the middle, as DCGAN does.

    Equal to torchvision's ``Resize(size)`` and ``CenterCrop(size)`` on a PIL image, to the bit.
    """
    width, height = image.size
    short, long = min(width, height), size * max(width, height) // min(width, height)
    if short != size:
        new_size = (size, long) if width <= height else (long, size)
        image = image.resize(new_size, Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in image.size)
    return image.crop((left, top, left + size, top + size))


# Writing. The parent lays a shard out in full and the workers write their pixels straight to the
# place that belongs to them, so no pixel crosses a process border and the file does not depend on
# how many workers there are or which is faster.


def write_shards(
    source: Source,
    folder: Path,
    *,
    size: int = 0,
    images: int | None = None,
    split: str = "all",
    processes: int | None = None,
    rows_per_shard: int | None = None,
) -> Manifest:
    """Convert a source; go on where an earlier call was stopped; return at once if it is done.

    Args:
        source: The image set.
        folder: Where the shards go; made where missing.
        size: Resize and crop to this many pixels a side; 0 keeps the original size.
        images: Use only the first so many of the split; None uses all.
        split: ``all``, ``train``, ``valid`` or ``test``.
        processes: Workers; None uses all cores. The shards are the same for any number.
        rows_per_shard: Images per shard; None chooses about 192 MB.

    Raises:
        ValueError: A wrong argument, another recipe in this folder, another writer at work, no
            space, or a damaged image. Shards finished by then stay and are kept by the next call.
    """
    folder = Path(folder)
    chosen = _choose(source, size, images, split)
    recipe = Recipe(source.name, source.fingerprint(), size, len(chosen), split)
    shape = (size, size, source.image_shape[2]) if size else source.image_shape
    rows = _rows_per_shard(math.prod(shape), len(chosen), rows_per_shard)
    _refuse_other_recipe(folder, recipe)
    if (folder / MANIFEST).exists():
        manifest = Manifest.read(folder)
        if all(_size(folder / shard.name) == shard.bytes for shard in manifest.shards):
            return manifest

    places = []
    for number, first in enumerate(range(0, len(chosen), rows)):
        path, count = folder / f"shard-{number:05d}.h5", min(rows, len(chosen) - first)
        places.append(_Place(path, first, count, shape, len(source.label_names), recipe))
    with _only_writer(folder):
        shards = _convert(source, chosen, places, processes or _cores())
        command = shlex.join(sys.argv)
        manifest = Manifest(recipe, shape, len(chosen), source.label_names, shards, command)
        manifest.write(folder)
    return manifest


def _choose(source: Source, size: int, images: int | None, split: str) -> NDArray[np.int64]:
    """Return the indices of the images to convert."""
    if size < 0:
        raise ValueError(f"size={size}: must be pixels a side, or 0 for the original size")
    if split != "all" and split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; use all, {', '.join(SPLITS)}")
    every = np.arange(len(source))
    chosen = every if split == "all" else every[source.split == SPLITS.index(split)]
    if len(chosen) == 0:
        raise ValueError(f"split={split!r}: {source.name} has no such image; use split='all'")
    if images is not None and not 1 <= images <= len(chosen):
        raise ValueError(
            f"images={images}: split {split!r} of {source.name} has {len(chosen)} images; "
            f"use 1 to {len(chosen)}, or None for all"
        )
    return chosen[:images]


def _rows_per_shard(image_bytes: int, images: int, wanted: int | None) -> int:
    """Return the rows that fill whole pages and come nearest to ``SHARD_BYTES``."""
    unit = PAGE // math.gcd(PAGE, image_bytes)
    if wanted is None:
        return unit * max(1, round(SHARD_BYTES / (unit * image_bytes)))
    if wanted < 1 or (wanted % unit and wanted < images):
        raise ValueError(
            f"rows_per_shard={wanted}: must be a multiple of {unit}, so that every shard fills "
            f"whole pages; try {max(wanted // unit, 1) * unit}"
        )
    return wanted


def _refuse_other_recipe(folder: Path, recipe: Recipe) -> None:
    """Raise where the folder holds something that this conversion would mix with or replace."""
    found = {Manifest.read(folder).recipe.json()} if (folder / MANIFEST).exists() else set()
    for path in folder.glob("shard-*.h5"):
        # A file that does not open is a damaged one of ours, and is made anew.
        with path.open("rb") as raw, contextlib.suppress(OSError), h5py.File(raw, "r") as file:
            found.add(str(file.attrs.get("recipe", "{}")))
    for other in found - {recipe.json()}:
        try:
            words = str(Recipe(**json.loads(other)))
        except (TypeError, ValueError):
            words = "unknown to ganray"
        raise ValueError(
            f"{folder}: holds shards of another recipe ({words}) than the one asked for "
            f"({recipe}); choose another folder, or delete this one"
        )


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the kernel drops it with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{folder}: another process is writing shards here; wait for it to end"
            ) from None
        yield


def _convert(
    source: Source, chosen: NDArray[np.int64], places: list[_Place], processes: int
) -> tuple[Shard, ...]:
    """Make the shards that do not stand yet; return all of them in order."""
    shards = {place: shard for place in places if (shard := _finished(place))}
    todo = [place for place in places if place not in shards]
    if not todo:
        return tuple(shards[place] for place in places)

    folder = todo[0].path.parent
    needed, free = sum(place.num_bytes for place in todo), shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"{folder}: needs {needed / 1e9:.1f} GB but only {free / 1e9:.1f} GB are free; choose "
            "another folder, a smaller size or fewer images"
        )
    processes = min(processes, sum(len(place.blocks) for place in todo))
    images = sum(place.rows for place in todo)
    size = todo[0].recipe.size
    with (
        Progress(images, f"{source.name} -> {folder}", "images") as progress,
        _workers(source, size, processes) as pool,
    ):
        under_way: deque[tuple[_Place, list[Future[int]]]] = deque()
        for place in todo:
            indices = chosen[place.first : place.first + place.rows]
            under_way.append((place, _begin_shard(pool, source, place, indices)))
            if len(under_way) == 2:  # the workers fill this shard while the last one is finished
                place, checks = under_way.popleft()
                shards[place] = _finish_shard(place, checks, progress)
        for place, checks in under_way:
            shards[place] = _finish_shard(place, checks, progress)
    return tuple(shards[place] for place in places)


def _begin_shard(
    pool: Executor, source: Source, place: _Place, indices: NDArray[np.int64]
) -> list[Future[int]]:
    """Lay out ``shard-00000.h5.part`` with all but the pixels, and hand those to the workers."""
    part = _part(place.path)
    labels = {
        "attributes": source.attributes[indices],
        "ids": source.ids[indices],
        "split": source.split[indices],
    }
    # Space for the pixels is set aside now and never filled by HDF5: the workers know the place.
    early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(
        part, "w", locking=False, alignment_threshold=1, alignment_interval=PAGE
    ) as file:
        file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
        file.attrs["first_row"], file.attrs["recipe"] = place.first, place.recipe.json()
        for name, (dtype, shape) in place.datasets.items():
            dcpl = early if name == "images" else None
            file.create_dataset(name, shape, dtype, data=labels.get(name), dcpl=dcpl)
        offset = _dataset(file, "images").id.get_offset()
    image_bytes = math.prod(place.image_shape)
    return [
        pool.submit(_fill_block, part, offset + rows.start * image_bytes, indices[rows])
        for rows in place.blocks
    ]


def _finish_shard(place: _Place, checks: list[Future[int]], progress: Progress) -> Shard:
    """Wait for the pixels, then give the shard its check values and its final name."""
    part = _part(place.path)
    values = []
    for rows, check in zip(place.blocks, checks, strict=True):
        values.append(check.result())
        progress.add(rows.stop - rows.start)
    with h5py.File(part, "r+", locking=False) as file:
        _dataset(file, "check")[...] = np.array(values, np.uint32)
    shard = _describe(part, place)
    _publish(part, place.path)
    return shard


def _finished(place: _Place) -> Shard | None:
    """Return the shard if it stands and is whole: an interrupted conversion keeps it."""
    try:
        if _damage(place):
            return None
    except ValueError:
        return None
    return _describe(place.path, place)


@contextlib.contextmanager
def _workers(source: Source, size: int, processes: int) -> Iterator[Executor]:
    """Start the conversion workers; one alone is a thread, which needs no start-up time."""
    if processes == 1:
        pool = ThreadPoolExecutor(1, initializer=_start_worker, initargs=(source, size))
    else:
        spawn = multiprocessing.get_context("spawn")  # a fork would copy torch's and HDF5's locks
        pool = ProcessPoolExecutor(processes, spawn, _start_process, (source, size))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a conversion worker died; was memory short, or does the calling script lack "
            "`if __name__ == '__main__'`? Finished shards are kept by the next call"
        ) from error
    except ValueError as error:
        raise ValueError(str(error)) from None  # without the worker's traceback
    finally:
        pool.shutdown(cancel_futures=True)


_worker = threading.local()


def _start_worker(source: Source, size: int) -> None:
    _worker.source, _worker.size = source, size


def _start_process(source: Source, size: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    parent = multiprocessing.parent_process()
    assert parent is not None

    def die_with_parent() -> None:
        parent.join()
        os._exit(1)  # a pool's worker would otherwise wait for ever for a parent that was killed

    threading.Thread(target=die_with_parent, daemon=True).start()
    _start_worker(source, size)


def _fill_block(part: Path, offset: int, indices: NDArray[np.int64]) -> int:
    """In a worker: decode these images, write them at ``offset``, return their CRC-32."""
    source, size = _worker.source, _worker.size
    block = []
    for index in indices:
        pixels = source.read(int(index))
        if size:
            height, width, channels = pixels.shape
            image = Image.fromarray(pixels if channels == 3 else pixels.reshape(height, width))
            pixels = np.asarray(resize_and_crop(image, size)).reshape(size, size, channels)
        block.append(pixels)
    data = np.stack(block)
    with part.open("r+b") as file:
        file.seek(offset)
        file.write(data.data)
    return zlib.crc32(data.data)


def _describe(path: Path, place: _Place) -> Shard:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Shard(place.path.name, place.rows, path.stat().st_size, digest)


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _publish(part: Path, path: Path) -> None:
    """Give a finished file its name; after a crash that name stands for a whole file or none."""
    with part.open("r+b") as file:
        os.fsync(file.fileno())
    part.replace(path)


def _cores() -> int:
    """Return the cores this process may use: a job scheduler often grants a part of them."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def _short_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# Reading. HDF5 is asked once where the pixels are; after that they are plain memory.


@dataclass(frozen=True)
class _Contents:
    """What the header of a shard tells, and its small datasets."""

    offset: int
    attributes: NDArray[np.uint8]
    ids: NDArray[np.int64]
    split: NDArray[np.uint8]
    check: NDArray[np.uint32]


def _open_shard(place: _Place) -> _Contents:
    """Check that the shard is what its place asks for; no HDF5 object outlives this call.

    Raises:
        ValueError: It is missing, damaged, or stored in a way that cannot be mapped.
    """
    if not place.path.exists():
        raise ValueError(f"{place.path}: missing; prepare again into this folder: the others stay")
    # Through a file of our own: HDF5 would lock it, which network file systems may refuse, and
    # would not open it at all beside a handle of this process that locks in another way.
    with place.path.open("rb") as raw:
        try:
            with h5py.File(raw, "r") as file:
                problem = _problem(file, place)
                if problem is None:
                    small: dict[str, Any] = {
                        name: _dataset(file, name)[...]
                        for name in place.datasets
                        if name != "images"
                    }
                    return _Contents(_dataset(file, "images").id.get_offset(), **small)
        except Exception as error:  # HDF5 reports damage as OSError, KeyError and others
            problem = f"cannot be read ({' '.join(str(error).split())})"
    raise ValueError(f"{place.path}: {problem}; {REPAIR}")


def _problem(file: h5py.File, place: _Place) -> str | None:
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
        dataset = _dataset(file, name)
        layout = dataset.id.get_create_plist()
        if (
            layout.get_layout() != h5py.h5d.CONTIGUOUS
            or layout.get_external_count()
            or layout.get_nfilters()
        ):
            return f"{name!r} has chunks, filters or external storage; it must be contiguous"
        if (dataset.dtype, dataset.shape) != (np.dtype(dtype), shape):
            return f"{name!r} is {dataset.dtype} {dataset.shape}, not {dtype} {shape}"
    offset, size = _dataset(file, "images").id.get_offset(), place.path.stat().st_size
    if offset is None or offset % PAGE or offset + place.num_bytes > size:
        return f"'images' at byte {offset} is not at a page of {PAGE} bytes or reaches past the end"
    return None


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise TypeError(f"{name!r} is not a dataset")
    return dataset


def _damage(place: _Place) -> list[slice]:
    """Return the blocks of rows whose pixels do not match their check value."""
    contents = _open_shard(place)
    shape = place.rows, *place.image_shape
    images = np.memmap(place.path, np.uint8, "r", contents.offset, shape)
    return [
        rows
        for rows, check in zip(place.blocks, contents.check, strict=True)
        if zlib.crc32(images[rows].data) != check
    ]


def verify_shards(folder: Path) -> Manifest:
    """Read every byte of a set and compare it with its digests.

    Raises:
        ValueError: Something is missing or damaged; names every such shard and its rows.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    places = manifest.places(folder)
    problems = []
    with (
        Progress(manifest.num_images, f"verify {folder}", "images") as progress,
        ThreadPoolExecutor(_cores()) as pool,  # hashing releases the GIL
    ):
        checks = pool.map(_verify_shard, places, manifest.shards)
        for shard, problem in zip(manifest.shards, checks, strict=True):
            problems += [problem] if problem else []
            progress.add(shard.rows)
    if problems:
        raise ValueError(f"{folder}: {'; '.join(problems)}; {REPAIR}")
    return manifest


def _verify_shard(place: _Place, shard: Shard) -> str | None:
    """Say in which rows a shard is damaged, if it is."""
    if _size(place.path) == shard.bytes and _describe(place.path, place) == shard:
        return None
    try:
        damage = _damage(place)
    except ValueError as error:
        return str(error).removesuffix(f"; {REPAIR}")
    rows = ", ".join(f"{rows.start}-{rows.stop - 1}" for rows in damage)
    return f"{shard.name} is damaged in {f'rows {rows}' if rows else 'its header or labels'}"


class ShardReader:
    """A set of shards as one array of images that a batch is gathered from.

    The pixels stay on disk and in the page cache, shared by all processes of a machine. Do not
    change or delete the files while a reader is open: memory that has lost its file raises SIGBUS.
    May be used from several threads, survives a fork, and is pickled by its path.

    Args:
        folder: A folder made by ``write_shards``.
        verify: Read every byte and compare its digests first.
        side_by_side: Map all shards as one array, so that one call gathers over all of them, where
            the machine can (Linux with pages of 4 KiB). Otherwise they are mapped one by one and a
            batch visits each: the same bytes, up to half as fast.

    Raises:
        ValueError: The set is incomplete, damaged or not of this format; names the file.
    """

    def __init__(self, folder: Path, *, verify: bool = False, side_by_side: bool = True) -> None:
        self.folder = Path(folder).absolute()
        self.manifest = verify_shards(self.folder) if verify else Manifest.read(self.folder)
        self.image_shape: Shape = self.manifest.image_shape
        places = self.manifest.places(self.folder)
        for place, shard in zip(places, self.manifest.shards, strict=True):
            size = _size(place.path)
            if size not in (shard.bytes, -1):
                raise ValueError(
                    f"{place.path}: has {size} bytes, but the manifest says {shard.bytes}; {REPAIR}"
                )
        shards = [_open_shard(place) for place in places]
        self.attributes = np.concatenate([shard.attributes for shard in shards])
        """uint8 (N, A)"""
        self.ids = np.concatenate([shard.ids for shard in shards])
        """int64 (N,)"""
        self.split = np.concatenate([shard.split for shard in shards])
        """uint8 (N,)"""
        whole_pages = all(place.num_bytes % PAGE == 0 for place in places[:-1])
        can_join = sys.platform == "linux" and mmap.PAGESIZE == PAGE and whole_pages
        self._side_by_side = side_by_side and can_join
        map_images = _map_side_by_side if self._side_by_side else _map_one_by_one
        self._pieces = map_images(places, [shard.offset for shard in shards])
        """Images in uint8 (n, H, W, C) arrays that follow each other"""
        self._firsts = np.cumsum([0, *(len(piece) for piece in self._pieces[:-1])])

    def __len__(self) -> int:
        """Return the number of images."""
        return self.manifest.num_images

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path: the other process opens the files itself."""
        return _reopen, (self.folder, self._side_by_side)

    def gather(self, ids: NDArray[np.int64], out: torch.Tensor) -> None:
        """Copy the images at ``ids`` into ``out``.

        Args:
            ids: int64 (n,) in ``[0, len(self))``.
            out: Contiguous uint8 (n, H, W, C) on the CPU; pinned or not.

        Raises:
            ValueError: ``out`` has another shape or type, or an id is out of range.
        """
        import torch

        shape = (len(ids), *self.image_shape)
        if out.dtype != torch.uint8 or out.shape != shape or not out.is_contiguous():
            raise ValueError(
                f"out is {out.dtype} {tuple(out.shape)}; it must be contiguous uint8 {shape}"
            )
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self):
            raise ValueError(f"ids reach from {ids.min()} to {ids.max()}; there are {len(self)}")
        if len(self._pieces) == 1:
            images = torch.from_numpy(self._pieces[0])
            torch.index_select(images, 0, torch.from_numpy(ids), out=out)
            return
        rows = out.numpy()
        piece_of = np.searchsorted(self._firsts, ids, side="right") - 1
        for row, (piece, index) in enumerate(
            zip(piece_of, ids - self._firsts[piece_of], strict=True)
        ):
            rows[row] = self._pieces[piece][index]


def _reopen(folder: Path, side_by_side: bool) -> ShardReader:
    return ShardReader(folder, side_by_side=side_by_side)


def _map_one_by_one(places: list[_Place], offsets: list[int]) -> list[NDArray[np.uint8]]:
    """Map every shard by itself."""
    pieces = []
    for place, offset in zip(places, offsets, strict=True):
        with place.path.open("rb") as file:
            # From the file's start, as an offset must be a multiple of this machine's page size.
            # Copy on write: nothing is written, but torch warns of memory that is read-only.
            size = offset + place.num_bytes
            memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
        pieces.append(_as_images(memory, place, place.rows, offset))
    return pieces


def _map_side_by_side(places: list[_Place], offsets: list[int]) -> list[NDArray[np.uint8]]:
    """Map all shards into one reserved range of addresses, as if they were one file."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    prot_none, map_fixed, failed = 0, 0x10, ctypes.c_void_p(-1).value

    def map_at(address: int | None, size: int, prot: int, flags: int, fd: int, offset: int) -> int:
        result = libc.mmap(address, size, prot, flags, fd, offset)
        if result == failed:
            number = ctypes.get_errno()
            raise OSError(number, f"mmap of {size} bytes: {os.strerror(number)}")
        return result

    total = sum(place.num_bytes for place in places)
    base = map_at(None, total, prot_none, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    memory = (ctypes.c_uint8 * total).from_address(base)
    # Lives as long as a tensor needs it. Not undone at exit: a thread may still be gathering then.
    weakref.finalize(memory, libc.munmap, base, total).atexit = False
    address = base
    for place, offset in zip(places, offsets, strict=True):
        with place.path.open("rb") as file:
            flags = mmap.MAP_SHARED | map_fixed
            map_at(address, place.num_bytes, mmap.PROT_READ, flags, file.fileno(), offset)
        address += place.num_bytes
    return [_as_images(memory, places[0], sum(place.rows for place in places), 0)]


def _as_images(memory: Any, place: _Place, rows: int, offset: int) -> NDArray[np.uint8]:
    """View mapped bytes as uint8 (rows, H, W, C). Never write to it: that would be a SIGSEGV."""
    count = rows * math.prod(place.image_shape)
    flat = np.frombuffer(memory, np.uint8, count, offset)
    return flat.reshape(rows, *place.image_shape)
