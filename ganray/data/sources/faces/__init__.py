"""Procedural aligned faces in CelebA's layout, for machines without CelebA.

A face is a pure function of `(rng_seed, index)`: ``traits`` draws its random traits and derives its
attributes, ``painters`` renders them. `draw` returns faces as arrays, `write_celeba` writes them as
CelebA's files, which ``sources.celeba`` reads like the real ones.
"""

import io
import itertools
import json
import multiprocessing
import os
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from ganray.data.sources.faces.painters import paint
from ganray.data.sources.faces.traits import (
    ATTRIBUTE_NAMES,
    DRAWN_ATTRIBUTES,
    attributes_of,
    draw_traits,
)
from ganray.data.worker_process import follow_parent
from ganray.errors import UserError
from ganray.files import publish

__all__ = ["ATTRIBUTE_NAMES", "DRAWN_ATTRIBUTES", "VERSION", "draw", "is_written", "write_celeba"]

VERSION = 1
"""Version of the faces; increase it if a pixel or an attribute of any face changes."""

_IMAGES_FILE, _ATTRIBUTES_FILE = "img_align_celeba.zip", "list_attr_celeba.txt"
_PARTITION_FILE = "list_eval_partition.txt"
_RECORD = "ganray-faces.json"
_SPLIT = (162_770, 19_867, 19_962)  # CelebA's train, valid, test
_TASK = 128  # faces per task of a worker process


def draw(rng_seed: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw faces. A face does not depend on the others.

    Args:
        rng_seed: Any integer; another seed gives other faces.
        indices: Indices of the faces, not negative integers (n,), in any order.

    Returns:
        Images, uint8 (n, 218, 178, 3), RGB in [0, 255]; and attributes, int8 (n, 40) in {-1, 1},
        which are those of the images in the columns `DRAWN_ATTRIBUTES` and -1 in all others.
    """
    traits = draw_traits(rng_seed, indices)
    return paint(traits), attributes_of(traits)


def split_sizes(num_images: int) -> tuple[int, ...]:
    """Return the number of faces in the splits train, valid and test, in CelebA's proportions."""
    ends = [num_images * images // sum(_SPLIT) for images in itertools.accumulate(_SPLIT)]
    return tuple(end - start for start, end in itertools.pairwise([0, *ends]))


def is_written(folder: Path, num_images: int, rng_seed: int) -> bool:
    """Return whether `write_celeba` has written all of these faces into the folder."""
    record = folder / _RECORD
    return record.exists() and json.loads(record.read_text()) == _identity(num_images, rng_seed)


def _identity(num_images: int, rng_seed: int) -> dict[str, int]:
    return {"num_images": num_images, "rng_seed": rng_seed, "version": VERSION}


def write_celeba(
    folder: Path,
    num_images: int,
    rng_seed: int,
    processes: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write faces 0 ... num_images - 1 in the layout of `torchvision.datasets.CelebA`.

    The folder then contains `img_align_celeba.zip` (stored JPEGs, 178 wide and 218 high),
    `list_attr_celeba.txt`, `list_eval_partition.txt`, and `ganray-faces.json`, which is written
    last: a set without it is incomplete. A complete set of the same faces is not written again.

    Args:
        folder: Created if missing. Files of the real CelebA in it are never replaced.
        num_images: At most 999,999, because the names have six digits.
        rng_seed: See `draw`.
        processes: Number of worker processes; None: one per core. The files do not depend on it.
        progress: Function that is called with the number of new faces.

    Raises:
        FileExistsError: The folder contains CelebA files that this function did not write.
    """
    if not 1 <= num_images <= 999_999:
        raise UserError(f"num_images={num_images} is outside 1 ... 999999, six digits of a name")
    if is_written(folder, num_images, rng_seed):
        return
    record, unfinished = folder / _RECORD, folder / f"{_RECORD}.part"
    folder.mkdir(parents=True, exist_ok=True)
    final = [folder / name for name in (_ATTRIBUTES_FILE, _PARTITION_FILE, _IMAGES_FILE)]
    foreign = [path for path in final if path.exists()]
    if foreign and not record.exists() and not unfinished.exists():
        raise FileExistsError(f"{foreign[0]} was not written by ganray; use another folder")
    identity = _identity(num_images, rng_seed)
    unfinished.write_text(json.dumps(identity))  # marks the folder as ganray's until the end
    for path in (record, *final):
        path.unlink(missing_ok=True)

    parts = [path.with_name(path.name + ".part") for path in final]
    attributes = _write_images(parts[2], num_images, rng_seed, processes, progress)
    lines = [str(num_images), " ".join(ATTRIBUTE_NAMES)]
    lines += [f"{_name(i)} " + " ".join(f"{x:2d}" for x in row) for i, row in enumerate(attributes)]
    parts[0].write_text("\n".join(lines) + "\n")
    splits = [
        f"{_name(i)} {part}\n"
        for i, part in enumerate(np.repeat(range(3), split_sizes(num_images)))
    ]
    parts[1].write_text("".join(splits))
    for part, path in zip([*parts, unfinished], [*final, record], strict=True):
        publish(part, path)


def _write_images(
    path: Path, num_images: int, rng_seed: int, processes: int | None, progress
) -> np.ndarray:
    """Write the zip, in order, on all cores; return the attributes, int8 (num_images, 40)."""
    processes = processes or os.cpu_count() or 1
    tasks = [
        (rng_seed, start, min(start + _TASK, num_images)) for start in range(0, num_images, _TASK)
    ]
    rows: list[np.ndarray] = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive, ExitStack() as stack:
        if processes == 1:
            results = map(_jpegs, tasks)
        else:
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(min(processes, len(tasks)), spawn, follow_parent)
            # Not as a context, which would draw all faces, nor with `map`, whose cancelled tasks
            # make the pool print a traceback when a signal ends its processes.
            stack.callback(pool.shutdown, cancel_futures=True)
            futures = [pool.submit(_jpegs, task) for task in tasks]
            results = (futures.pop(0).result() for _ in tasks)
        for (_, start, _), (jpegs, attributes) in zip(tasks, results, strict=True):
            for index, jpeg in enumerate(jpegs, start):
                entry = zipfile.ZipInfo(f"img_align_celeba/{_name(index)}", (2015, 9, 28, 0, 0, 0))
                entry.create_system, entry.external_attr = 3, 0o644 << 16
                archive.writestr(entry, jpeg)
            rows.append(attributes)
            if progress is not None:
                progress(len(jpegs))
    return np.concatenate(rows)


def _jpegs(task: tuple[int, int, int]) -> tuple[list[bytes], np.ndarray]:
    """Draw faces start ... stop - 1 and encode them as JPEG; runs in a worker process."""
    rng_seed, start, stop = task
    images, attributes = draw(rng_seed, np.arange(start, stop))
    jpegs = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=86, subsampling="4:2:0")
        jpegs.append(buffer.getvalue())
    return jpegs, attributes


def _name(index: int) -> str:
    """Return the file name of a face; CelebA's names begin at 1."""
    return f"{index + 1:06d}.jpg"
