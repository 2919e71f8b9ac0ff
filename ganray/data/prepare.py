"""Decide which images a run trains on, and lay them down as shards once."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from ganray.config import DataConfig
from ganray.data import faces
from ganray.data.convert import write_shards
from ganray.data.shards import MANIFEST, Manifest
from ganray.data.sources import CelebA
from ganray.progress import Progress

# Faces are drawn with this seed whatever a run's own seed is: runs that differ in
# train.rng_seed must see the same data, or their comparison would mix both.
_FACES_SEED = 0
_JPEG_BYTES = 7_500
_CELEBA_SIZES = {"all": 202_599, "train": 162_770, "valid": 19_867, "test": 19_962}


@dataclass(frozen=True)
class DataPlan:
    """What will be read and written, found without reading an image."""

    source: Path
    """Folder with the pictures in CelebA's layout."""
    drawn: bool
    """The pictures are procedural faces, made into `source` first."""
    count: int
    """Images to convert."""
    image_shape: tuple[int, int, int]
    """(H, W, C) of the shards."""
    folder: Path
    """The shards."""

    @property
    def ready(self) -> bool:
        """Whether finished shards stand there already."""
        return (self.folder / MANIFEST).exists()

    @property
    def bytes(self) -> int:
        """Size of the shards."""
        height, width, channels = self.image_shape
        return self.count * height * width * channels

    def __str__(self) -> str:
        what = (
            "procedural faces (no CelebA was given)" if self.drawn else f"CelebA in {self.source}"
        )
        return f"{self.count:,} images of {what}"


def fetch(data: DataConfig, home: Path) -> None:
    """Let torchvision download CelebA, where data.download asks for it and it is not there yet.

    Raises:
        ValueError: it could not be had; the message says how to get it by hand.
    """
    if _to_download(data, home):
        CelebA.download(_celeba_folder(data, home))


def plan(data: DataConfig, home: Path) -> DataPlan:
    """Find the images and where their shards go.

    Raises:
        ValueError: the folder does not hold CelebA, the split has no images, or the disk has
            too little room.
    """
    shape = (data.size, data.size, 3) if data.size else (218, 178, 3)
    drawn = data.celeba is None and not data.download
    if drawn:
        source = home / "data" / f"faces-{data.drawn}"
        total, key = data.drawn, f"faces-{data.drawn}"
        if data.split != "all":
            raise ValueError(f"data.split={data.split} needs CelebA; give --data.celeba FOLDER")
    elif _to_download(data, home):
        source, total, key = _celeba_folder(data, home), _CELEBA_SIZES[data.split], "celeba"
    else:
        source = _celeba_folder(data, home)
        celeba = CelebA.open(source)
        total = len(celeba) if data.split == "all" else _rows(celeba, data.split)
        key = f"celeba-{celeba.fingerprint()[:8]}-{data.split}"
    count = min(data.images or total, total)
    if count == 0:
        raise ValueError(f"data.split={data.split} has no images in {source}; try all")
    size = data.size or "full"
    folder = home / "shards" / f"{key}-{count}-{size}"
    made = DataPlan(source, drawn, count, shape, folder)
    _check_room(made, home)
    return made


def prepare(data: DataConfig, made: DataPlan) -> Manifest:
    """Draw the faces if there are none, convert what is not converted yet."""
    if made.drawn and not made.ready:
        with Progress(data.drawn, "drawing faces", "faces") as progress:
            faces.write_celeba(made.source, data.drawn, _FACES_SEED, progress=progress.add)
    if made.ready:
        return Manifest.read(made.folder)
    return write_shards(
        CelebA.open(made.source),
        made.folder,
        size=data.size,
        images=made.count,
        split=data.split,
    )


def _celeba_folder(data: DataConfig, home: Path) -> Path:
    return (data.celeba or home / "data").expanduser().resolve()


def _to_download(data: DataConfig, home: Path) -> bool:
    if not data.download:
        return False
    folder = _celeba_folder(data, home)
    last = "list_eval_partition.txt"  # the one that torchvision fetches last
    return not any((at / last).exists() for at in (folder, folder / "celeba"))


def _rows(celeba: CelebA, split: str) -> int:
    return int((celeba.split == ("train", "valid", "test").index(split)).sum())


def _check_room(made: DataPlan, home: Path) -> None:
    if made.ready:
        return
    existing = next(p for p in (home, *home.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    need = made.bytes + (made.count * _JPEG_BYTES if made.drawn else 0)
    if need > free:
        raise ValueError(
            f"home={home} has {free / 2**30:.1f} GiB free, but the shards need"
            f" {need / 2**30:.1f} GiB; use another --home, --data.size 64 or fewer --data.images"
        )
