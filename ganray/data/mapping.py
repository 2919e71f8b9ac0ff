"""Memory mapping of the images of a set of shards.

The pages belong to the page cache, which all processes of a machine share. Mapped memory whose file
is truncated raises SIGBUS, so shards are never changed once they have their name.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from ganray.data.format import HUGE_PAGE, PAGE, ShardSpec


class Mapping:
    """Memory map of the images of shards, which are added one at a time and in any order.

    Args:
        specs: The shards.
        side_by_side: Whether to map all shards into one reserved address range, as if they were one
            file, so that one call gathers over all of them. Requires Linux with pages of 4 KiB and
            shards of whole pages; otherwise each is mapped on its own.
    """

    def __init__(self, specs: list[ShardSpec], side_by_side: bool = True) -> None:
        self._specs = specs
        has_whole_pages = all(spec.num_bytes % PAGE == 0 for spec in specs[:-1])
        can_join = sys.platform == "linux" and mmap.PAGESIZE == PAGE and has_whole_pages
        self.joined: NDArray[np.uint8] | None = None
        """All images, uint8 (bytes,), if they are side by side. Reading a shard that is not mapped
        raises SIGSEGV."""
        self.pieces: list[NDArray[np.uint8] | None] = [None] * len(specs)
        """Images of each shard, uint8 (bytes,); None if it is not mapped."""
        if side_by_side and can_join:
            self._reserve()

    def add(self, number: int, start: int) -> None:
        """Map shard ``number``, whose images begin at byte ``start`` of its file."""
        spec = self._specs[number]
        with spec.path.open("rb") as file:
            if self.joined is None:
                # Map from the start of the file, because an offset must be a multiple of the page
                # size; copy on write, because torch warns of read-only memory.
                size = start + spec.num_bytes
                memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
                self.pieces[number] = np.frombuffer(memory, np.uint8, spec.num_bytes, start)
                return
            address = self._base + self._begins[number]
            flags = mmap.MAP_SHARED | _MAP_FIXED
            _map(address, spec.num_bytes, mmap.PROT_READ, flags, file.fileno(), start)
        if self._fits:
            # A hint that kernels may ignore or not know.
            _libc().madvise(address, spec.num_bytes, mmap.MADV_HUGEPAGE)
        begin = self._begins[number]
        self.pieces[number] = self.joined[begin : begin + spec.num_bytes]

    def drop(self, number: int) -> None:
        """Unmap shard ``number``, which must not be in use."""
        self.pieces[number] = None
        if self.joined is not None:
            address, size = self._base + self._begins[number], self._specs[number].num_bytes
            _map(address, size, _PROT_NONE, _RESERVED | _MAP_FIXED, -1, 0)

    def _reserve(self) -> None:
        sizes = [spec.num_bytes for spec in self._specs]
        self._begins = [sum(sizes[:number]) for number in range(len(sizes))]
        total = sum(sizes)
        # Huge pages save address translations, but are read from disk as a whole: up to 170 times
        # too much if they are evicted before most of their content is used.
        self._fits = 2 * total < free_bytes()
        address = _map(None, total + HUGE_PAGE, _PROT_NONE, _RESERVED, -1, 0)
        self._base = address + -address % HUGE_PAGE
        memory: Any = (ctypes.c_uint8 * total).from_address(self._base)
        # Unmapped when no array uses it; not at exit, as a thread may still be gathering.
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


def free_bytes(root: Path = Path("/")) -> int:
    """Return the free memory: the machine's, or the limit of the cgroup (container, scheduler).

    Args:
        root: Parent folder of ``proc`` and ``sys``.
    """
    return min([psutil.virtual_memory().available, *_cgroup_limits(root)])


def _cgroup_limits(root: Path) -> list[int]:
    """Return the limits of this process's cgroup and of its parents, of version 1 or 2."""
    groups, limits = root / "proc/self/cgroup", []
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        top = root / "sys/fs/cgroup" / controllers
        group = top / path.lstrip("/")  # a container sees only the top
        folders = [folder for folder in (group, *group.parents) if folder.is_relative_to(top)]
        files = [folder / name for folder in folders if (folder / name).exists()]
        limits += [file.read_text().strip() for file in files]
    return [int(limit) for limit in limits if limit.isdecimal()]  # or "max"
