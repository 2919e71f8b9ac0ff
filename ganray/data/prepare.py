"""Decide which images a run trains on, lay them down as shards once, and open them."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ganray.config.schema import DataConfig, absolute
from ganray.data.format import MANIFEST, SPLITS, VERSION, ImageSource, Manifest, Shape
from ganray.data.loader import ImageDataset
from ganray.data.reader import ShardedDataset
from ganray.data.remote import RemoteShards
from ganray.data.source_text import SourceTextReader
from ganray.data.sources import faces, open_source
from ganray.data.writer import is_whole, write_shards
from ganray.errors import UserError
from ganray.progress import Progress

# Faces are drawn, and digits stacked, with this seed whatever a run's own seed is: runs that differ
# in train.rng_seed must see the same data, or their comparison would mix both.
_DATA_SEED = 0
_JPEG_BYTES = 7_500
_MNIST = {"all": 70_000, "train": 60_000, "valid": 0, "test": 10_000}
_STACKED = {"all": 154_000, "train": 128_000, "valid": 0, "test": 26_000}
_CELEBA = {"all": 202_599, "train": 162_770, "valid": 19_867, "test": 19_962}
_PUBLISHED: dict[str, tuple[dict[str, int], Shape, int]] = {
    "celeba": (_CELEBA, (218, 178, 3), 0),
    "mnist": (_MNIST, (28, 28, 1), 10),
    "fashion-mnist": (_MNIST, (28, 28, 1), 10),
    "stacked-mnist": (_STACKED, (28, 28, 3), 1000),
}
"""What a download brings: images by split, their shape and the number of classes."""


@dataclass(frozen=True)
class DatasetPlan:
    """What will be read and written, found without reading an image."""

    what: str
    """The images, in words."""
    procedural: bool
    """The pictures are procedural faces, made into `source` first."""
    source: Path | None
    """Folder or file with the pictures; None where the shards stand already."""
    count: int
    """ImageDataset to train on."""
    stored_shape: Shape
    """(H, W, C) of the shards."""
    image_shape: Shape
    """(H, W, C) that the networks see."""
    location: str
    """The shards: a folder, or a URL without its password; or a file that is read in place."""
    bytes: int
    """Size of the shards, about."""
    ready: bool
    """Whether nothing is to be written."""
    classes: int
    """Classes that the images are labelled with; 0 for none."""

    def __str__(self) -> str:
        return f"{self.count:,} images of {self.what}"


def fetch(data: DataConfig, home: Path) -> DataConfig:
    """Let torchvision download the source, where it is asked for and not there yet.

    Returns:
        What to go on with: scikit-learn's digits where MNIST was not asked for at a place of its
        own, and there is no network.

    Raises:
        ValueError: it could not be had; the message says how to get it by hand.
    """
    if not _to_download(data, home):
        return data
    print(f"fetching {data.source} into {_root(data, home)}", flush=True)
    try:
        open_source(data.source, _root(data, home), download=True)
    except ValueError as error:
        if data.source != "mnist" or data.root is not None:
            raise
        print(
            "NO MNIST WAS FOUND OR FETCHED: this run learns scikit-learn's 8x8 digits, a stand-in."
            " For the real one: --data.root FOLDER, the folder that holds MNIST/raw."
            f" ({str(error)[:160]}...)",
            flush=True,
        )
        return replace(data, source="digits", download=False)
    return data


def plan_dataset(data: DataConfig, home: Path) -> DatasetPlan:
    """Find the images and where their shards go.

    Raises:
        ValueError: the images are not there, the split has none, or the disk has too little room.
    """
    if data.is_remote():
        remote = open_remote(data)
        return _finished(data, remote.manifest, str(remote))
    root = _root(data, home)
    if (root / MANIFEST).exists():
        return _finished(data, Manifest.read(root), str(root))
    if data.source == "source-text" and not data.size and data.encoding == "raw":
        return _in_place(data, home, root)
    made = _to_convert(data, home, root)
    check_room([made], home)
    return made


def prepare_dataset(data: DataConfig, made: DatasetPlan) -> str:
    """Draw the faces if there are none, convert what is not converted yet.

    Returns:
        16 hex digits that stand for the images.
    """
    if data.is_remote():
        return open_remote(data).manifest.digest()
    where = Path(made.location)
    if made.source is None:
        return Manifest.read(where).digest() if where.is_dir() else str(where.stat().st_size)
    if is_whole(where):
        return Manifest.read(where).digest()
    if made.procedural and not faces.is_written(made.source, data.faces, _DATA_SEED):
        with Progress(data.faces, "drawing faces", "faces") as progress:
            faces.write_celeba(made.source, data.faces, _DATA_SEED, progress=progress.add)
    source = open_source(data.source, made.source, rng_seed=_DATA_SEED)
    return write_shards(
        source,
        where,
        size=0 if data.encoding == "jpeg" else data.size,
        images=made.count,
        split=data.split,
        encoding=data.encoding,
    ).digest()


def dataset_identity(data: DataConfig, made: DatasetPlan, home: Path) -> str:
    """Return 16 hex digits that tell the images that `prepare` left from others, wherever they are.

    Other than the digest they stay where shards of the same images are made anew.
    """
    if data.is_remote():
        return open_remote(data).manifest.recipe.digest()
    where = Path(made.location)
    if where.is_dir():
        return Manifest.read(where).recipe.digest()
    return SourceTextReader(where, home / "data").fingerprint()


def open_dataset(data: DataConfig, home: Path, where: str) -> ImageDataset:
    """Open what `prepare` left, in the process that reads it.

    Args:
        data: How to read.
        home: For the index of a file that is read in place.
        where: `DatasetPlan.location`.
    """
    if data.is_remote():
        folder: Path | RemoteShards = open_remote(data)
    elif Path(where).is_file():
        return SourceTextReader(Path(where), home / "data")
    else:
        folder = Path(where)
    manifest = folder.manifest if isinstance(folder, RemoteShards) else Manifest.read(folder)
    return ShardedDataset(
        folder,
        size=data.size if manifest.recipe.encoding == "jpeg" else 0,
        threads=data.threads,
        verify=data.verify,
    )


def open_remote(data: DataConfig) -> RemoteShards:
    """Ask for the manifest behind `data.root`; the shards come when they are needed."""
    limit = None if data.cache_gb is None else int(data.cache_gb * 1e9)
    cache = absolute("data.cache", data.cache)
    return RemoteShards(data.root or "", cache, limit_bytes=limit)


def _finished(data: DataConfig, manifest: Manifest, where: str) -> DatasetPlan:
    """Plan to read shards that somebody made."""
    stored, size = manifest.image_shape, data.size
    if manifest.recipe.encoding == "raw" and size not in (0, stored[0]):
        raise UserError(
            f"data.size={size}: {where} holds pixels of {stored[0]}x{stored[1]}; "
            f"use --data.size {stored[0] if stored[0] == stored[1] else 0}, or JPEG shards, which "
            "give any size"
        )
    if data.images not in (None, manifest.num_images):
        raise UserError(
            f"data.images={data.images}: {where} holds {manifest.num_images} images, all of which "
            "are used; leave it out, or make shards with fewer"
        )
    total = sum(shard.bytes for shard in manifest.shards)
    what = f"{manifest.recipe.source} in {where}"
    shape = _seen(data, stored)
    classes, count = len(manifest.class_names), manifest.num_images
    return DatasetPlan(what, False, None, count, stored, shape, where, total, True, classes)


def _in_place(data: DataConfig, home: Path, path: Path) -> DatasetPlan:
    """Plan to read the source text's own file, where it can be; its index is made here."""
    images = SourceTextReader(path, home / "data")
    if data.images not in (None, len(images)) or data.split != "all":
        raise UserError(
            f"data.images={data.images}, data.split={data.split}: {path} is read in place, all of "
            "it; leave them out, or make shards of a part with jobs/shard.py"
        )
    stored = images.image_shape
    shape = _seen(data, stored)
    size = path.stat().st_size
    what = f"{data.source} in {path}, in place"
    return DatasetPlan(what, False, None, len(images), stored, shape, str(path), size, True, 0)


def _to_convert(data: DataConfig, home: Path, root: Path) -> DatasetPlan:
    drawn = data.source == "celeba" and data.root is None and not data.download
    if drawn:
        if data.split != "all":
            raise UserError(f"data.split={data.split} needs CelebA; give --data.root FOLDER")
        # Not opened yet: a set of this many is drawn in the same way each time.
        total, original, key = data.faces, (218, 178, 3), f"faces-{data.faces}"
        classes = 0
        what = "procedural faces (no CelebA was given)"
        root = home / "data" / f"faces-{data.faces}"
    elif _to_download(data, home):
        counts, original, classes = _PUBLISHED[data.source]
        total, key, what = counts[data.split], data.source, f"{data.source}, to be fetched"
    else:
        source = _open(data.source, root)
        total, original = _rows(source, data.split), source.image_shape
        classes = len(source.class_names)
        key = f"{data.source}-{source.fingerprint()[:8]}-{data.split}"
        what = f"{data.source} in {root}" if data.source != "digits" else "scikit-learn's digits"
    count = min(data.images or total, total)
    if count == 0:
        raise UserError(f"data.split={data.split} has no images in {root}; try all")
    if data.encoding == "jpeg":
        stored, size_bytes, size = original, count * _JPEG_BYTES, "jpeg"
    else:
        stored = (data.size, data.size, original[2]) if data.size else original
        size_bytes, size = count * stored[0] * stored[1] * stored[2], str(data.size or "full")
    # The version is in the name: another ganray's shards are left alone and made anew.
    where = home / "shards" / f"v{VERSION}-{key}-{count}-{size}"
    shape = _seen(data, original)
    ready = is_whole(where)
    return DatasetPlan(
        what, drawn, root, count, stored, shape, str(where), size_bytes, ready, classes
    )


@functools.lru_cache(maxsize=8)  # planned and then converted: opening reads every file's header
def _open(name: str, root: Path) -> ImageSource:
    return open_source(name, root, rng_seed=_DATA_SEED)


def _seen(data: DataConfig, stored: Shape) -> Shape:
    """Return what the networks see of images stored, or decoded, in this shape."""
    sides = (data.size, data.size) if data.size else stored[:2]
    return data.cropped_shape((*sides, stored[2]))


def _root(data: DataConfig, home: Path) -> Path:
    return absolute("data.root", Path(data.root or home / "data"))


def _to_download(data: DataConfig, home: Path) -> bool:
    """Whether torchvision has something left to fetch."""
    if not data.download or data.is_remote() or data.source not in _PUBLISHED:
        return False
    try:
        _open(data.source, _root(data, home))
    except ValueError:
        return True
    return False


def _rows(source: ImageSource, split: str) -> int:
    return len(source) if split == "all" else int((source.split == SPLITS.index(split)).sum())


def check_room(plans: Iterable[DatasetPlan], home: Path) -> None:
    """Refuse shards that the disk has too little room for; those of one place count once.

    Raises:
        ValueError: the shards that are still to be made need more than is free.
    """
    existing = next(p for p in (home, *home.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    made = {plan.location: plan for plan in plans if not plan.ready}.values()
    need = sum(plan.bytes + (plan.count * _JPEG_BYTES if plan.procedural else 0) for plan in made)
    if need > free:
        raise UserError(
            f"home={home} has {free / 2**30:.1f} GiB free, but the shards need"
            f" {need / 2**30:.1f} GiB; use another --home, --data.size 64 or fewer --data.images"
        )
