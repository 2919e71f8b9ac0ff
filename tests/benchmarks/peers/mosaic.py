"""MosaicML streaming: MDS shards of raw arrays, read from local disk."""

import warnings
from collections.abc import Iterator

import torch
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from streaming.base.util import clean_stale_shared_memory

from tests.benchmarks.images import BATCH, Images

warnings.filterwarnings("ignore", message=".*is not writable.*")  # its arrays are read-only


def write_raw(images: Images) -> None:
    columns = {"image": f"ndarray:uint8:{','.join(map(str, images.shape))}"}
    with MDSWriter(out=str(images.at("mosaic-raw")), columns=columns) as writer:
        for image in images.pixels():
            writer.write({"image": image})


def before_raw(images: Images) -> None:
    clean_stale_shared_memory()


def raw(images: Images, threads: int) -> Iterator[torch.Tensor]:
    dataset = StreamingDataset(local=str(images.at("mosaic-raw")), shuffle=True, batch_size=BATCH)
    loader = StreamingDataLoader(
        dataset, batch_size=BATCH, num_workers=threads, persistent_workers=True, drop_last=True
    )
    while True:
        for batch in loader:
            yield batch["image"]
