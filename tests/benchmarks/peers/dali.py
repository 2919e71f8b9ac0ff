"""NVIDIA DALI: its CPU pipeline over JPEG files."""

from collections.abc import Iterator

import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.base_iterator import LastBatchPolicy
from nvidia.dali.plugin.pytorch import DALIGenericIterator

from tests.benchmarks.images import BATCH, SIZES, Images


@pipeline_def
def _pipeline(files: list[str], side: int):
    encoded, _ = fn.readers.file(files=files, random_shuffle=True, name="reader")
    decoded = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
    if side:
        decoded = fn.resize(decoded, resize_shorter=side)
        decoded = fn.crop(decoded, crop=(side, side))
    return decoded


def jpeg(images: Images, threads: int) -> Iterator[torch.Tensor]:
    files = list(map(str, images.jpeg_files()))
    pipeline = _pipeline(
        files, SIZES[images.size], batch_size=BATCH, num_threads=threads, device_id=None
    )
    batches = DALIGenericIterator(
        pipeline,
        ["image"],
        reader_name="reader",
        last_batch_policy=LastBatchPolicy.DROP,
        auto_reset=True,
    )
    while True:
        for (batch,) in batches:
            yield batch["image"]
