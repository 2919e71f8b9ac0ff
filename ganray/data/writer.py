"""Convert a set of images to shards: decode, resize, write; an interrupted call can be resumed.

The parent lays a shard out in full and the workers write their pixels straight to the place that
belongs to them, so no pixel crosses a process border and the file does not depend on how many
workers there are or which is faster. A shard is a ``.part`` file until it is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import cast

import h5py
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from ganray.data.format import (
    BLOCK,
    FORMAT,
    HUGE_PAGE,
    MANIFEST,
    PAGE,
    REPAIR,
    SPLITS,
    VERSION,
    ConversionSpec,
    Encoding,
    ImageSource,
    JpegSource,
    Manifest,
    Shape,
    Shard,
    ShardSpec,
    check_value,
    damaged_rows,
    describe,
    get_dataset,
    publish,
)
from ganray.errors import UserError
from ganray.progress import Progress

logger = logging.getLogger(__name__)

SHARD_BYTES = 192 * 2**20
WRITE_BYTES = 16 * 2**20
"""Bytes per write of a worker; the page cache then keeps nearly all of them in huge pages."""


def write_shards(
    source: ImageSource,
    folder: Path,
    *,
    size: int = 0,
    images: int | None = None,
    split: str = "all",
    processes: int | None = None,
    rows_per_shard: int | None = None,
    encoding: Encoding = "raw",
) -> Manifest:
    """Convert a source; resume an interrupted conversion; return at once if it is done.

    Args:
        source: The image set.
        folder: Where the shards go; made where missing.
        size: Resize and crop to this many pixels a side; 0 keeps the original size.
        images: Use only the first so many of the split; None uses all.
        split: ``all``, ``train``, ``valid`` or ``test``.
        processes: Workers; None uses all cores. The shards are the same for any number.
        rows_per_shard: Images per shard; None chooses about 192 MB.
        encoding: ``raw`` pixels, or ``jpeg`` to keep the source's files as they are, to the byte.

    Raises:
        ValueError: A wrong argument, another recipe in this folder, no space, or a damaged image.
            Shards finished by then stay and are kept by the next call.
    """
    folder = Path(folder)
    chosen = _choose(source, size, images, split)
    if not size and 0 in source.image_shape:
        raise UserError(
            f"size=0: the images of {source.name} differ in size; give one size for all, such as 64"
        )
    if encoding == "jpeg":
        _refuse_to_recode(source, size)
    recipe = ConversionSpec(source.name, source.fingerprint(), size, len(chosen), split, encoding)
    if (manifest := _standing(folder, recipe)) is not None:
        return manifest
    places = _lay_out(source, chosen, folder, recipe, rows_per_shard)
    with _only_writer(folder):
        if (manifest := _standing(folder, recipe)) is not None:
            return manifest  # made by the one that was waited for
        shards = _convert(source, chosen, places, processes or _cores())
        command = shlex.join(sys.argv)
        shape, names = places[0].image_shape, (source.class_names, source.attribute_names)
        manifest = Manifest(recipe, shape, len(chosen), *names, shards, command)
        manifest.write(folder)
    return manifest


def _choose(source: ImageSource, size: int, images: int | None, split: str) -> NDArray[np.int64]:
    """Return the indices of the images to convert."""
    if size < 0:
        raise UserError(f"size={size}: must be pixels a side, or 0 for the original size")
    if split != "all" and split not in SPLITS:
        raise UserError(f"split={split!r} is unknown; use all, {', '.join(SPLITS)}")
    every = np.arange(len(source))
    chosen = every if split == "all" else every[source.split == SPLITS.index(split)]
    if len(chosen) == 0:
        raise UserError(f"split={split!r}: {source.name} has no such image; use split='all'")
    if images is not None and not 1 <= images <= len(chosen):
        raise UserError(
            f"images={images}: split {split!r} of {source.name} has {len(chosen)} images; "
            f"use 1 to {len(chosen)}, or None for all"
        )
    return chosen[:images]


def _refuse_to_recode(source: ImageSource, size: int) -> None:
    """Raise UserError if the source's files cannot be stored unchanged."""
    if not hasattr(source, "read_bytes"):
        raise UserError(f"encoding=jpeg: {source.name} holds no JPEG files; use encoding=raw")
    if size:
        raise UserError(
            f"size={size}: encoding=jpeg keeps the files as they are, and they are resized when "
            "they are read; use size=0"
        )


def _lay_out(
    source: ImageSource,
    chosen: NDArray[np.int64],
    folder: Path,
    recipe: ConversionSpec,
    rows_per_shard: int | None,
) -> list[ShardSpec]:
    """Return the shards to write, in order."""
    shape, size = source.image_shape, recipe.size
    if size:
        shape = size, size, shape[2]
    if recipe.encoding == "jpeg":
        sizes = cast(JpegSource, source).num_bytes()[chosen]
        unit = BLOCK
    else:
        sizes = np.full(len(chosen), math.prod(shape))
        unit = page_rows(shape)
    rows = _rows_per_shard(sizes, unit, rows_per_shard)
    num_attributes = len(source.attribute_names)
    places = []
    for number, first in enumerate(range(0, len(chosen), rows)):
        path, these = folder / f"shard-{number:05d}.h5", sizes[first : first + rows]
        counts = len(these), int(these.sum())
        places.append(ShardSpec(path, first, *counts, shape, num_attributes, recipe))
    return places


def page_rows(shape: Shape) -> int:
    """Return the smallest number of images of this shape that fill whole pages."""
    return PAGE // math.gcd(PAGE, math.prod(shape))


def _rows_per_shard(sizes: NDArray[np.int64], unit: int, wanted: int | None) -> int:
    """Return the multiple of ``unit`` rows that comes nearest to ``SHARD_BYTES``."""
    if wanted is None:
        return unit * max(1, round(SHARD_BYTES / (unit * sizes.mean())))
    if wanted < 1 or (wanted % unit and wanted < len(sizes)):
        raise UserError(
            f"rows_per_shard={wanted}: must be a multiple of {unit}, so that every shard fills "
            f"whole pages; try {max(wanted // unit, 1) * unit}"
        )
    return wanted


def is_whole(folder: Path) -> bool:
    """Return whether a set is finished and complete, judged by file sizes."""
    if not (folder / MANIFEST).exists():
        return False
    shards = Manifest.read(folder).shards
    return all(_size(folder / shard.name) == shard.bytes for shard in shards)


def _refuse_other_recipe(folder: Path, recipe: ConversionSpec) -> None:
    """Raise UserError if the folder holds other data that the conversion would replace."""
    found = {Manifest.read(folder).recipe.json()} if (folder / MANIFEST).exists() else set()
    for path in folder.glob("shard-*.h5"):
        # A file that does not open is a damaged one of ours, and is made anew.
        with path.open("rb") as raw, contextlib.suppress(OSError), h5py.File(raw, "r") as file:
            found.add(str(file.attrs.get("recipe", "{}")))
    for other in found - {recipe.json()}:
        try:
            words = str(ConversionSpec(**json.loads(other)))
        except (TypeError, ValueError):
            words = "unknown to ganray"
        raise UserError(
            f"{folder}: holds shards of another recipe ({words}) than the one asked for "
            f"({recipe}); choose another folder, or delete this one"
        )


def _standing(folder: Path, recipe: ConversionSpec) -> Manifest | None:
    """Return the manifest of a set that is finished, judged by file sizes.

    Raises:
        ValueError: There are shards of another recipe.
    """
    _refuse_other_recipe(folder, recipe)
    return Manifest.read(folder) if is_whole(folder) else None


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the kernel releases when the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info(f"{folder}: another process writes shards here; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _convert(
    source: ImageSource, chosen: NDArray[np.int64], places: list[ShardSpec], processes: int
) -> tuple[Shard, ...]:
    """Write the missing shards and return all of them in order."""
    shards = {place: shard for place in places if (shard := _finished(place))}
    todo = [place for place in places if place not in shards]
    if not todo:
        return tuple(shards[place] for place in places)

    folder = todo[0].path.parent
    needed, free = sum(place.num_bytes for place in todo), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: needs {needed / 1e9:.1f} GB but only {free / 1e9:.1f} GB are free; choose "
            "another folder, a smaller size or fewer images"
        )
    processes = min(processes, sum(len(place.blocks) for place in todo))
    images = sum(place.rows for place in todo)
    rows_at_once = _rows_at_once(todo, processes)
    with (
        Progress(images, f"{source.name} -> {folder}", "images") as progress,
        _workers(source, todo[0].recipe, processes) as pool,
    ):
        under_way: deque[tuple[ShardSpec, list[Future[list[int]]]]] = deque()
        for place in todo:
            indices = chosen[place.first : place.first + place.rows]
            under_way.append((place, _begin_shard(pool, source, place, indices, rows_at_once)))
            if len(under_way) == 2:  # the workers fill this shard while the last one is finished
                last, checks = under_way.popleft()
                shards[last] = _finish_shard(last, checks, progress)
        for place, checks in under_way:
            shards[place] = _finish_shard(place, checks, progress)
    return tuple(shards[place] for place in places)


def _rows_at_once(todo: list[ShardSpec], processes: int) -> int:
    """Return the images per task: whole blocks, few enough to balance the workers."""
    images = sum(place.rows for place in todo)
    rows = WRITE_BYTES * images // sum(place.num_bytes for place in todo)
    return BLOCK * max(1, min(rows, images // (4 * processes)) // BLOCK)


def _begin_shard(
    pool: Executor,
    source: ImageSource,
    place: ShardSpec,
    indices: NDArray[np.int64],
    rows_at_once: int,
) -> list[Future[list[int]]]:
    """Write ``shard-00000.h5.part`` without the images, and submit these to the workers."""
    part = _part(place)
    small = {
        "labels": source.labels[indices],
        "attributes": source.attributes[indices],
        "ids": source.ids[indices],
        "split": source.split[indices],
    }
    offsets = np.arange(place.rows + 1) * math.prod(place.image_shape)
    if place.recipe.encoding == "jpeg":
        sizes = cast(JpegSource, source).num_bytes()[indices]
        offsets = small["offsets"] = np.concatenate([[0], sizes.cumsum()])
    # Space for the pictures is set aside now and never filled by HDF5: the workers know the place.
    early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    threshold, interval = _alignment(place)
    with h5py.File(
        part, "w", locking=False, alignment_threshold=threshold, alignment_interval=interval
    ) as file:
        file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
        file.attrs["first_row"], file.attrs["recipe"] = place.first, place.recipe.json()
        for name, (dtype, shape) in place.datasets.items():
            dcpl = early if name == place.pixels else None
            file.create_dataset(name, shape, dtype, data=small.get(name), dcpl=dcpl)
        start = get_dataset(file, place.pixels).id.get_offset()
    return [
        pool.submit(fill_blocks, part, start + int(offsets[row]), indices[row : row + rows_at_once])
        for row in range(0, place.rows, rows_at_once)
    ]


def _alignment(place: ShardSpec) -> tuple[int, int]:
    """Set where images may begin: at a page, or congruent to huge pages, see ``format``.

    What is as large as the threshold begins at a multiple of the interval. Only the pictures are,
    and the first multiple that has room for HDF5's own head before it is the interval itself.
    """
    if place.recipe.encoding == "jpeg" or place.num_bytes < HUGE_PAGE:
        return 1, PAGE
    begin, head = place.first * math.prod(place.image_shape), 4 * PAGE
    return place.num_bytes, head + (begin - head) % HUGE_PAGE


def _finish_shard(place: ShardSpec, checks: list[Future[list[int]]], progress: Progress) -> Shard:
    """Wait for the images, then write the check values and rename the shard."""
    part = _part(place)
    values: list[int] = []
    for check in checks:
        before = len(values)
        values += check.result()
        progress.add(sum(rows.stop - rows.start for rows in place.blocks[before : len(values)]))
    with h5py.File(part, "r+", locking=False) as file:
        get_dataset(file, "check")[...] = np.array(values, np.uint64)
    shard = describe(part, place)
    publish(part, place.path)
    return shard


def _finished(place: ShardSpec) -> Shard | None:
    """Return the shard if it exists and is undamaged, so that a resumed conversion keeps it."""
    try:
        if damaged_rows(place):
            return None
    except UserError:
        return None
    return describe(place.path, place)


@contextlib.contextmanager
def _workers(source: ImageSource, recipe: ConversionSpec, processes: int) -> Iterator[Executor]:
    """Start the conversion workers; one alone is a thread, which needs no start-up time."""
    if processes == 1:
        pool = ThreadPoolExecutor(1, initializer=start_thread, initargs=(source, recipe))
    else:
        spawn = multiprocessing.get_context("spawn")  # a fork would copy torch's and HDF5's locks
        pool = ProcessPoolExecutor(processes, spawn, start_process, (source, recipe))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a conversion worker died; was memory short, or does the calling script lack "
            "`if __name__ == '__main__'`? Finished shards are kept by the next call"
        ) from error
    except UserError as error:
        raise UserError(str(error)) from None  # without the worker's traceback
    finally:
        pool.shutdown(cancel_futures=True)


def _part(place: ShardSpec) -> Path:
    return place.path.with_name(f"{place.path.name}.part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


# The conversion worker: reads images and writes their bytes in place.

_worker = threading.local()


def start_thread(source: ImageSource, recipe: ConversionSpec) -> None:
    """Let this thread convert images of ``source``."""
    _worker.source, _worker.recipe = source, recipe


def start_process(source: ImageSource, recipe: ConversionSpec) -> None:
    """Let this process convert images of ``source``, and end with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    parent = multiprocessing.parent_process()
    assert parent is not None

    def die_with_parent() -> None:
        parent.join()
        os._exit(1)  # a pool's worker would otherwise wait for ever for a parent that was killed

    threading.Thread(target=die_with_parent, daemon=True).start()
    start_thread(source, recipe)


def fill_blocks(part: Path, start: int, indices: NDArray[np.int64]) -> list[int]:
    """Read images, write them at byte ``start`` and return their check values; runs in a worker."""
    source, recipe = _worker.source, _worker.recipe
    blocks = [slice(first, first + BLOCK) for first in range(0, len(indices), BLOCK)]
    if recipe.encoding == "jpeg":
        files = [_whole_jpeg(source, int(index)) for index in indices]
        data = [b"".join(files[rows]) for rows in blocks]
    else:
        pixels = np.stack([_pixels(source, recipe.size, int(index)) for index in indices])
        data = [pixels[rows].data for rows in blocks]
    with part.open("r+b") as file:
        file.seek(start)
        file.write(b"".join(data))  # in one call: the page cache keeps it in pieces as large
    return [check_value(block) for block in data]


def _pixels(source: ImageSource, size: int, index: int) -> NDArray[np.uint8]:
    picture = source.read(index)
    pixels = np.asarray(resize_and_crop(picture, size) if size else picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels  # grey has no axis for channels


def _whole_jpeg(source: JpegSource, index: int) -> bytes:
    """Return the file of one image after checking its header and end, without decoding it."""
    data = source.read_bytes(index)
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise UserError(f"{source.name}: image {source.ids[index]} is no JPEG ({error})") from None
    if (height, width) != source.image_shape[:2] or data[-2:] != b"\xff\xd9":
        raise UserError(
            f"{source.name}: image {source.ids[index]} is cut short, or {height}x{width} and not "
            f"{source.image_shape[0]}x{source.image_shape[1]}; fetch the set again"
        )
    return data


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


# Verification of a set of shards.


def verify_shards(folder: Path) -> Manifest:
    """Check a whole set, with progress.

    Raises:
        ValueError: Something is missing or damaged; names every such shard and its rows.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    places = manifest.places(folder)
    problems = []
    with (
        Progress(manifest.num_images, f"verify {folder}", "images") as progress,
        ThreadPoolExecutor() as pool,  # hashing releases the GIL
    ):
        checks = pool.map(_verify_shard, places, manifest.shards)
        for shard, problem in zip(manifest.shards, checks, strict=True):
            problems += [problem] if problem else []
            progress.add(shard.rows)
    if problems:
        raise UserError(f"{folder}: {'; '.join(problems)}; {REPAIR}")
    return manifest


def _verify_shard(place: ShardSpec, shard: Shard) -> str | None:
    """Return a description of the damage of a shard; None if it is undamaged."""
    if place.path.exists() and describe(place.path, place) == shard:
        return None
    try:
        damage = damaged_rows(place)
    except UserError as error:
        return str(error).removesuffix(f"; {REPAIR}")
    rows = ", ".join(f"{rows.start}-{rows.stop - 1}" for rows in damage)
    return f"{shard.name} is damaged in {f'rows {rows}' if rows else 'its header or labels'}"
