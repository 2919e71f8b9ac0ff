"""Hugging Face datasets: JPEGs in Arrow files, in torch format."""

from collections.abc import Iterator

import datasets
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from tests.benchmarks.images import BATCH, SIZES, Images

datasets.disable_progress_bars()


def write_jpeg(images: Images) -> None:
    files = list(map(str, images.jpeg_files()))
    dataset = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    dataset.save_to_disk(str(images.at("huggingface-jpeg")))  # puts the files' bytes in


def jpeg(images: Images, threads: int) -> Iterator[torch.Tensor]:
    dataset = datasets.load_from_disk(str(images.at("huggingface-jpeg")))
    side = SIZES[images.size]
    if side:
        transform = v2.Compose([v2.Resize(side), v2.CenterCrop(side), v2.PILToTensor()])
        dataset = dataset.with_transform(
            lambda rows: {"image": [transform(image) for image in rows["image"]]}
        )
    else:
        dataset = dataset.with_format("torch")
    loader = DataLoader(
        dataset,
        batch_size=BATCH,
        shuffle=True,
        num_workers=threads,
        persistent_workers=True,
        drop_last=True,
    )
    while True:
        for batch in loader:
            yield batch["image"]
