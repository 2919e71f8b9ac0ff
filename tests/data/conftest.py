"""A CelebA in miniature: its layout, its file formats, 150 pictures."""

import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from ganray.data.reader import ShardedDataset
from ganray.data.sources.celeba import CelebA
from ganray.data.writer import write_shards

NUM_IMAGES = 150
SHARD_1 = "shard-00001.h5"


@pytest.fixture(scope="session")
def celeba_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacked: ``img_align_celeba/``, attributes, partition (100 train, 30 valid, 20 test)."""
    folder = tmp_path_factory.mktemp("celeba_folder")
    (folder / "img_align_celeba").mkdir()
    rng = np.random.default_rng(0)
    for number in range(1, NUM_IMAGES + 1):
        coarse = rng.integers(0, 256, (5, 4, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((178, 218), Image.Resampling.BICUBIC)
        picture.save(folder / "img_align_celeba" / f"{number:06d}.jpg", quality=90)
    names = " ".join(f"Attribute_{i}" for i in range(40))
    rows = [f"{i:06d}.jpg {_signs(i)}" for i in range(1, NUM_IMAGES + 1)]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(NUM_IMAGES), names, *rows]) + "\n")
    splits = [0] * 100 + [1] * 30 + [2] * 20
    lines = [f"{i:06d}.jpg {split}\n" for i, split in enumerate(splits, start=1)]
    (folder / "list_eval_partition.txt").write_text("".join(lines))
    return folder


def _signs(number: int) -> str:
    """Attribute k of image i is there where bit k of i is set."""
    return " ".join(f"{1 if number >> k & 1 else -1:2d}" for k in range(40))


@pytest.fixture(scope="session")
def celeba_zip(celeba_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures as downloaded: in a zip file."""
    folder = tmp_path_factory.mktemp("celeba_zip")
    for name in ("list_attr_celeba.txt", "list_eval_partition.txt"):
        (folder / name).write_bytes((celeba_folder / name).read_bytes())
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((celeba_folder / "img_align_celeba").iterdir()):
            archive.write(path, f"img_align_celeba/{path.name}")
    return folder


@pytest.fixture(scope="session")
def shards_folder(celeba_zip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 images of 64x64 in shards of 70, 70 and 10 rows. Not to be changed: copy it."""
    folder = tmp_path_factory.mktemp("shards") / "set"
    write_shards(CelebA.open(celeba_zip), folder, size=64, rows_per_shard=70, processes=1)
    return folder


@pytest.fixture
def source(celeba_zip: Path) -> CelebA:
    return CelebA.open(celeba_zip)


@pytest.fixture
def folder(shards_folder: Path, tmp_path: Path) -> Path:
    """A copy to spoil: 150 images of 64x64 in shards of 70, 70 and 10 rows."""
    shutil.copytree(shards_folder, tmp_path / "set")
    return tmp_path / "set"


def gathered(reader: ShardedDataset, ids: list[int] | None = None) -> torch.Tensor:
    wanted = np.arange(len(reader)) if ids is None else np.array(ids, np.int64)
    out = torch.empty((len(wanted), *reader.image_shape), dtype=torch.uint8)
    reader.read_batch(wanted, out)
    return out


def flip(path: Path, row: int) -> None:
    """Flip one bit within an image."""
    with h5py.File(path, "r") as file:
        images = file["images"]
        assert isinstance(images, h5py.Dataset)
        place = images.id.get_offset() + row * 64 * 64 * 3 + 1000
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))
