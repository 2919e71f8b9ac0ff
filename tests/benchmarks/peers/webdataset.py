"""WebDataset: tar files read in order, mixed by a buffer of 1,000 samples."""

from collections.abc import Iterator

import numpy as np
import torch
import webdataset
from torchvision.transforms import v2

from tests.benchmarks.images import BATCH, SIZES, Images

SHARDS = 8  # so that each worker has several


def write_raw(images: Images) -> None:
    _write(images, "raw", ({"bin": image.tobytes()} for image in images.pixels()))


def write_jpeg(images: Images) -> None:
    _write(images, "jpeg", ({"jpg": path.read_bytes()} for path in images.jpeg_files()))


def _write(images: Images, name: str, samples: Iterator[dict[str, bytes]]) -> None:
    folder = images.at(f"webdataset-{name}")
    folder.mkdir()
    most = -(-images.count // SHARDS)
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=most, verbose=0) as writer:
        for index, sample in enumerate(samples):
            writer.write({"__key__": f"{index:06d}", **sample})


def raw(images: Images, threads: int) -> Iterator[torch.Tensor]:
    def join(samples: list[tuple[bytes]]) -> torch.Tensor:
        data = bytearray().join(data for (data,) in samples)
        return torch.frombuffer(data, dtype=torch.uint8).view(-1, *images.shape)

    samples = _open(images, "raw").to_tuple("bin")
    yield from _load(samples.batched(BATCH, collation_fn=join, partial=False), threads)


def jpeg(images: Images, threads: int) -> Iterator[torch.Tensor]:
    side = SIZES[images.size]
    resize = v2.Compose([v2.Resize(side), v2.CenterCrop(side)]) if side else v2.Identity()
    samples = _open(images, "jpeg").decode("pil").to_tuple("jpg")

    def as_tensor(sample: tuple) -> torch.Tensor:
        return torch.from_numpy(np.array(resize(sample[0])))

    batches = samples.map(as_tensor).batched(BATCH, collation_fn=torch.stack, partial=False)
    yield from _load(batches, threads)


def _open(images: Images, name: str) -> webdataset.WebDataset:
    urls = sorted(map(str, images.at(f"webdataset-{name}").glob("*.tar")))
    return webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(1000)


def _load(batches: webdataset.WebDataset, threads: int) -> Iterator[torch.Tensor]:
    """One thread is the calling one; more are worker processes."""
    workers = threads if threads > 1 else 0
    loader = webdataset.WebLoader(
        batches, batch_size=None, num_workers=workers, persistent_workers=workers > 0
    )
    while True:
        yield from loader
