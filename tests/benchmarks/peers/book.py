"""The source text's file: one HDF5 dataset per image, read by its class, one image a batch."""

from collections.abc import Iterator

import h5py
import numpy as np
import torch
from torch.utils.data import Dataset

from tests.benchmarks.images import Images


def write_raw(images: Images) -> None:
    _write(images, "raw", {})


def write_gzip(images: Images) -> None:
    _write(images, "gzip", {"compression": "gzip", "compression_opts": 9})


def _write(images: Images, name: str, options: dict) -> None:
    with h5py.File(images.at(f"book-{name}"), "w") as file:
        for index, image in enumerate(images.pixels()):
            file.create_dataset(f"img_align_celeba/{index}.jpg", data=image, **options)


class CelebADataset(Dataset):
    """As the text has it, but without its division by 255: no row here makes floats."""

    def __init__(self, file: str) -> None:
        self.file_object = h5py.File(file, "r")
        self.dataset = self.file_object["img_align_celeba"]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> torch.Tensor:
        if index >= len(self.dataset):
            raise IndexError
        image = np.array(self.dataset[f"{index}.jpg"])
        return torch.from_numpy(image)


def raw(images: Images, threads: int) -> Iterator[torch.Tensor]:
    yield from _batches(images, "raw")


def gzip(images: Images, threads: int) -> Iterator[torch.Tensor]:
    yield from _batches(images, "gzip")


def _batches(images: Images, name: str) -> Iterator[torch.Tensor]:
    dataset = CelebADataset(str(images.at(f"book-{name}")))
    while True:
        for index in torch.randperm(len(dataset)).tolist():
            yield dataset[index][None]
