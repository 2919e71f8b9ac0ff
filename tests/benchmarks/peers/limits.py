"""What memory allows: the same images in a RAM tensor, the most a reader of files can reach."""

from collections.abc import Iterator

import torch

from tests.benchmarks.images import BATCH, Images


def _in_ram(images: Images) -> torch.Tensor:
    pixels = torch.empty((images.count, *images.shape), dtype=torch.uint8)
    rows = pixels.numpy()
    for row, image in enumerate(images.pixels()):
        rows[row] = image
    return pixels


def read_batch(images: Images, threads: int) -> Iterator[torch.Tensor]:
    """Random rows into one kept buffer."""
    torch.set_num_threads(threads)
    pixels, out = _in_ram(images), torch.empty((BATCH, *images.shape), dtype=torch.uint8)
    while True:
        for ids in torch.randperm(images.count).split(BATCH):
            if len(ids) == BATCH:
                yield torch.index_select(pixels, 0, ids, out=out)


def memcpy(images: Images, threads: int) -> Iterator[torch.Tensor]:
    """One batch after the other, in order: no index, no jump."""
    pixels, out = _in_ram(images), torch.empty((BATCH, *images.shape), dtype=torch.uint8)
    while True:
        for rows in pixels.split(BATCH):
            if len(rows) == BATCH:
                yield out.copy_(rows)
