"""Write many images of a generator as PNG files, for tools that measure folders of images."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ganray.commands.load_generator import TrainedGenerator
from ganray.config.commands import ExploreConfig
from ganray.data.sources.image_folder import STYLEGAN_LABELS
from ganray.data.transforms import to_uint8
from ganray.distributed import local_device
from ganray.errors import UserError
from ganray.files import cannot_write, write_atomic
from ganray.gan.latents import truncate
from ganray.progress import Progress

logger = logging.getLogger(__name__)

_FOLDER_SIZE = 1000
"""Images per folder, whose latents are drawn together."""
_BATCH_SIZE = 100
"""Images that are generated at once."""


def generate_images(
    generator: TrainedGenerator, options: ExploreConfig, count: int, folder: Path
) -> None:
    """Write images as 00000/img00000000.png and so on, in folders of 1,000.

    Image i is a function of rng_seed, psi, label and i, so a larger count adds to the same first
    images. Images of a conditional generator cycle through the classes unless options.label names
    one, and ``dataset.json`` has their labels in the format of StyleGAN's tools, so that the
    folder is a source of ganray. The folder is complete or absent. The images are generated on a
    GPU if there is one.

    Args:
        generator: The generator.
        options: Seed, truncation and label.
        count: Number of images.
        folder: Folder of the images, which must not exist.

    Raises:
        UserError: The folder exists, or the disk is full.
    """
    if folder.exists():
        raise UserError(f"{folder}: exists; delete it, or name another folder with --out")
    names = [f"{i // _FOLDER_SIZE:05d}/img{i:08d}.png" for i in range(count)]
    labels = torch.arange(count) % max(generator.classes, 1)
    if options.label is not None:
        labels.fill_(options.label)
    generator = generator.to(local_device())
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent)
        part = Path(temporary) / folder.name  # in it, as mkdtemp's folder is of this user only
        for i in range(0, count, _FOLDER_SIZE):
            (part / names[i]).parent.mkdir(parents=True)
        _write(generator, options, labels, [part / name for name in names])
        if generator.classes:
            pairs = list(zip(names, labels.tolist(), strict=True))
            write_atomic(part / STYLEGAN_LABELS, json.dumps({"labels": pairs}))
        part.rename(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    also = f" and {STYLEGAN_LABELS}" if generator.classes else ""
    logger.info(f"images      {count:,}{also} in {folder}, not in MLflow")


def _write(
    generator: TrainedGenerator, options: ExploreConfig, labels: torch.Tensor, paths: list[Path]
) -> None:
    what = f"{generator.config.name} -> PNG on {generator.device.type}"
    with ThreadPoolExecutor() as pool, Progress(len(paths), what, "images") as progress:
        for z, chosen in zip(
            _latents(generator, options, len(paths)), labels.split(_BATCH_SIZE), strict=True
        ):
            with torch.no_grad():
                batch = to_uint8(generator.generate(z, chosen), generator.config.pixel_min())
            done = progress.done
            written = pool.map(_save, batch.cpu().numpy(), paths[done : done + len(z)])
            progress.add(sum(1 for _ in written))  # raises what a thread raised


def _latents(
    generator: TrainedGenerator, options: ExploreConfig, count: int
) -> Iterator[torch.Tensor]:
    """Yield the latents in batches."""
    for first in range(0, count, _FOLDER_SIZE):
        # A whole folder always, because the first latents would depend on the number.
        z = generator.latents(_FOLDER_SIZE, options.rng_seed, "images", first // _FOLDER_SIZE)
        z = z[: count - first]
        yield from truncate(generator.config.latent, z, options.psi).split(_BATCH_SIZE)


def _save(image: np.ndarray, path: Path) -> None:
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(path)
