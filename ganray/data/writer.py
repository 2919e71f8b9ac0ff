"""Convert a set of images to shards: decode, resize, write; an interrupted call can be resumed.

The parent process creates a shard with everything but its images, and the workers write the images
directly to their offsets in the file. So no pixel is sent between processes, and the file does not
depend on the number or the speed of the workers. A shard is a ``.part`` file until it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import math
import multiprocessing
import os
import shlex
import shutil
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Literal, cast

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
    SPLITS,
    VERSION,
    ConversionSpec,
    Encoding,
    Manifest,
    Shape,
    Shard,
    ShardSpec,
)
from ganray.data.integrity import check_value, damaged_rows, describe_shard, get_dataset
from ganray.data.sources import ImageSource, JpegSource
from ganray.data.sources.listing import BadImagesError
from ganray.data.worker_process import follow_parent
from ganray.errors import UserError
from ganray.files import cannot_write, create_folder, publish, read_json, write_atomic
from ganray.log import redact
from ganray.progress import Progress

logger = logging.getLogger(__name__)

SHARD_BYTES = 192 * 2**20
SKIPPED = "skipped-images.json"
"""File beside the shards with the images that bad_images=skip has left out, and the reasons."""
_MAX_BAD_IMAGES = 100
"""Number of bad images after which a conversion ends, unless it skips them."""
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
    bad_images: Literal["error", "skip"] = "error",
) -> Manifest:
    """Convert a source to shards; resume an interrupted conversion; return at once if it is done.

    Args:
        source: Image set.
        folder: Folder of the shards; created if missing.
        size: Side in pixels to resize and crop to; 0 keeps the original size.
        images: Number of images, the first ones of the split; None: all.
        split: ``all``, ``train``, ``valid`` or ``test``.
        processes: Number of workers; None: all cores. The shards are the same for any number.
        rows_per_shard: Images per shard; None: about 192 MB.
        encoding: ``raw`` pixels, or ``jpeg`` to store the source's files unchanged.
        bad_images: ``skip``: if images cannot be read, write all others instead, from the start.

    Raises:
        BadImagesError: Images cannot be read. All are tried before, up to a hundred bad ones.
        UserError: A wrong argument, another recipe in this folder, or no space. The next call keeps
            the shards that are finished.
    """
    folder = Path(folder)
    fingerprint = source.fingerprint()
    chosen = _choose(source, size, images, split)
    if not size and 0 in source.image_shape:
        raise UserError(
            f"size=0: the images of {source.name} differ in size; give one size for all, such as 64"
        )
    if encoding == "jpeg":
        _check_jpeg(source, size)
    while True:
        if bad_images == "skip":
            chosen = np.setdiff1d(chosen, _skipped(folder, fingerprint))
        recipe = ConversionSpec(source.name, fingerprint, size, len(chosen), split, encoding)
        if (manifest := _find_finished(folder, recipe)) is not None:
            return manifest
        specs = _plan_shards(source, chosen, folder, recipe, rows_per_shard)
        with _only_writer(folder):
            if (manifest := _find_finished(folder, recipe)) is not None:
                return manifest  # another process wrote it meanwhile
            try:
                shards = _convert(source, chosen, specs, processes or _cores(), bad_images)
            except BadImagesError as error:
                if bad_images == "skip" or len(error.problems) > 1:
                    error.log()
                if bad_images == "error" or len(error.problems) == len(chosen):
                    raise
                _skip(folder, fingerprint, error.problems)
                left_out = len(error.problems)
                logger.warning(f"{left_out:,} left out: {folder} is written again without them")
            else:
                command = redact(shlex.join(sys.argv))
                shape, names = specs[0].image_shape, (source.class_names, source.attribute_names)
                manifest = Manifest(recipe, shape, len(chosen), *names, shards, command)
                manifest.write(folder)
                return manifest


def _skipped(folder: Path, fingerprint: str) -> list[int]:
    """Return the indices of the images that earlier calls could not read."""
    path = folder / SKIPPED
    record = read_json(path, "delete it") if path.exists() else {}
    return list(map(int, record.get("images", {}))) if record.get("source") == fingerprint else []


def _skip(folder: Path, fingerprint: str, problems: Mapping[int, str]) -> None:
    """Record images to leave out, and delete the shards, each of which begins elsewhere then."""
    write_atomic(folder / SKIPPED, json.dumps({"source": fingerprint, "images": problems}))
    for path in folder.glob("shard-*.h5*"):
        path.unlink()


def _choose(source: ImageSource, size: int, images: int | None, split: str) -> NDArray[np.int64]:
    """Return the indices of the images to convert."""
    if size < 0:
        raise UserError(f"size={size}: must be pixels a side, or 0 for the original size")
    if split != "all" and split not in SPLITS:
        raise UserError(f"split={split!r} is unknown; use all, {', '.join(SPLITS)}")
    chosen = np.arange(len(source))
    if split != "all":
        chosen = chosen[source.split == SPLITS.index(split)]
    if len(chosen) == 0:
        raise UserError(f"split={split!r}: {source.name} has no such image; use split='all'")
    if images is not None and not 1 <= images <= len(chosen):
        raise UserError(
            f"images={images}: split {split!r} of {source.name} has {len(chosen)} images; "
            f"use 1 to {len(chosen)}, or None for all"
        )
    return chosen[:images]


def _check_jpeg(source: ImageSource, size: int) -> None:
    """Raise UserError if the source's files cannot be stored unchanged."""
    if not hasattr(source, "read_bytes"):
        raise UserError(f"encoding=jpeg: {source.name} holds no JPEG files; use encoding=raw")
    if size:
        raise UserError(
            f"size={size}: encoding=jpeg keeps the files as they are, and they are resized when "
            "they are read; use size=0"
        )


def _plan_shards(
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
    names = len(source.attribute_names), len(source.class_names)
    specs = []
    for number, first in enumerate(range(0, len(chosen), rows)):
        path, shard_sizes = folder / f"shard-{number:05d}.h5", sizes[first : first + rows]
        counts = len(shard_sizes), int(shard_sizes.sum())
        specs.append(ShardSpec(path, first, *counts, shape, *names, recipe))
    return specs


def page_rows(shape: Shape) -> int:
    """Return the smallest number of images of this shape that fill whole pages."""
    return PAGE // math.gcd(PAGE, math.prod(shape))


def _rows_per_shard(sizes: NDArray[np.int64], unit: int, rows: int | None) -> int:
    """Return `rows` if given, else the multiple of ``unit`` that is nearest to ``SHARD_BYTES``."""
    if rows is None:
        return unit * max(1, round(SHARD_BYTES / (unit * sizes.mean())))
    if rows < 1 or (rows % unit and rows < len(sizes)):
        raise UserError(
            f"rows_per_shard={rows}: must be a multiple of {unit}, so that every shard fills "
            f"whole pages; try {max(rows // unit, 1) * unit}"
        )
    return rows


def is_complete(folder: Path) -> bool:
    """Return whether all shards of a finished set exist, by their file sizes."""
    if not (folder / MANIFEST).exists():
        return False
    shards = Manifest.read(folder).shards
    return all(_size(folder / shard.name) == shard.bytes for shard in shards)


def _find_finished(folder: Path, recipe: ConversionSpec) -> Manifest | None:
    """Return the manifest of a complete set, or None.

    Raises:
        UserError: There are shards of another recipe, which the conversion would replace.
    """
    recipes = {Manifest.read(folder).recipe.json()} if (folder / MANIFEST).exists() else set()
    for path in folder.glob("shard-*.h5"):
        # A file that does not open is a damaged shard of an earlier call, and is written again.
        with path.open("rb") as raw, contextlib.suppress(OSError), h5py.File(raw, "r") as file:
            recipes.add(str(file.attrs.get("recipe", "{}")))
    for other in recipes - {recipe.json()}:
        try:
            description = str(ConversionSpec(**json.loads(other)))
        except (TypeError, ValueError):
            description = "unknown to ganray"
        raise UserError(
            f"{folder}: contains shards of another recipe ({description}) than the configured one "
            f"({recipe}); choose another folder, or delete this one"
        )
    return Manifest.read(folder) if is_complete(folder) else None


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the kernel releases when the process ends."""
    try:
        file = (create_folder(folder) / ".lock").open("w")
    except OSError as error:
        raise cannot_write(folder, error) from error
    with file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info(f"{folder}: another process writes shards here; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _convert(
    source: ImageSource,
    chosen: NDArray[np.int64],
    specs: list[ShardSpec],
    processes: int,
    bad_images: Literal["error", "skip"],
) -> tuple[Shard, ...]:
    """Write the missing shards and return all of them in order."""
    shards = {spec: shard for spec in specs if (shard := _find_shard(spec))}
    missing = [spec for spec in specs if spec not in shards]
    if not missing:
        return tuple(shards[spec] for spec in specs)

    folder = missing[0].path.parent
    needed, free = sum(spec.num_bytes for spec in missing), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: needs {needed / 2**20:,.1f} MiB, but only {free / 2**20:,.1f} MiB are free;"
            " choose another folder, a smaller size or fewer images"
        )
    processes = min(processes, sum(len(spec.blocks) for spec in missing))
    images = sum(spec.rows for spec in missing)
    rows_per_task = _rows_per_task(missing, processes)
    with (
        _full_disk_is_user_error(missing, needed),
        Progress(images, f"{source.name} -> {folder.absolute().name}", "images") as progress,
        _workers(source, missing[0].recipe, processes) as pool,
    ):
        active: deque[tuple[ShardSpec, list[Future[list[int]]]]] = deque()
        problems: dict[int, str] = {}
        for spec in (*missing, None, None):
            if spec is not None:
                indices = chosen[spec.first : spec.first + spec.rows]
                active.append((spec, _begin_shard(pool, source, spec, indices, rows_per_task)))
            if len(active) == 2 or (spec is None and active):
                # The workers fill the next shard while this one is finished.
                last, checks = active.popleft()
                try:
                    shards[last] = _finish_shard(last, checks, progress)
                except BadImagesError as error:
                    problems |= error.problems
            if bad_images == "error" and len(problems) > _MAX_BAD_IMAGES:
                break
        if problems:
            raise BadImagesError(problems)
    return tuple(shards[spec] for spec in specs)


@contextlib.contextmanager
def _full_disk_is_user_error(specs: list[ShardSpec], needed: int) -> Iterator[None]:
    """Raise UserError if the disk is filled meanwhile, and delete the unfinished shards."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # HDF5's exceptions have no errno.
        reason = os.strerror(errno.ENOSPC)
        if reason not in str(error):
            raise
        for spec in specs:
            _part(spec).unlink(missing_ok=True)
        raise cannot_write(specs[0].path, OSError(errno.ENOSPC, reason), needed) from error


def _rows_per_task(specs: list[ShardSpec], processes: int) -> int:
    """Return the images per task: whole blocks, few enough to balance the workers."""
    images = sum(spec.rows for spec in specs)
    rows = WRITE_BYTES * images // sum(spec.num_bytes for spec in specs)
    return BLOCK * max(1, min(rows, images // (4 * processes)) // BLOCK)


def _begin_shard(
    pool: Executor,
    source: ImageSource,
    spec: ShardSpec,
    indices: NDArray[np.int64],
    rows_per_task: int,
) -> list[Future[list[int]]]:
    """Write ``shard-00000.h5.part`` without the images, and submit these to the workers."""
    part = _part(spec)
    annotations = {
        "labels": source.labels[indices],
        "attributes": source.attributes[indices],
        "ids": source.ids[indices],
        "split": source.split[indices],
    }
    offsets = np.arange(spec.rows + 1) * math.prod(spec.image_shape)
    if spec.recipe.encoding == "jpeg":
        sizes = cast(JpegSource, source).num_bytes()[indices]
        offsets = annotations["offsets"] = np.concatenate([[0], sizes.cumsum()])
    # HDF5 allocates the space of the images now without filling it; workers write to its offset.
    early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    threshold, interval = _alignment(spec)
    with h5py.File(
        part, "w", locking=False, alignment_threshold=threshold, alignment_interval=interval
    ) as file:
        file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
        file.attrs["first_row"], file.attrs["recipe"] = spec.first, spec.recipe.json()
        for name, (dtype, shape) in spec.datasets.items():
            dcpl = early if name == spec.image_dataset else None
            file.create_dataset(name, shape, dtype, data=annotations.get(name), dcpl=dcpl)
        start = get_dataset(file, spec.image_dataset).id.get_offset()
    return [
        pool.submit(
            fill_blocks, part, start + int(offsets[row]), indices[row : row + rows_per_task]
        )
        for row in range(0, spec.rows, rows_per_task)
    ]


def _alignment(spec: ShardSpec) -> tuple[int, int]:
    """Return HDF5's alignment threshold and interval, for the offset described in ``format``.

    Objects of at least the threshold begin at a multiple of the interval. Only the images are as
    large, and the first multiple that leaves room for HDF5's header is the interval itself.
    """
    if spec.recipe.encoding == "jpeg" or spec.num_bytes < HUGE_PAGE:
        return 1, PAGE
    begin, header = spec.first * math.prod(spec.image_shape), 4 * PAGE
    return spec.num_bytes, header + (begin - header) % HUGE_PAGE


def _finish_shard(spec: ShardSpec, checks: list[Future[list[int]]], progress: Progress) -> Shard:
    """Wait for the images, then write the check values and rename the shard."""
    part = _part(spec)
    values: list[int] = []
    problems: dict[int, str] = {}
    for check in checks:
        before = len(values)
        try:
            values += check.result()
        except BadImagesError as error:
            problems |= error.problems
        progress.add(sum(rows.stop - rows.start for rows in spec.blocks[before : len(values)]))
    if problems:
        raise BadImagesError(problems)
    with h5py.File(part, "r+", locking=False) as file:
        get_dataset(file, "check")[...] = np.array(values, np.uint64)
    shard = describe_shard(part, spec)
    publish(part, spec.path)
    return shard


def _find_shard(spec: ShardSpec) -> Shard | None:
    """Return the shard if it exists and is undamaged, so that a resumed conversion keeps it."""
    try:
        if damaged_rows(spec):
            return None
    except UserError:
        return None
    return describe_shard(spec.path, spec)


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
        raise error from None  # without the worker's traceback
    finally:
        pool.shutdown(cancel_futures=True)


def _part(spec: ShardSpec) -> Path:
    return spec.path.with_name(f"{spec.path.name}.part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


# The conversion worker, which reads images and writes them to their offset.

_worker = threading.local()


def start_thread(source: ImageSource, recipe: ConversionSpec) -> None:
    """Let this thread convert images of ``source``."""
    _worker.source, _worker.recipe = source, recipe


def start_process(source: ImageSource, recipe: ConversionSpec) -> None:
    """Let this process convert images of ``source``, and end with its parent."""
    follow_parent()
    start_thread(source, recipe)


def fill_blocks(part: Path, start: int, indices: NDArray[np.int64]) -> list[int]:
    """Read images, write them at byte ``start`` and return their check values; runs in a worker."""
    source, recipe = _worker.source, _worker.recipe
    blocks = [slice(first, first + BLOCK) for first in range(0, len(indices), BLOCK)]
    is_jpeg, images, problems = recipe.encoding == "jpeg", [], {}
    for index in indices.tolist():
        try:
            images.append(
                _read_jpeg(source, index) if is_jpeg else _read_pixels(source, recipe.size, index)
            )
        except UserError as error:
            problems[index] = str(error)
    if problems:
        raise BadImagesError(problems)
    if is_jpeg:
        data = [b"".join(images[rows]) for rows in blocks]
    else:
        pixels = np.stack(images)
        data = [pixels[rows].data for rows in blocks]
    with part.open("r+b") as file:
        file.seek(start)
        file.write(b"".join(data))  # one call, so that the page cache uses large pieces
    return [check_value(block) for block in data]


def _read_pixels(source: ImageSource, size: int, index: int) -> NDArray[np.uint8]:
    image = source.read(index)
    pixels = np.asarray(resize_and_crop(image, size) if size else image)
    return pixels[..., None] if pixels.ndim == 2 else pixels  # gray images have no channel axis


def _read_jpeg(source: JpegSource, index: int) -> bytes:
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
    """Scale the short side to ``size`` and crop the center square, as DCGAN does.

    Bit-identical to torchvision's ``Resize(size)`` and ``CenterCrop(size)`` on a PIL image.
    """
    width, height = image.size
    short, long = min(width, height), size * max(width, height) // min(width, height)
    if short != size:
        new_size = (size, long) if width <= height else (long, size)
        image = image.resize(new_size, Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in image.size)
    return image.crop((left, top, left + size, top + size))
