"""CelebA as it was published, or as others pass it on: images and lists in folders or zip files."""

import codecs
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from ganray.data.sources import labeled_images
from ganray.data.sources.hdf5_file import is_hdf5
from ganray.data.sources.listing import Tree, count_suffixes, printable
from ganray.errors import UserError

IMAGES = "img_align_celeba"
ATTRIBUTES, PARTITION = "list_attr_celeba", "list_eval_partition"
_LIST_FILE = re.compile(rf"({ATTRIBUTES}|{PARTITION})( ?\([0-9]+\))?\.(txt|csv)", re.IGNORECASE)
"""Name of a list, which a browser may have numbered: ``list_attr_celeba (1).txt``."""
NUM_ATTRIBUTES = 40
BY_HAND = (
    f"get {IMAGES}.zip, {ATTRIBUTES}.txt and {PARTITION}.txt from the CelebA page "
    "(https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html) in a browser and put them there"
)


class _Member(NamedTuple):
    """A list, or a folder of images (whose name ends with a slash, or is empty), in a tree."""

    tree: Tree
    name: str

    def __str__(self) -> str:
        return self.tree.locate(self.name)


@dataclass(frozen=True)
class _Found:
    """Result of a search for CelebA."""

    images: _Member
    files: dict[str, str]
    """File name of each image, by the same in lower case, such as ``000001.jpg``."""
    attributes: _Member | None
    partition: _Member | None
    notes: tuple[str, ...]


@dataclass(eq=False, repr=False)
class CelebA:
    """Aligned and cropped CelebA: 218x178 JPEGs with 40 binary attributes.

    Created by ``CelebA.open``. It can be pickled to other processes.
    """

    images: _Member
    """The folder of JPEGs, which may be in a zip file."""
    files: list[str]
    """File name of each image, such as ``000001.jpg``, in the order of the attribute list."""
    ids: NDArray[np.int64]
    """(N,) number of the original file, counted from 1."""
    attributes: NDArray[np.uint8]
    """(N, 40) 1 where the attribute is present, otherwise 0; (N, 0) without an attribute list."""
    attribute_names: tuple[str, ...]
    """Names of the 40 attributes."""
    split: NDArray[np.uint8]
    """(N,) 0 train, 1 valid, 2 test; all 0 without a partition list."""
    annotations_sha256: str
    """SHA-256 of the attribute and the partition list, for the fingerprint."""
    notes: tuple[str, ...] = ()
    """Missing lists and images, for the plan."""
    name: str = "celeba"
    """Name of the source in recipes and manifests."""
    image_shape: tuple[int, int, int] = (218, 178, 3)
    """Height, width and channels of every image."""
    class_names: tuple[str, ...] = ()
    """None: CelebA has attributes and no classes."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) -1, as there are no classes."""
        return np.full(len(self), -1)

    @classmethod
    def open(cls, folder: Path, missing: Literal["skip", "error"] = "skip") -> Self:
        """Find images and lists, at any depth of a folder or its zip files, and read the lists.

        Args:
            folder: A folder or a zip file.
            missing: Whether listed images may be missing, and the lists themselves.

        Raises:
            UserError: There are no images, or something is damaged or does not fit together.
        """
        found = _search(Path(folder))
        notes, listed = list(found.notes), sorted(found.files)
        annotations = hashlib.sha256()
        attribute_names, attributes = (), np.zeros((len(listed), 0), np.uint8)
        if found.attributes:
            data = found.attributes.tree.read(found.attributes.name)
            annotations.update(data)
            listed, attribute_names, attributes = _read_attributes(str(found.attributes), data)
        else:
            notes.append(f"no attributes: there is no {ATTRIBUTES}.txt or .csv")
        kept = np.array([name in found.files for name in listed], bool)
        files = [name for name, is_kept in zip(listed, kept, strict=True) if is_kept]
        if not files:
            raise UserError(
                f"{found.images}: none of its {len(found.files):,} images is listed in"
                f" {found.attributes}; take both from the same download"
            )
        if len(files) < len(listed):
            first = next(name for name in listed if name not in found.files)
            notes.append(f"{len(files):,} of the {len(listed):,} listed images; no {first}")
        if unlisted := found.files.keys() - set(listed):
            notes.append(f"images without attributes, left out: {len(unlisted):,}")
        split = np.zeros(len(files), np.uint8)
        if found.partition:
            data = found.partition.tree.read(found.partition.name)
            annotations.update(data)
            split = _read_partition(str(found.partition), data, files)
        else:
            notes.append(f"all are training images: there is no {PARTITION}.txt or .csv")
        if notes and missing == "error":
            raise UserError(f"{found.images}: {'; '.join(notes)}; {BY_HAND}")
        names = [found.files[name] for name in files]
        ids = np.array([int(Path(name).stem) for name in files], np.int64)
        digest = annotations.hexdigest()
        return cls(
            found.images, names, ids, attributes[kept], attribute_names, split, digest, tuple(notes)
        )

    @classmethod
    def download(cls, folder: Path) -> Self:
        """Download into ``folder`` with torchvision, then open it. Needs 3 GB.

        Raises:
            UserError: The download failed, for example because of Google Drive's daily quota.
        """

        def fetch() -> None:
            from torchvision.datasets import CelebA as Download

            Download(root=str(folder), download=True)

        labeled_images.download("CelebA", folder, fetch, BY_HAND)
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
        try:
            # Bit-identical to PIL's decoder, in less than half the time.
            image = Image.fromarray(simplejpeg.decode_jpeg(self.read_bytes(index)))
        # simplejpeg raises ValueError for a bad stream, zipfile BadZipFile or zlib.error.
        except Exception as error:
            raise UserError(f"{self._locate(index)} cannot be decoded ({error})") from error
        if image.size != (178, 218):
            raise UserError(
                f"{self._locate(index)} is {image.height}x{image.width} pixels, not 218x178; "
                "use the 'aligned and cropped' images of CelebA, or for other images --data.source"
                " folder"
            )
        return image

    def fingerprint(self) -> str:
        """Return a SHA-256 in hex that changes when the data change, without reading them all.

        It covers name, size and (in a zip) CRC of every image, and the bytes of the lists.
        """
        digest = hashlib.sha256(self.annotations_sha256.encode())
        tree, inside = self.images
        for name in self.files:
            digest.update(f"{name} {tree.stamp(inside + name)}\n".encode())
        return digest.hexdigest()

    def read_bytes(self, index: int) -> bytes:
        """Return the JPEG file of one image."""
        return self.images.tree.read(self.images.name + self.files[index])

    def num_bytes(self) -> NDArray[np.int64]:
        """Return the size of every JPEG file, (N,)."""
        tree, inside = self.images
        return np.array([tree.size(inside + name) for name in self.files], np.int64)

    def _locate(self, index: int) -> str:
        return self.images.tree.locate(self.images.name + self.files[index])


def _search(folder: Path) -> _Found:
    """Find the images and lists in a folder or zip file, and in the zip files of a folder.

    Of several folders of images, one named like the aligned images is taken, then the largest. A
    list nearer to the top is taken first.

    Raises:
        UserError: There are no images; the message lists what there is.
    """
    if not folder.exists():
        raise UserError(f"{printable(folder)}: no such folder; {BY_HAND}")
    if folder.is_file() and is_hdf5(folder):
        raise UserError(
            f"{printable(folder)}: is an HDF5 file, but not one that the source text makes; use"
            " --data.source hdf5"
        )
    top = Tree(folder)
    trees, problems = [top], []
    for name in top.names:
        if name.lower().endswith(".zip") and folder.is_dir():
            try:
                trees.append(Tree(folder / name))
            except UserError as error:
                problems.append(str(error))
    images: dict[_Member, dict[str, str]] = {}
    lists: dict[str, list[_Member]] = {ATTRIBUTES: [], PARTITION: []}
    for tree in trees:
        folders = defaultdict(dict)
        for name in tree.names:
            inside, slash, base = name.rpartition("/")
            if re.fullmatch(r"[0-9]{1,18}\.jpg", base.lower()):
                folders[inside + slash][base.lower()] = base
            elif match := _LIST_FILE.fullmatch(base):
                lists[match[1].lower()].append(_Member(tree, name))
        images |= {_Member(tree, inside): files for inside, files in folders.items()}
    if not images:
        found = count_suffixes([name for tree in trees for name in tree.names])
        raise UserError(
            "; ".join(problems)
            or f"{printable(folder)}: contains no CelebA, which are images such as"
            f" {IMAGES}/000001.jpg; found {found or 'no file'}; {BY_HAND},"
            " or for other images use --data.source folder"
        )
    aligned = [member for member in images if IMAGES in str(member)]
    # A zip is read faster than as many files.
    largest = max(aligned or images, key=lambda m: (len(images[m]), not m.tree.is_folder))
    others = set[str]().union(*images.values()) - images[largest].keys()
    if others and not aligned:
        problems.append(
            f"only the images in {largest} are taken; other folders hold {len(others):,} more,"
            f" which belong in one folder {IMAGES}"
        )
    nearest = {
        kind: min(members, key=lambda member: member.name.count("/"), default=None)
        for kind, members in lists.items()
    }
    return _Found(
        largest, images[largest], nearest[ATTRIBUTES], nearest[PARTITION], tuple(problems)
    )


def _rows(data: bytes) -> list[bytes]:
    """Return the lines of a list that are not empty, with single spaces between the values."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell writes it
        data = data.decode("utf-16", "replace").encode()
    text = data.removeprefix(codecs.BOM_UTF8).translate(bytes.maketrans(b',;\t"', b"    "))
    return [line for row in text.splitlines() if (line := b" ".join(row.split()))]


def _read_attributes(
    path: str, data: bytes
) -> tuple[list[str], tuple[str, ...], NDArray[np.uint8]]:
    """Parse the attribute list: perhaps a count, 40 names, then ``000001.jpg -1 1 ...`` per image.

    Kaggle's copy has no count, commas, and ``image_id`` before the names.

    Returns:
        File names in lower case, attribute names, and uint8 (N, 40) with 1 for ``1``, 0 for ``-1``.
    """
    rows = _rows(data)
    count = int(rows.pop(0)) if rows and re.fullmatch(rb"[0-9]{1,18}", rows[0]) else None
    names = rows.pop(0).decode(errors="replace").split() if rows else []
    attribute_names = names[len(names) == NUM_ATTRIBUTES + 1 :]
    if len(set(attribute_names)) != NUM_ATTRIBUTES or len(attribute_names) != NUM_ATTRIBUTES:
        raise UserError(
            f"{path}: unknown header; line 1 or 2 must be the {NUM_ATTRIBUTES} attribute names, as"
            f" CelebA publishes it; {BY_HAND}"
        )
    if count not in (None, len(rows)):
        raise UserError(f"{path}: says {count} images but has {len(rows)} rows; download it again")
    files, values = [], []
    for number, row in enumerate(rows, start=1):
        name, _, signs = row.partition(b" ")
        # "-1" and "1" become the bytes "0" and "1": a fifth of the time of parsing 8 M integers.
        digits = signs.replace(b"-1", b"0").replace(b" ", b"")
        if (
            len(digits) != NUM_ATTRIBUTES
            or digits.translate(None, b"01")
            or not re.fullmatch(rb"[0-9]{1,18}\.[A-Za-z]{3}", name)
        ):
            raise UserError(
                f"{path}: row {number} of the images is not a file name and {NUM_ATTRIBUTES}"
                " values of -1 or 1; download it again"
            )
        files.append(name.decode().lower())
        values.append(digits)
    bits = np.frombuffer(b"".join(values), np.uint8).reshape(-1, NUM_ATTRIBUTES)
    return files, tuple(attribute_names), bits - np.uint8(ord("0"))


def _read_partition(path: str, data: bytes, files: Iterable[str]) -> NDArray[np.uint8]:
    """Parse ``000001.jpg 0`` per image, perhaps after a line of names; return uint8 (N,)."""
    rows = [row.decode(errors="replace").split() for row in _rows(data)]
    rows = rows[1:] if rows and rows[0][-1] == "partition" else rows
    splits = {row[0].lower(): row[1] for row in rows if len(row) == 2 and row[1] in ("0", "1", "2")}
    files = list(files)
    unknown = next((name for name in files if name not in splits), None)
    if unknown or len(splits) != len(rows):
        raise UserError(
            f"{path}: must name each image once, with 0, 1 or 2"
            + (f", but {unknown} has none" if unknown else "")
            + "; download it again, or remove it to treat all as training images"
        )
    return np.array([int(splits[name]) for name in files], np.uint8)
