"""A small version of the source text's file, and its contents."""

from pathlib import Path

import h5py
import numpy as np

from ganray.data.sources.source_text import GROUP

SHAPE = (218, 178, 3)
NUMBERS = [*range(1, 12), 14, 200]  # begins at 1, and has gaps
PIXELS = {
    number: np.random.default_rng(number).integers(0, 256, SHAPE, np.uint8) for number in NUMBERS
}


def write_text(path: Path, **options: object) -> Path:
    """Write the file as the text's notebook does, in an order of its own."""
    with h5py.File(path, "w") as file:
        for number in reversed(NUMBERS):
            file.create_dataset(f"{GROUP}/{number}.jpg", data=PIXELS[number], **options)
    return path


def expected(rows: list[int] | None = None) -> np.ndarray:
    rows = list(range(len(NUMBERS))) if rows is None else rows
    return np.stack([PIXELS[NUMBERS[row]] for row in rows])


def is_open(path: Path) -> bool:
    """Return whether this process holds the file; never where that cannot be asked."""
    links = Path("/proc/self/fd").glob("*")
    return any(link.exists() and link.resolve() == path for link in links)


def open_objects() -> int:
    return h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_ALL)
