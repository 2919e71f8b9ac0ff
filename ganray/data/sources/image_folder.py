"""A folder of images: one folder for each class, or all in one."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ganray.data.sources.listing import held_out, iter_with_progress, name_hash, printable
from ganray.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
SPLIT_FOLDERS = {"train": 0, "valid": 1, "val": 1, "test": 2}
DEEP_MODES = ("I", "F")  # PIL would clip their values at 255 instead of scaling them
ORIENTATION, ROTATED = 0x0112, (5, 6, 7, 8)  # an EXIF tag, and its values for swapped sides


@dataclass(eq=False, repr=False)
class ImageFolder:
    """Images in ``root/CLASS/...``, in ``root/`` without classes, or in both under split folders.

    Created by ``ImageFolder.open``. Every image is read as 8-bit RGB: gray is converted and
    transparency is dropped. Photographs are rotated upright according to their EXIF orientation.

    If all top folders are called ``train``, ``valid`` (or ``val``) or ``test``, and one of them is
    ``train``, they are the splits. Otherwise, or if there is only ``train``, a tenth is held out as
    ``test``, by a hash of the name, so that new files do not change the split of others.
    """

    root: Path
    files: list[str]
    """Path of each image below ``root``, with ``/``."""
    ids: NDArray[np.int64]
    """(N,) rank of each among the sorted paths, from 0."""
    labels: NDArray[np.int64]
    """(N,) index into ``class_names``; -1 if there are none."""
    class_names: tuple[str, ...]
    """Sorted names of the class folders; empty if there are none."""
    split: NDArray[np.uint8]
    """(N,) 0 train, 1 valid, 2 test."""
    image_shape: tuple[int, int, int]
    """(H, W, 3) of every image, or (0, 0, 3) if they differ and must be resized."""
    name: str = "folder"
    """Name of the source in recipes and manifests."""
    attribute_names: tuple[str, ...] = ()
    """None."""

    @classmethod
    def open(cls, root: Path) -> ImageFolder:
        """Find the images and read the header of each.

        Files of other types are skipped, as is everything whose name begins with a dot.

        Args:
            root: Contains ``.png``, ``.jpg``, ``.jpeg``, ``.webp`` or ``.bmp`` files at any depth.

        Returns:
            A ``JpegFolder`` if all are JPEGs of one size that can be stored unchanged.

        Raises:
            UserError: There is no image, one has no valid header, some images have no class, or a
                link leads out of ``root``.
        """
        root = Path(root).expanduser().absolute()
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; give the folder that holds the images")
        paths = sorted(_find_images(root))
        if not paths:
            raise UserError(f"{root}: contains no image; looked for {', '.join(SUFFIXES)} files")
        # In the order of a hash of the name: data.shuffle=blocks reads neighbors together, which
        # would all be of one class in the order of the names.
        order = sorted(range(len(paths)), key=lambda i: (name_hash(paths[i], b"order"), paths[i]))
        files = [paths[i] for i in order]
        split, inner_paths = _split(files)
        labels, class_names = _classes(root, files, inner_paths)
        headers = {
            _header(root, name)
            for name in iter_with_progress(files, f"headers of {printable(root)}", "images")
        }
        sizes = {(height, width) for height, width, _ in headers}
        height, width = sizes.pop() if len(sizes) == 1 else (0, 0)
        kind = JpegFolder if height and all(plain for *_, plain in headers) else ImageFolder
        ids, shape = np.array(order, np.int64), (height, width, 3)
        return kind(root, files, ids, labels, class_names, split, shape)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    @property
    def attributes(self) -> NDArray[np.uint8]:
        """(N, 0), as there are none."""
        return np.zeros((len(self), 0), np.uint8)

    def read(self, index: int) -> Image.Image:
        """Decode one image.

        Returns:
            RGB, of the size in ``image_shape``, or of any size if that is 0.

        Raises:
            UserError: The file is damaged, has more than 8 bits a channel, or has changed.
        """
        path = self.root / self.files[index]
        with (
            _named_errors(path),
            Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as file,
        ):
            _check_depth(file)
            # Palettes are converted to RGBA first, because PIL warns about their transparency.
            opaque = file.convert("RGBA") if file.mode == "P" else file
            upright = opaque if _orientation(file) == 1 else ImageOps.exif_transpose(opaque)
            image = upright.convert("RGB")
        height, width, _ = self.image_shape
        if height and image.size != (width, height):
            raise UserError(
                f"{printable(path)}: is {image.height}x{image.width} pixels now, but was "
                f"{height}x{width} when the folder was opened; leave the images alone and start "
                "again"
            )
        return image

    def fingerprint(self) -> str:
        """Return a SHA-256 in hex over path and size of every file, without reading them."""
        digest = hashlib.sha256()
        for name in self.files:
            size = (self.root / name).stat().st_size
            digest.update(os.fsencode(name) + f"\0{size}\0".encode())
        return digest.hexdigest()


class JpegFolder(ImageFolder):
    """An ``ImageFolder`` of JPEGs of one size, whose files can also be stored unchanged."""

    def read_bytes(self, index: int) -> bytes:
        """Return the file of one image."""
        return (self.root / self.files[index]).read_bytes()

    def num_bytes(self) -> NDArray[np.int64]:
        """Return the size of every file, (N,)."""
        return np.array([(self.root / name).stat().st_size for name in self.files], np.int64)


def _find_images(root: Path) -> Iterator[str]:
    """Yield the paths of the images below ``root``."""
    inside = root.resolve()
    folders = [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.name.startswith("."):
                    continue  # for example macOS's ._1.png, which is no image
                is_image = path.suffix.lower() in SUFFIXES
                if entry.is_symlink() and (is_image or entry.is_dir()):
                    _check_link(path, inside)
                if entry.is_dir():
                    folders.append(path)
                elif is_image:
                    yield path.relative_to(root).as_posix()


def _check_link(path: Path, inside: Path) -> None:
    target = path.resolve()
    if not target.is_file() or not target.is_relative_to(inside):
        raise UserError(
            f"{printable(path)}: a link that leads out of the folder, nowhere, or to a folder (it"
            " could be a loop); put the files themselves there, or remove it"
        )


def _split(files: list[str]) -> tuple[NDArray[np.uint8], list[PurePosixPath]]:
    """Return the split of each image, and its path inside the folder of the split."""
    paths = [PurePosixPath(name) for name in files]
    tops = [path.parts[0] for path in paths]
    split = [2 if held_out(name) else 0 for name in files]
    # A class may be called "train" as well, beside "car" and "ship".
    if "train" in tops and set(tops) <= SPLIT_FOLDERS.keys():
        paths = [path.relative_to(top) for path, top in zip(paths, tops, strict=True)]
        if len(set(tops)) > 1:
            split = [SPLIT_FOLDERS[top] for top in tops]
    return np.array(split, np.uint8), paths


def _classes(
    root: Path, files: list[str], inner_paths: list[PurePosixPath]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the label of each image and the names of the classes."""
    folders = [path.parts[0] if len(path.parts) > 1 else None for path in inner_paths]
    names = tuple(sorted({folder for folder in folders if folder is not None}))
    if not names:
        return np.full(len(files), -1), ()
    if None in folders:
        raise UserError(
            f"{root}: {printable(files[folders.index(None)])} lies beside the class folders "
            f"({printable(names[0])} and so on), so it has no class; move it into one, or out"
        )
    index = {name: number for number, name in enumerate(names)}
    return np.array([index[str(folder)] for folder in folders], np.int64), names


def _header(root: Path, name: str) -> tuple[int, int, bool]:
    """Return height and width when upright, and whether the file can be stored unchanged."""
    path = root / name
    with _named_errors(path), Image.open(path, formats=FORMATS) as file:
        _check_depth(file)
        width, height = file.size
        orientation = _orientation(file)
        if orientation in ROTATED:
            width, height = height, width
        keep = file.format == "JPEG" and file.mode in ("L", "RGB") and orientation == 1
        return height, width, keep


def _orientation(file: Image.Image) -> int:
    """Return the EXIF orientation of a photograph; 1 is upright."""
    # JPEG only: in a PNG this tag may come after the pixels, which would all be read.
    if file.format != "JPEG" or "exif" not in file.info:
        return 1
    return file.getexif().get(ORIENTATION, 1)


def _check_depth(file: Image.Image) -> None:
    if file.mode.split(";")[0] in DEEP_MODES:
        raise UserError(f"has more than 8 bits a channel ({file.mode})")


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Raise errors of a file as UserError that names it."""
    try:
        yield
    # PIL raises OSError, SyntaxError, ValueError and others for a bad file.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{printable(path)}: cannot be read as an 8-bit image ({reason}); replace or remove it"
        ) from error
