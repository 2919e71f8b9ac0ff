"""What the sources that list many files share: hashes of names, and progress where it is slow."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from ganray.progress import Progress

T = TypeVar("T")
PATIENCE_S = 5.0


def name_hash(name: str, key: bytes) -> int:
    """Return 64 bits that depend on ``name`` and ``key`` alone: the same everywhere and always.

    A name that is no UTF-8 is hashed by its bytes.
    """
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8, key=key).digest())


def held_out(name: str) -> bool:
    """Return whether the image of this name is one of the tenth that is kept from training.

    It does not depend on the other images, so that none changes sides when a set grows.
    """
    return name_hash(name, b"held out") < 2**64 // 10


def shown(path: Path | str) -> str:
    """Return a path for a message: one with line breaks or bytes that are no text is escaped."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def patiently(items: Sequence[T], what: str, unit: str) -> Iterator[T]:
    """Yield the items, and show progress once they have taken ``PATIENCE_S`` seconds."""
    patience_ends = time.monotonic() + PATIENCE_S
    progress = None
    with contextlib.ExitStack() as stack:
        for done, item in enumerate(items):
            yield item
            if progress is not None:
                progress.add(1)
            elif time.monotonic() > patience_ends:
                progress = stack.enter_context(Progress(len(items), what, unit))
                progress.add(done + 1)
