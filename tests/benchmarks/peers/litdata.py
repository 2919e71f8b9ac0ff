"""LitData: chunks of 64 MB of raw bytes, joined to a batch by one copy."""

from collections.abc import Iterator

import torch
from litdata import StreamingDataLoader, StreamingDataset, optimize

from tests.benchmarks.images import BATCH, Images


def write_raw(images: Images) -> None:
    rows = [image.tobytes() for image in images.pixels()]
    optimize(
        fn=bytes,  # each input is the sample itself
        inputs=rows,
        output_dir=str(images.at("litdata-raw")),
        chunk_bytes="64MB",
        num_workers=1,
        verbose=False,
    )


class _Join:
    """Collate bytes: ten times cheaper than a tensor per image and ``torch.stack``."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __call__(self, samples: list[bytes]) -> torch.Tensor:
        return torch.frombuffer(bytearray().join(samples), dtype=torch.uint8).view(-1, *self.shape)


def raw(images: Images, threads: int) -> Iterator[torch.Tensor]:
    """One thread is the calling one; more are worker processes."""
    dataset = StreamingDataset(
        str(images.at("litdata-raw")), shuffle=True, drop_last=True, batch_decode=0
    )
    loader = StreamingDataLoader(
        dataset,
        batch_size=BATCH,
        num_workers=threads if threads > 1 else 0,
        persistent_workers=threads > 1,
        drop_last=True,
        collate_fn=_Join(images.shape),
    )
    while True:
        yield from loader
