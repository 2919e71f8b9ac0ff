"""The images that every variant reads: one set of faces, as JPEG files and decoded at two sizes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ganray.data.format import VERSION
from ganray.data.reader import ShardedDataset
from ganray.data.sources import faces
from ganray.data.sources.celeba import CelebA
from ganray.data.writer import write_shards

BATCH = 128
SIZES = {"64x64": 64, "218x178": 0}
"""By name, what ``write_shards`` calls it: 0 keeps CelebA's own size."""
FACES_SEED = 0


def shape_of(size: str) -> tuple[int, int, int]:
    """Return (H, W, C) of ``64x64`` or ``218x178``."""
    height, width = map(int, size.split("x"))
    return height, width, 3


@dataclass(frozen=True)
class Images:
    """One set at one size, and where each format of it is kept."""

    folder: Path
    """Of this set: ``jpeg``, ``64x64`` and ``218x178`` are in it."""
    size: str
    """``64x64`` or ``218x178``."""
    count: int
    """How many this variant reads: the first of the set."""
    total: int
    """How many the set has at this size."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return shape_of(self.size)

    @property
    def jpeg_folder(self) -> Path:
        """The original files, 218x178 at any ``size``, in one class folder ``0``."""
        return self.folder / "jpeg" / "files"

    def jpeg_files(self) -> list[Path]:
        """Return the files that this variant reads."""
        return sorted((self.jpeg_folder / "0").iterdir())[: self.count]

    @property
    def shards(self) -> Path:
        """ganray's raw shards of the whole set: the raw peers' files are written from them."""
        return self.folder / self.size / f"ganray-raw-v{VERSION}"

    @property
    def sums_file(self) -> Path:
        """Sum of each image's bytes: a reader whose batch has others reads something else."""
        return self.folder / self.size / f"sums-{self.total}.npy"

    def at(self, format_name: str) -> Path:
        """Return where a format of these images is kept; JPEGs are the same for both sizes."""
        size = "jpeg" if format_name.endswith("jpeg") else self.size
        return self.folder / size / f"{format_name}-{self.count}"

    def pixels(self) -> Iterator[np.ndarray]:
        """Yield each image, uint8 (H, W, C); valid until the next."""
        reader = ShardedDataset(self.shards)
        for first in range(0, self.count, BATCH):
            ids = np.arange(first, min(first + BATCH, self.count))
            out = torch.empty((len(ids), *self.shape), dtype=torch.uint8)
            reader.read_batch(ids, out)
            yield from out.numpy()


def prepare_set(cache: Path, celeba: Path | None, jpegs: int, small: int) -> Path:
    """Make what all formats are written from: faces, JPEG files, raw shards at both sizes.

    Args:
        cache: The benchmark's folder.
        celeba: A set in CelebA's layout; None draws faces.
        jpegs: Images at 218x178, and JPEG files.
        small: Images at 64x64.

    Returns:
        The folder of the set.
    """
    if celeba is None:
        celeba = cache / f"faces-{small}"
        faces.write_celeba(celeba, small, FACES_SEED)
    source = CelebA.open(celeba)
    folder = cache / f"{source.fingerprint()[:8]}-{jpegs}-{small}"
    _write_jpegs(source, Images(folder, "218x178", jpegs, jpegs).jpeg_folder, jpegs)
    for size, count in {"64x64": small, "218x178": jpegs}.items():
        images = Images(folder, size, count, count)
        write_shards(source, images.shards, size=SIZES[size], images=count)
        if not images.sums_file.exists():
            np.save(images.sums_file, [int(image.sum(dtype=np.int64)) for image in images.pixels()])
    (folder / "source.txt").write_text(str(celeba.resolve()))
    return folder


def source_of(folder: Path) -> CelebA:
    """Open the set that ``folder`` was made from."""
    return CelebA.open(Path((folder / "source.txt").read_text()))


def _write_jpegs(source: CelebA, folder: Path, count: int) -> None:
    """Lay the first files out as torchvision's ``ImageFolder`` wants them."""
    if folder.exists():
        return
    part = folder.with_name("files.part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "0").mkdir(parents=True)
    for index in range(count):
        (part / "0" / source.files[index]).write_bytes(source.read_bytes(index))
    part.rename(folder)
