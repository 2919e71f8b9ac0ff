"""The images of a set of shards as memory of this process.

The pages belong to the page cache, shared by all processes of a machine. Memory whose file was
shortened raises SIGBUS, so shards are never changed once they have their name.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ganray.data.format import HUGE_PAGE, PAGE, ShardSpec
from ganray.data.memory import free_bytes


class Mapping:
    """Maps the images of each shard, one at a time and in any order.

    Args:
        places: The shards of the set.
        side_by_side: Map all of them into one reserved range of addresses, as if they were one
            file, so that one call gathers over all of them. Needs Linux with pages of 4 KiB and
            shards of whole pages; where one of these is missing they are mapped one by one.
    """

    def __init__(self, places: list[ShardSpec], side_by_side: bool = True) -> None:
        self._places = places
        whole_pages = all(place.num_bytes % PAGE == 0 for place in places[:-1])
        can_join = sys.platform == "linux" and mmap.PAGESIZE == PAGE and whole_pages
        self.joined: NDArray[np.uint8] | None = None
        """All pictures, uint8 (bytes,), where they are side by side. What is not mapped yet must
        not be read: that would be a SIGSEGV."""
        self.pieces: list[NDArray[np.uint8] | None] = [None] * len(places)
        """The pictures of each shard, uint8 (bytes,); None where it is not mapped."""
        if side_by_side and can_join:
            self._reserve()

    def add(self, number: int, start: int) -> None:
        """Map shard ``number``, whose pictures begin at byte ``start`` of its file."""
        place = self._places[number]
        with place.path.open("rb") as file:
            if self.joined is None:
                # From the file's start, as an offset must be a multiple of the machine's page size.
                # Copy on write: nothing is written, but torch warns of memory that is read-only.
                size = start + place.num_bytes
                memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
                self.pieces[number] = np.frombuffer(memory, np.uint8, place.num_bytes, start)
                return
            address = self._base + self._begins[number]
            flags = mmap.MAP_SHARED | _MAP_FIXED
            _map(address, place.num_bytes, mmap.PROT_READ, flags, file.fileno(), start)
        if self._fits:
            # Not every kernel can, and none must.
            _libc().madvise(address, place.num_bytes, mmap.MADV_HUGEPAGE)
        begin = self._begins[number]
        self.pieces[number] = self.joined[begin : begin + place.num_bytes]

    def drop(self, number: int) -> None:
        """Unmap shard ``number``, which must not be in use."""
        self.pieces[number] = None
        if self.joined is not None:
            address, size = self._base + self._begins[number], self._places[number].num_bytes
            _map(address, size, _PROT_NONE, _RESERVED | _MAP_FIXED, -1, 0)

    def _reserve(self) -> None:
        sizes = [place.num_bytes for place in self._places]
        self._begins = [sum(sizes[:number]) for number in range(len(sizes))]
        total = sum(sizes)
        # Huge pages save an address look-up for every 4 KiB, and are read from a disk in one piece.
        # That would read up to 170 times too much if they had to leave before most of it is used.
        self._fits = 2 * total < free_bytes()
        address = _map(None, total + HUGE_PAGE, _PROT_NONE, _RESERVED, -1, 0)
        self._base = address + -address % HUGE_PAGE
        memory: Any = (ctypes.c_uint8 * total).from_address(self._base)
        # Lives as long as an array needs it. Not undone at exit: a thread may still be gathering.
        weakref.finalize(memory, _libc().munmap, address, total + HUGE_PAGE).atexit = False
        self.joined = np.frombuffer(memory, np.uint8)


_PROT_NONE, _MAP_FIXED = 0, 0x10
_RESERVED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


def _map(address: int | None, size: int, prot: int, flags: int, fd: int, offset: int) -> int:
    """Call mmap(2): Python's own cannot choose the address."""
    result = _libc().mmap(address, size, prot, flags, fd, offset)
    if result == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, f"mmap of {size} bytes: {os.strerror(number)}")
    return result
