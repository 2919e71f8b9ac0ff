"""Locate the images of a run, convert them to shards once, and open the shards."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ganray.config.schema import DataConfig, absolute
from ganray.config.serialization import without_secrets
from ganray.data.format import MANIFEST, SPLITS, VERSION, Manifest, Shape
from ganray.data.loader import ImageDataset
from ganray.data.reader import ShardedDataset
from ganray.data.remote import RemoteShards
from ganray.data.sources import (
    ImageSource,
    SourceOptions,
    faces,
    notes_of,
    open_source,
    source_options,
)
from ganray.data.storage import Storage
from ganray.data.subset import Subset
from ganray.data.writer import is_complete, write_shards
from ganray.errors import UserError
from ganray.progress import Progress

logger = logging.getLogger(__name__)

# Seed of procedural faces and stacked digits. It does not depend on train.rng_seed: replicates must
# train on the same data, or their comparison would mix both.
_DATA_SEED = 0
_JPEG_BYTES = 7_500
"""Estimated size of a JPEG image of 218x178 pixels."""
_MNIST = {"all": 70_000, "train": 60_000, "valid": 0, "test": 10_000}
_STACKED = {"all": 154_000, "train": 128_000, "valid": 0, "test": 26_000}
_CIFAR10 = {"all": 60_000, "train": 50_000, "valid": 0, "test": 10_000}
_CELEBA = {"all": 202_599, "train": 162_770, "valid": 19_867, "test": 19_962}
_PUBLISHED: dict[str, tuple[dict[str, int], Shape, int]] = {
    "celeba": (_CELEBA, (218, 178, 3), 0),
    "mnist": (_MNIST, (28, 28, 1), 10),
    "fashion-mnist": (_MNIST, (28, 28, 1), 10),
    "stacked-mnist": (_STACKED, (28, 28, 3), 1000),
    "cifar10": (_CIFAR10, (32, 32, 3), 10),
}
"""Contents of a download: images by split, their shape, and the number of classes."""


@dataclass(frozen=True)
class DatasetPlan:
    """Images of a run and their shards, determined without reading an image."""

    description: str
    """Description of the images."""
    count: int
    """Number of images."""
    stored_shape: Shape
    """(H, W, C) of the images in the shards."""
    image_shape: Shape
    """(H, W, C) that the networks get."""
    location: str
    """Folder or URL of the shards."""
    bytes: int
    """Approximate size of the shards."""
    classes: int
    """Number of classes; 0: unlabeled."""
    ready: bool = True
    """Whether the shards exist."""
    source: Path | None = None
    """Folder or file to convert; None if the shards were given."""
    procedural: bool = False
    """Whether the images are procedural faces, which are drawn into `source` first."""
    notes: tuple[str, ...] = ()
    """Findings and omissions of the source, one line each."""
    has_classifier: bool = False
    """Whether the images have classes or attributes, on which a classifier can be trained."""

    def __str__(self) -> str:
        return f"{self.count:,} image{'s' * (self.count != 1)} of {self.description}"


def fetch(data: DataConfig, home: Path) -> DataConfig:
    """Let torchvision download the source if that is configured and it is not there yet.

    Returns:
        The config to continue with: scikit-learn's digits if MNIST cannot be downloaded and
        `data.root` was not set.

    Raises:
        UserError: The download failed; the message says how to get the data by hand.
    """
    if not _must_download(data, home):
        return data
    logger.info(f"downloading {data.source} into {_root(data, home)}")
    try:
        open_source(data.source, _root(data, home), download=True)
    except UserError as error:
        if data.source != "mnist" or data.root is not None:
            raise
        logger.warning(
            "MNIST was neither found nor downloaded, so this run trains on scikit-learn's 8x8"
            " digits; for MNIST: --data.root FOLDER, the folder that holds MNIST/raw."
            f" ({str(error)[:160]}...)"
        )
        return replace(data, source="digits", download=False)
    return data


def plan_dataset(data: DataConfig, home: Path, storage: Storage | None = None) -> DatasetPlan:
    """Locate the images and their shards.

    Shards in the storage are used where they, or the images, are not on this machine.

    Raises:
        UserError: The images are not there, the split is empty, or the disk has too little room.
    """
    if data.is_remote():
        remote = open_remote(data)
        return _plan_existing(data, remote.manifest, str(remote))
    if storage is None:
        return _plan_local(data, home)
    try:
        plan = _plan_local(data, home)
        if plan.ready:
            return plan
    except UserError as error:
        if stored := _plan_stored(data, storage):
            logger.info("the images are not on this machine, but shards of them are: %s", error)
            return stored
        raise
    stored = _plan_stored(data, storage)
    # The images may have changed since, and with them the name of the folder.
    if stored is None or f"/{Path(plan.location).name}-" not in stored.location:
        return plan
    return replace(plan, location=stored.location, count=stored.count, ready=True, source=None)


def _plan_local(data: DataConfig, home: Path) -> DatasetPlan:
    root = _root(data, home)
    if (root / MANIFEST).exists():
        return _plan_existing(data, Manifest.read(root), str(root))
    plan = _plan_conversion(data, home, root)
    check_room([plan], home)
    return plan


def prepare_dataset(data: DataConfig, plan: DatasetPlan) -> str:
    """Convert the images to shards unless they exist; procedural faces are drawn first.

    Returns:
        Digest of the shards, 16 hex digits.
    """
    if plan.source is None or is_complete(Path(plan.location)):
        return _digest(data, _open_shards(data, plan.location)[1])
    if plan.procedural and not faces.is_written(plan.source, data.faces, _DATA_SEED):
        with Progress(data.faces, "drawing faces", "faces") as progress:
            faces.write_celeba(plan.source, data.faces, _DATA_SEED, progress=progress.add)
    source = _open(data.source, plan.source, source_options(data))
    return write_shards(
        source,
        Path(plan.location),
        size=0 if data.encoding == "jpeg" else data.size,
        images=plan.count,
        split=data.split,
        encoding=data.encoding,
        bad_images=data.bad_images,
    ).digest()


def dataset_identity(data: DataConfig, plan: DatasetPlan) -> str:
    """Return 16 hex digits that identify the prepared images, wherever they are.

    Unlike the digest they are the same if shards of the same images are written again.
    """
    _, manifest = _open_shards(data, plan.location)
    return _digest(data, manifest, manifest.recipe.digest())


def _digest(data: DataConfig, manifest: Manifest, digest: str = "") -> str:
    """Return the digest of shards, or that of the recipe; another one if not all are used."""
    digest = digest or manifest.digest()
    if _count_used(data, manifest) == manifest.num_images:
        return digest
    return hashlib.sha256(f"{digest} {data.images}".encode()).hexdigest()[:16]


def _count_used(data: DataConfig, manifest: Manifest) -> int:
    """Return how many images of the shards are used, the first ones."""
    return min(data.images or manifest.num_images, manifest.num_images)


def open_dataset(data: DataConfig, location: str) -> ImageDataset:
    """Open prepared shards in the process that reads them; see `DatasetPlan.location`."""
    folder, manifest = _open_shards(data, location)
    dataset = ShardedDataset(
        folder,
        size=data.size if manifest.recipe.encoding == "jpeg" else 0,
        threads=data.threads,
        verify=data.verify,
    )
    count = _count_used(data, manifest)
    return dataset if count == len(dataset) else Subset(dataset, np.arange(count))


def publish(data: DataConfig, plan: DatasetPlan, storage: Storage) -> str:
    """Upload prepared shards to the storage unless they are there; return their location.

    Another driver finds them by the options of the images, even if it does not have the images.
    """
    if "://" in plan.location:
        return plan.location
    folder = Path(plan.location)
    manifest = Manifest.read(folder)
    name = f"shards/{folder.name}-{manifest.digest()}"
    content = (folder / MANIFEST).read_bytes()
    if storage.read(f"{name}/{MANIFEST}") != content:
        there = storage.sizes(name)
        shards = [s for s in manifest.shards if there.get(f"{name}/{s.name}") != s.bytes]
        images = sum(shard.rows for shard in shards)
        with Progress(images, f"uploading {folder.name}", "images") as progress:
            for shard in shards:
                storage.upload(folder / shard.name, f"{name}/{shard.name}")
                progress.add(shard.rows)
        storage.write(f"{name}/{MANIFEST}", content)
    storage.write(_index(data), json.dumps({"shards": name}).encode())
    return storage.url(name)


def _plan_stored(data: DataConfig, storage: Storage) -> DatasetPlan | None:
    """Return the plan of shards that `publish` has uploaded; None if there are none."""
    content = storage.read(_index(data))
    if content is None:
        return None
    url = storage.url(json.loads(content)["shards"])
    return _plan_existing(data, _open_shards(data, url)[1], url)


def _index(data: DataConfig) -> str:
    """Return the name of the file in the storage that says where shards of these options are."""
    options = json.dumps([VERSION, *data.identity()], default=str)
    return f"sets/{hashlib.sha256(options.encode()).hexdigest()[:16]}.json"


def _open_shards(data: DataConfig, location: str) -> tuple[RemoteShards | Path, Manifest]:
    """Return the shards, which may be on another machine, and their manifest."""
    if data.is_remote() or "://" in str(location):
        # The location of a remote root has no password.
        remote = open_remote(data if data.is_remote() else replace(data, root=location))
        return remote, remote.manifest
    return Path(location), Manifest.read(Path(location))


def open_remote(data: DataConfig) -> RemoteShards:
    """Read the manifest behind `data.root`; shards are fetched when they are needed."""
    limit = None if data.cache_gb is None else int(data.cache_gb * 1e9)
    cache = absolute("data.cache", data.cache)
    return RemoteShards(data.root or "", cache, limit_bytes=limit)


def _plan_existing(data: DataConfig, manifest: Manifest, location: str) -> DatasetPlan:
    stored, size = manifest.image_shape, data.size
    if manifest.recipe.encoding == "raw" and size not in (0, stored[0]):
        raise UserError(
            f"data.size={size}: {location} contains pixels of {stored[0]}x{stored[1]}; "
            f"use --data.size {stored[0] if stored[0] == stored[1] else 0}, or JPEG shards, which "
            "give any size"
        )
    return DatasetPlan(
        description=f"{manifest.recipe.source} in {without_secrets(location)}",
        count=_count_used(data, manifest),
        stored_shape=stored,
        image_shape=_network_shape(data, stored),
        location=location,
        bytes=sum(shard.bytes for shard in manifest.shards),
        classes=len(manifest.class_names),
        has_classifier=len(manifest.class_names) > 1 or bool(manifest.attribute_names),
    )


def _plan_conversion(data: DataConfig, home: Path, root: Path) -> DatasetPlan:
    procedural = data.source == "celeba" and data.root is None and not data.download
    notes: tuple[str, ...] = ()
    has_classifier = True
    if procedural:
        # Not opened: the faces may not be drawn yet.
        sizes = faces.split_sizes(data.faces)
        total = data.faces if data.split == "all" else sizes[SPLITS.index(data.split)]
        original, key = (218, 178, 3), f"faces-{data.faces}"
        key += f"-{data.split}" * (data.split != "all")
        classes = 0
        description = "procedural faces (no CelebA was given)"
        root = home / "data" / f"faces-{data.faces}"
    elif _must_download(data, home):
        counts, original, classes = _PUBLISHED[data.source]
        total, key = counts[data.split], data.source
        description = f"{data.source}, to be downloaded"
    else:
        source = _open(data.source, root, source_options(data))
        notes = notes_of(source)
        has_classifier = len(source.class_names) > 1 or bool(source.attribute_names)
        total, original = _count(source, data.split), source.image_shape
        classes = len(source.class_names)
        key = f"{source.name}-{source.fingerprint()[:8]}-{data.split}"
        key += "-skip" * (data.bad_images == "skip")
        description = {
            "digits": "scikit-learn's digits",
            "folder": f"the {'folder' if root.is_dir() else 'file'} {root}",
            "hdf5": f"the file {root}",
            "source-text": f"the source text's file {root}",
        }.get(source.name, f"{source.name} in {root}")
    count = min(data.images or total, total)
    if count == 0:
        raise UserError(f"data.split={data.split} has no images in {root}; try all")
    if data.encoding == "jpeg":
        stored, size_bytes, size = original, count * _JPEG_BYTES, "jpeg"
    else:
        stored = (data.size, data.size, original[2]) if data.size else original
        size_bytes, size = count * stored[0] * stored[1] * stored[2], str(data.size or "full")
    # The format version is in the name, so that shards of another version are left alone.
    folder = home / "shards" / f"v{VERSION}-{key}-{count}-{size}"
    ready = is_complete(folder)
    if ready and (left_out := count - Manifest.read(folder).num_images):
        notes = (*notes, f"cannot be read, left out: {left_out:,}")
        count -= left_out
    return DatasetPlan(
        description=description,
        count=count,
        stored_shape=stored,
        image_shape=_network_shape(data, original),
        location=str(folder),
        bytes=size_bytes,
        classes=classes,
        ready=ready,
        source=root,
        procedural=procedural,
        notes=notes,
        has_classifier=has_classifier,
    )


@functools.lru_cache(maxsize=8)  # used for the plan and the conversion: reads every file's header
def _open(name: str, root: Path, options: SourceOptions) -> ImageSource:
    return open_source(name, root, rng_seed=_DATA_SEED, options=options)


def _network_shape(data: DataConfig, stored: Shape) -> Shape:
    """Return the shape that the networks get of images that are stored in this shape."""
    sides = (data.size, data.size) if data.size else stored[:2]
    return data.cropped_shape((*sides, stored[2]))


def _root(data: DataConfig, home: Path) -> Path:
    # CelebA is searched for at any depth, so its folder has no other images in it.
    default = home / "data" / "celeba" if data.source == "celeba" else home / "data"
    return absolute("data.root", Path(data.root or default))


def _must_download(data: DataConfig, home: Path) -> bool:
    if not data.download or data.is_remote() or data.source not in _PUBLISHED:
        return False
    try:
        _open(data.source, _root(data, home), source_options(data))
    except UserError:
        return True
    return False


def _count(source: ImageSource, split: str) -> int:
    return len(source) if split == "all" else int((source.split == SPLITS.index(split)).sum())


def check_room(plans: Iterable[DatasetPlan], home: Path) -> None:
    """Check that the disk has room for shards that are not written yet, each location once.

    Raises:
        UserError: It has not.
    """
    existing = next(p for p in (home, *home.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    missing = {plan.location: plan for plan in plans if not plan.ready}.values()
    need = sum(
        plan.bytes + (plan.count * _JPEG_BYTES if plan.procedural else 0) for plan in missing
    )
    if need > free:
        raise UserError(
            f"home={home} has {free / 2**20:,.1f} MiB free, but the shards need"
            f" {need / 2**20:,.1f} MiB; use another --home, --data.size 64 or fewer --data.images"
        )
