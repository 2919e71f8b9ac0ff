"""FFCV: its own file, decoded by compiled threads; ``os_cache`` as for sets that fit in memory.

``pip install ffcv`` needs the headers of OpenCV and libturbojpeg, and pulls in ``opencv-python``,
which needs a display's libraries. What worked on Debian 12 with Python 3.11:

    apt-get install -y libopencv-dev libturbojpeg0-dev pkg-config
    pip install setuptools numba terminaltables pytorch-pfn-extras fastargs assertpy \
        opencv-python-headless
    LDFLAGS=-Wl,--as-needed pip install --no-deps --no-build-isolation --no-binary ffcv ffcv==1.0.2
"""

from collections.abc import Iterator

import numpy as np
import torch
from ffcv.fields import RGBImageField
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import ToTensor
from ffcv.writer import DatasetWriter
from PIL import Image

from tests.benchmarks.images import BATCH, SIZES, Images


class _Rows:
    """What FFCV's writer asks of a dataset."""

    def __init__(self, rows: list[np.ndarray]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray]:
        return (self.rows[index],)


def write_raw(images: Images) -> None:
    rows = [image.copy() for image in images.pixels()]
    _write(images, "raw", rows, RGBImageField(write_mode="raw"))


def write_jpeg(images: Images) -> None:
    """FFCV encodes JPEGs itself; same quality and subsampling as the originals."""
    rows = [np.asarray(Image.open(path).convert("RGB")) for path in images.jpeg_files()]
    _write(images, "jpeg", rows, RGBImageField(write_mode="jpg", jpeg_quality=86))


def _write(images: Images, name: str, rows: list[np.ndarray], field: RGBImageField) -> None:
    writer = DatasetWriter(str(images.at(f"ffcv-{name}")), {"image": field}, num_workers=1)
    writer.from_indexed_dataset(_Rows(rows))


def raw(images: Images, threads: int) -> Iterator[torch.Tensor]:
    yield from _batches(images, "raw", threads, SimpleRGBImageDecoder())


def jpeg(images: Images, threads: int) -> Iterator[torch.Tensor]:
    side = SIZES[images.size]
    crop = CenterCropRGBImageDecoder((side, side), ratio=1) if side else SimpleRGBImageDecoder()
    yield from _batches(images, "jpeg", threads, crop)


def _batches(images: Images, name: str, threads: int, decoder) -> Iterator[torch.Tensor]:
    loader = Loader(
        str(images.at(f"ffcv-{name}")),
        batch_size=BATCH,
        num_workers=threads,
        os_cache=True,
        order=OrderOption.RANDOM,
        drop_last=True,
        pipelines={"image": [decoder, ToTensor()]},
    )
    while True:
        for (batch,) in loader:
            yield batch
