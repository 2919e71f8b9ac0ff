"""The tutorial pipeline: torchvision's ImageFolder and torch's DataLoader with worker processes."""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from tests.benchmarks.images import BATCH, SIZES, Images


def jpeg(images: Images, threads: int) -> Iterator[torch.Tensor]:
    side = SIZES[images.size]
    resize = [v2.Resize(side), v2.CenterCrop(side)] if side else []
    dataset = ImageFolder(
        str(images.jpeg_folder), transform=v2.Compose([*resize, v2.PILToTensor()])
    )
    loader = DataLoader(
        dataset,
        batch_size=BATCH,
        shuffle=True,
        num_workers=threads,
        persistent_workers=True,
        drop_last=True,
    )
    while True:
        for batch, _ in loader:
            yield batch
