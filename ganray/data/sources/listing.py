"""Helpers of sources that list many files: hashes of names, held-out images, progress."""

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
QUIET_S = 5.0


def name_hash(name: str, key: bytes) -> int:
    """Return 64 bits that depend on ``name`` and ``key`` only.

    The hash is of the bytes of the name, which need not be UTF-8.
    """
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8, key=key).digest())


def held_out(name: str) -> bool:
    """Return whether the image of this name is in the tenth that is held out from training.

    It does not depend on other images, so that no image changes its split when a set grows.
    """
    return name_hash(name, b"held out") < 2**64 // 10


def printable(path: Path | str) -> str:
    """Return a path for a message, escaped if it contains line breaks or bytes that are no text."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def iter_with_progress(items: Sequence[T], what: str, unit: str) -> Iterator[T]:
    """Yield the items; log progress once they have taken ``QUIET_S`` seconds."""
    quiet_until = time.monotonic() + QUIET_S
    progress = None
    with contextlib.ExitStack() as stack:
        for done, item in enumerate(items):
            yield item
            if progress is not None:
                progress.add(1)
            elif time.monotonic() > quiet_until:
                progress = stack.enter_context(Progress(len(items), what, unit))
                progress.add(done + 1)
