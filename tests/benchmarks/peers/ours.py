"""ganray's own reader and loader, through its public names."""

import ctypes
import itertools
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from ganray.data.loader import Loader
from ganray.data.reader import ShardedDataset
from ganray.data.sampler import DeterministicSampler
from ganray.data.writer import write_shards
from tests.benchmarks.images import BATCH, SIZES, Images, source_of

PREFETCH = 1  # the Loader's default


def ring_bytes(batch_bytes: int) -> int:
    """Return what the Loader's documentation says it holds: the waiting buffers and one more."""
    return (PREFETCH + 1) * max(1, 6 * 2**20 // batch_bytes) * batch_bytes


def write_jpeg(images: Images) -> None:
    source = source_of(images.folder)
    write_shards(source, images.at("ours-jpeg"), images=images.count, encoding="jpeg")


def in_line(images: Images, threads: int) -> Iterator[torch.Tensor]:
    """Gather into one kept buffer, where the batch is asked for."""
    yield from _gather(ShardedDataset(images.shards, threads=threads))


def jpeg(images: Images, threads: int) -> Iterator[torch.Tensor]:
    """The same from shards of JPEG files, which are resized while they are read."""
    side = SIZES[images.size]
    yield from _gather(ShardedDataset(images.at("ours-jpeg"), size=side, threads=threads))


def _gather(reader: ShardedDataset) -> Iterator[torch.Tensor]:
    order, out = (
        DeterministicSampler(len(reader), 0),
        torch.empty((BATCH, *reader.image_shape), dtype=torch.uint8),
    )
    for step in itertools.count():
        reader.read_batch(order.rank_indices(step, BATCH, 0, 1), out)
        yield out


def through_thread(images: Images, threads: int) -> Iterator[torch.Tensor]:
    """As the training loop reads: a thread gathers ahead."""
    reader = ShardedDataset(images.shards, threads=threads)
    order = DeterministicSampler(len(reader), 0)
    with Loader(
        reader,
        order,
        batch_size=BATCH,
        rank=0,
        world_size=1,
        device="cpu",
        prefetch=PREFETCH,
    ) as loader:
        yield from loader


def cold(images: Images, threads: int) -> Iterator[torch.Tensor]:
    """One epoch in line from files that are not in the page cache; see ``before_cold``."""
    return itertools.islice(in_line(images, threads), images.count // BATCH)


def before_cold(images: Images) -> None:
    """Evict the shards from the page cache, and make sure that they are gone."""
    files = list(images.shards.glob("shard-*.h5"))
    for path in files:
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)  # the kernel keeps what is not on disk yet
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
    left = sum(map(_cached_pages, files)) * mmap.PAGESIZE
    size = sum(path.stat().st_size for path in files)
    if left > size / 100:
        raise RuntimeError(f"{left / size:.0%} of the shards stay in the page cache")


def _cached_pages(path: Path) -> int:
    """Count the pages of a file that are in memory."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as memory:
        view = (ctypes.c_char * size).from_buffer(memory)
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(size), pages)
        del view  # or the map could not be closed
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return sum(page & 1 for page in pages)
