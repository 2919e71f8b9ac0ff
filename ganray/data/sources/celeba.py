"""CelebA as it was published: a zip file or a folder of JPEGs, and two text files."""

import hashlib
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from ganray.errors import UserError

ARCHIVE, FOLDER = "img_align_celeba.zip", "img_align_celeba"
ATTRIBUTES, PARTITION = "list_attr_celeba.txt", "list_eval_partition.txt"
NUM_ATTRIBUTES = 40
BY_HAND = (
    f"get {ARCHIVE}, {ATTRIBUTES} and {PARTITION} from the CelebA page "
    "(https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html) in a browser and put them there"
)


@dataclass(eq=False, repr=False)
class CelebA:
    """Aligned and cropped CelebA: 218x178 JPEGs with 40 binary attributes.

    Created by ``CelebA.open``. It can be pickled to other processes: each process opens the zip
    file itself.
    """

    location: Path
    """The zip file, or the folder of JPEGs."""
    files: list[str]
    """File name of each image, such as ``000001.jpg``, in the order of the attribute file."""
    ids: NDArray[np.int64]
    """(N,) number of the original file, counted from 1."""
    attributes: NDArray[np.uint8]
    """(N, 40) 1 where the attribute is present, otherwise 0."""
    attribute_names: tuple[str, ...]
    """Names of the 40 attributes."""
    split: NDArray[np.uint8]
    """(N,) 0 train, 1 valid, 2 test; all 0 if there is no partition file."""
    annotations_sha256: str
    """SHA-256 of the attribute and the partition file, for the fingerprint."""
    name: str = "celeba"
    """Name of the source in recipes and manifests."""
    image_shape: tuple[int, int, int] = (218, 178, 3)
    """Height, width and channels of every image."""
    _archive: tuple[int, zipfile.ZipFile, str] | None = None

    class_names: tuple[str, ...] = ()
    """None: CelebA has attributes and no classes."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) -1, as there are no classes."""
        return np.full(len(self), -1)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the set as downloaded: the zip or the unpacked folder, beside the attribute file.

        Args:
            folder: Contains these files itself or, like torchvision's root, in ``celeba/``.

        Raises:
            UserError: Something is missing, damaged, or does not fit together.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; {BY_HAND}")
        if not (folder / ATTRIBUTES).exists() and (folder / "celeba").is_dir():
            folder = folder / "celeba"
        location = folder / ARCHIVE
        if not location.exists():
            location = folder / FOLDER
        if not location.exists():
            raise UserError(f"{folder}: contains neither {ARCHIVE} nor {FOLDER}/; {BY_HAND}")

        files, attribute_names, attributes = _read_attributes(folder / ATTRIBUTES)
        split = _read_partition(folder / PARTITION, files)
        annotations = hashlib.sha256((folder / ATTRIBUTES).read_bytes())
        if (folder / PARTITION).exists():
            annotations.update((folder / PARTITION).read_bytes())
        ids = np.array([int(Path(name).stem) for name in files], np.int64)
        source = cls(
            location, files, ids, attributes, attribute_names, split, annotations.hexdigest()
        )
        source._check_images()
        return source

    @classmethod
    def download(cls, folder: Path) -> Self:
        """Download into ``folder`` with torchvision, then open it. Needs 3 GB.

        Raises:
            UserError: The download failed, for example because of Google Drive's daily quota.
        """
        try:
            from torchvision.datasets import CelebA as Download

            Download(root=str(folder), download=True)
        # torchvision, gdown and requests each raise exceptions of their own without a network.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{folder}: CelebA could not be downloaded ({type(error).__name__}: {reason}); "
                f"{BY_HAND}"
            ) from error
        return cls.open(folder)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def read(self, index: int) -> Image.Image:
        """Decode one image.

        Returns:
            RGB, 178 wide and 218 tall.

        Raises:
            UserError: The file is damaged or of another size.
        """
        name = self.files[index]
        try:
            # Bit-identical to PIL's decoder, in less than half the time.
            image = Image.fromarray(simplejpeg.decode_jpeg(self.read_bytes(index)))
        # simplejpeg raises ValueError for a bad stream, zipfile BadZipFile or zlib.error.
        except Exception as error:
            raise UserError(
                f"{self.location}: {name} cannot be decoded ({error}); fetch the set again"
            ) from error
        if image.size != (178, 218):
            raise UserError(
                f"{self.location}: {name} is {image.height}x{image.width} pixels, not 218x178; "
                "use the 'aligned and cropped' images of CelebA"
            )
        return image

    def fingerprint(self) -> str:
        """Return a SHA-256 in hex that changes when the data change, without reading them all.

        It covers name, size and (in a zip) CRC of every image, and the bytes of the text files.
        """
        digest = hashlib.sha256(self.annotations_sha256.encode())
        if self.location.is_dir():
            for name in self.files:
                digest.update(f"{name} {(self.location / name).stat().st_size}\n".encode())
        else:
            archive, prefix = self._open_archive()
            for name in self.files:
                info = archive.getinfo(prefix + name)
                digest.update(f"{name} {info.file_size} {info.CRC}\n".encode())
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the handle: processes that share a file position read wrong bytes."""
        return self.__dict__ | {"_archive": None}

    def read_bytes(self, index: int) -> bytes:
        """Return the JPEG file of one image."""
        name = self.files[index]
        if self.location.is_dir():
            return (self.location / name).read_bytes()
        archive, prefix = self._open_archive()
        return archive.read(prefix + name)

    def num_bytes(self) -> NDArray[np.int64]:
        """Return the size of every JPEG file, (N,)."""
        if self.location.is_dir():
            sizes = [(self.location / name).stat().st_size for name in self.files]
        else:
            archive, prefix = self._open_archive()
            sizes = [archive.getinfo(prefix + name).file_size for name in self.files]
        return np.array(sizes, np.int64)

    def _open_archive(self) -> tuple[zipfile.ZipFile, str]:
        """Return this process's handle and the folder inside the zip; a fork opens its own."""
        if self._archive is None or self._archive[0] != os.getpid():
            try:
                archive = zipfile.ZipFile(self.location)
            except (zipfile.BadZipFile, OSError) as error:
                raise UserError(
                    f"{self.location}: not a complete zip file ({error}); download it again"
                ) from error
            inside = f"{FOLDER}/" if f"{FOLDER}/{self.files[0]}" in archive.NameToInfo else ""
            self._archive = os.getpid(), archive, inside
        return self._archive[1:]

    def _check_images(self) -> None:
        """Compare the existing images with those in the attribute file."""
        if self.location.is_dir():
            names = os.listdir(self.location)
        else:
            names = [Path(name).name for name in self._open_archive()[0].namelist()]
        images = {name for name in names if name.endswith(".jpg")}
        if not images:
            raise UserError(f"{self.location}: contains no .jpg file; {BY_HAND}")
        if images != set(self.files):
            difference = min(images ^ set(self.files))
            raise UserError(
                f"{self.location}: {len(images)} images but {ATTRIBUTES} lists {len(self.files)} "
                f"(first that differs: {difference}); take both from the same download"
            )


def _read_attributes(path: Path) -> tuple[list[str], tuple[str, ...], NDArray[np.uint8]]:
    """Parse the attribute file: a count, the 40 names, then ``000001.jpg -1 1 ...`` per image.

    Returns:
        File names, attribute names, and uint8 (N, 40) with 1 for ``1`` and 0 for ``-1``.
    """
    if not path.exists():
        raise UserError(f"{path}: missing; {BY_HAND}")
    lines = path.read_bytes().rstrip().splitlines()
    header, rows = b"\n".join(lines[:2]), lines[2:]
    count, *attribute_names = header.decode(errors="replace").split() or [""]
    if not re.fullmatch("[0-9]{1,18}", count) or len(set(attribute_names)) != NUM_ATTRIBUTES:
        raise UserError(
            f"{path}: unknown header; line 1 must be the number of images and line 2 the "
            f"{NUM_ATTRIBUTES} attribute names, as CelebA publishes it; {BY_HAND}"
        )
    if int(count) != len(rows):
        raise UserError(
            f"{path}: says {int(count)} images but has {len(rows)} rows; download it again"
        )
    files, values = [], []
    for number, row in enumerate(rows, start=3):
        name, _, signs = row.strip().partition(b" ")
        # "-1" and "1" become the bytes "0" and "1": a fifth of the time of parsing 8 M integers.
        digits = signs.replace(b"-1", b"0").replace(b" ", b"")
        if (
            len(digits) != NUM_ATTRIBUTES
            or digits.translate(None, b"01")
            or not re.fullmatch(rb"[0-9]{1,18}\.[A-Za-z]{3}", name)
        ):
            raise UserError(
                f"{path}: line {number} is not a file name and {NUM_ATTRIBUTES} values of -1 or 1; "
                "download it again"
            )
        files.append(name.decode())
        values.append(digits)
    bits = np.frombuffer(b"".join(values), np.uint8).reshape(-1, NUM_ATTRIBUTES)
    return files, tuple(attribute_names), bits - np.uint8(ord("0"))


def _read_partition(path: Path, files: list[str]) -> NDArray[np.uint8]:
    """Parse ``000001.jpg 0`` per image; all 0 (train) if there is no such file."""
    if not path.exists():
        return np.zeros(len(files), np.uint8)
    rows = [row.split() for row in path.read_text(errors="replace").splitlines() if row.strip()]
    if [row[0] for row in rows] != files or any(
        row[1:] not in (["0"], ["1"], ["2"]) for row in rows
    ):
        raise UserError(
            f"{path}: must name the {len(files)} images of {ATTRIBUTES} in its order, each with "
            "0, 1 or 2; download both again, or remove this file to treat all as training images"
        )
    return np.array([int(row[1]) for row in rows], np.uint8)
