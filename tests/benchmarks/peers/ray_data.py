"""Ray Data: Parquet files, their order and a local buffer shuffled, batches through the store."""

import io
import logging
from collections.abc import Iterator

import numpy as np
import pyarrow
import pyarrow.parquet
import ray
import ray.data
import torch
from PIL import Image

from tests.benchmarks.images import BATCH, SIZES, Images

FILES = 16
BUFFER = 1024  # rows that are mixed


def write_raw(images: Images) -> None:
    images.at("ray-raw").mkdir()
    before_raw(images)
    rows = np.stack([image.copy() for image in images.pixels()])
    for part in np.array_split(rows, FILES):
        ray.data.from_numpy(part).write_parquet(str(images.at("ray-raw")))


def write_jpeg(images: Images) -> None:
    folder = images.at("ray-jpeg")
    folder.mkdir()
    for number, files in enumerate(np.array_split(np.array(images.jpeg_files()), FILES)):
        table = pyarrow.table({"bytes": [path.read_bytes() for path in files]})
        pyarrow.parquet.write_table(table, folder / f"{number:02d}.parquet")


def before_raw(images: Images) -> None:
    """Start Ray on this machine; a training job of this project would have it running."""
    ray.init(
        address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False


before_jpeg = before_raw
after = ray.shutdown


def raw(images: Images, threads: int) -> Iterator[torch.Tensor]:
    dataset = ray.data.read_parquet(str(images.at("ray-raw")), shuffle="files")
    yield from _batches(dataset, "data")


def jpeg(images: Images, threads: int) -> Iterator[torch.Tensor]:
    side = SIZES[images.size]

    def decode(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        # Here, because a Ray worker need not find this module.
        from torchvision.transforms import v2

        resize = v2.Compose([v2.Resize(side), v2.CenterCrop(side)]) if side else v2.Identity()
        pictures = (Image.open(io.BytesIO(data)).convert("RGB") for data in batch["bytes"])
        return {"image": np.stack([np.asarray(resize(picture)) for picture in pictures])}

    dataset = ray.data.read_parquet(str(images.at("ray-jpeg")), shuffle="files")
    yield from _batches(dataset.map_batches(decode, batch_size=BATCH), "image")


def _batches(dataset: ray.data.Dataset, column: str) -> Iterator[torch.Tensor]:
    while True:
        for batch in dataset.iter_torch_batches(
            batch_size=BATCH, local_shuffle_buffer_size=BUFFER, drop_last=True
        ):
            yield batch[column]
