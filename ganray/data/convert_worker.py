"""The other side of ``convert``: one process that reads pictures and writes their bytes in place.

It must not pay 3 s for ``torch``, so nothing here imports it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from ganray.data.shard_file import check_value
from ganray.data.shards import BLOCK, JpegSource, Recipe, Source

_worker = threading.local()


def start_thread(source: Source, recipe: Recipe) -> None:
    """Let this thread convert images of ``source``."""
    _worker.source, _worker.recipe = source, recipe


def start_process(source: Source, recipe: Recipe) -> None:
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
    """In a worker: read these pictures, write them at byte ``start``, return their check values."""
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


def _pixels(source: Source, size: int, index: int) -> NDArray[np.uint8]:
    picture = source.read(index)
    pixels = np.asarray(resize_and_crop(picture, size) if size else picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels  # grey has no axis for channels


def _whole_jpeg(source: JpegSource, index: int) -> bytes:
    """Return the file of one image, after a look at its two ends: it is not decoded here."""
    data = source.read_bytes(index)
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise ValueError(f"{source.name}: image {source.ids[index]} is no JPEG ({error})") from None
    if (height, width) != source.image_shape[:2] or data[-2:] != b"\xff\xd9":
        raise ValueError(
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
