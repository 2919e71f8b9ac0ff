"""Any images, in a folder or a zip file: with a folder for each class, with labels, or without."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features

from ganray.config.schema import LabelSource
from ganray.data.sources.labeled_images import WithoutAttributes
from ganray.data.sources.listing import (
    BadImagesError,
    Tree,
    count_suffixes,
    iter_with_progress,
    name_hash,
    printable,
    split_by_name,
)
from ganray.errors import UserError

FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm"),
} | ({"AVIF": (".avif",)} if features.check("avif") else {})
"""Formats and the suffixes of their files; of animations, the first image is read."""
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
SPLIT_FOLDERS = {"train": 0, "training": 0, "valid": 1, "val": 1, "validation": 1}
SPLIT_FOLDERS |= {"test": 2, "testing": 2}
STYLEGAN_LABELS = "dataset.json"
DEEP_MODES = ("I", "F")  # PIL would clip their values at 255 instead of scaling them
ORIENTATION, ROTATED = 0x0112, (5, 6, 7, 8)  # an EXIF tag, and its values for swapped sides


class _Header(NamedTuple):
    height: int  # when upright
    width: int
    plain: bool  # whether the file can be stored unchanged
    transparent: bool


@dataclass(eq=False, repr=False)
class ImageFolder(WithoutAttributes):
    """Images in ``root/CLASS/...``, in ``root/`` without classes, or in both under split folders.

    Created by ``ImageFolder.open``. Every image is read as 8-bit RGB: gray is converted, and what
    is transparent shows the background. Photographs are rotated upright according to their EXIF
    orientation.

    If all top folders are called ``train``, ``valid``, ``test`` or similar, in any case, and one of
    them is for training, they are the splits. Otherwise, or if there is only ``train``, a tenth is
    held out as ``test``, by a hash of the name, so that new files do not change the split of
    others.
    """

    tree: Tree
    files: list[str]
    """Path of each image in the tree, with ``/``."""
    ids: NDArray[np.int64]
    """(N,) rank of each among the sorted paths, from 0."""
    labels: NDArray[np.int64]
    """(N,) index into ``class_names``; -1 if there are none."""
    class_names: tuple[str, ...]
    """Names of the classes; empty if there are none."""
    split: NDArray[np.uint8]
    """(N,) 0 train, 1 valid, 2 test."""
    image_shape: tuple[int, int, int]
    """(H, W, 3) of every image, or (0, 0, 3) if they differ and must be resized."""
    background: str = "white"
    """Color behind what is transparent, by a name that Pillow knows."""
    notes: tuple[str, ...] = ()
    """Classes and splits, and what was left out, for the plan."""
    name: str = "folder"
    """Name of the source in recipes and manifests."""

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        labels: LabelSource = "auto",
        bad_images: Literal["error", "skip"] = "error",
        background: str = "white",
    ) -> ImageFolder:
        """Find the images and read the header of each.

        Links are followed. Files of other types are skipped, as is what begins with a dot.

        Args:
            root: A folder, or a zip file, with images at any depth.
            labels: ``folder``: the top folders are classes. ``dataset.json``: labels of images as
                StyleGAN's tools write them. ``none``: no classes. ``auto``: the labels of
                ``dataset.json`` if there are any, else the folders unless there is only one, or
                they are numbered batches like FFHQ's.
            bad_images: Whether images that have no valid header are left out.
            background: Color behind what is transparent.

        Returns:
            A ``JpegFolder`` if all are JPEGs of one size that can be stored unchanged.

        Raises:
            UserError: There is no image, or some have no valid header or no class.
        """
        tree = Tree(Path(root).expanduser().absolute())
        paths = [name for name in tree.names if name.lower().endswith(SUFFIXES)]
        others = sorted(set(tree.names) - set(paths) - {STYLEGAN_LABELS})
        if not paths:
            found = f"found {count_suffixes(others)}; " if others else ""
            raise UserError(
                f"{printable(tree.path)}: contains no image; {found}looked for"
                f" {', '.join(SUFFIXES)} files"
            )
        headers = _read_headers(tree, paths, bad_images)
        paths = [name for name in paths if name in headers]
        # In the order of a hash of the name: data.shuffle=blocks reads neighbors together, which
        # would all be of one class in the order of the names.
        order = sorted(range(len(paths)), key=lambda i: (name_hash(paths[i], b"order"), paths[i]))
        files = [paths[i] for i in order]
        split, inner_paths, split_note = _split(files)
        label_of, class_names, class_note = _classes(tree, files, inner_paths, labels)
        transparent = sum(header.transparent for header in headers.values())
        notes = [class_note, split_note]
        if transparent:
            notes.append(f"{transparent:,} with transparency, drawn over {background}")
        if others:
            notes.append(f"skipped files: {count_suffixes(others)}")
        sizes = {(header.height, header.width) for header in headers.values()}
        height, width = sizes.pop() if len(sizes) == 1 else (0, 0)
        is_plain = height and all(header.plain for header in headers.values())
        return (JpegFolder if is_plain else ImageFolder)(
            tree,
            files,
            np.array(order, np.int64),
            label_of,
            class_names,
            split,
            (height, width, 3),
            background,
            tuple(notes),
        )

    def read(self, index: int) -> Image.Image:
        """Decode one image.

        Returns:
            RGB, of the size in ``image_shape``, or of any size if that is 0.

        Raises:
            UserError: The file is damaged, has more than 8 bits a channel, or has changed.
        """
        name = self.files[index]
        with (
            _named_errors(self.tree, name),
            Image.open(io.BytesIO(self.tree.read(name)), formats=list(FORMATS)) as file,
        ):
            image = to_rgb(file, self.background)
        height, width, _ = self.image_shape
        if height and image.size != (width, height):
            raise UserError(
                f"{self.tree.locate(name)}: is {image.height}x{image.width} pixels now, but was "
                f"{height}x{width} when the folder was opened; leave the images alone and start "
                "again"
            )
        return image

    def fingerprint(self) -> str:
        """Return a SHA-256 in hex over path, size and label of every file, without reading them."""
        digest = hashlib.sha256(json.dumps([self.class_names, self.background]).encode())
        for name, label in zip(self.files, self.labels.tolist(), strict=True):
            digest.update(os.fsencode(name) + f"\0{self.tree.stamp(name)}\0{label}\0".encode())
        return digest.hexdigest()


def to_rgb(file: Image.Image, background: str) -> Image.Image:
    """Return an opened image as 8-bit RGB, upright, with a background behind what is transparent.

    Raises:
        UserError: It has more than 8 bits a channel. Pillow raises anything if it is damaged.
    """
    _check_depth(file)
    is_upright = _orientation(file) == 1  # before loading, as in `_header`
    if file.has_transparency_data:
        color = file.convert("RGBA")
        below = Image.new("RGBA", color.size, background)
        opaque = Image.alpha_composite(below, color)
        opaque.info = file.info
    else:
        opaque = file
    return (opaque if is_upright else ImageOps.exif_transpose(opaque)).convert("RGB")


class JpegFolder(ImageFolder):
    """An ``ImageFolder`` of JPEGs of one size, whose files can also be stored unchanged."""

    def read_bytes(self, index: int) -> bytes:
        """Return the file of one image."""
        return self.tree.read(self.files[index])

    def num_bytes(self) -> NDArray[np.int64]:
        """Return the size of every file, (N,)."""
        return np.array([self.tree.size(name) for name in self.files], np.int64)


def _split(files: list[str]) -> tuple[NDArray[np.uint8], list[PurePosixPath], str]:
    """Return the split of each image, its path inside the folder of the split, and a note."""
    paths = [PurePosixPath(name) for name in files]
    tops = [path.parts[0].lower() if len(path.parts) > 1 else "" for path in paths]
    split = split_by_name(files)
    note = "splits: none, so --data.split train and test are nine tenths and a tenth, by name"
    # A class may be called "train" as well, beside "car" and "ship".
    if set(tops) <= SPLIT_FOLDERS.keys() and 0 in {SPLIT_FOLDERS[top] for top in tops}:
        paths = [PurePosixPath(*path.parts[1:]) for path in paths]
        if len(set(tops)) > 1:
            split = np.array([SPLIT_FOLDERS[top] for top in tops], np.uint8)
            counts = Counter(tops)
            note = "splits: " + ", ".join(f"{top} {counts[top]:,}" for top in sorted(counts))
    return split, paths, note


def _classes(
    tree: Tree, files: list[str], inner_paths: list[PurePosixPath], labels: LabelSource
) -> tuple[NDArray[np.int64], tuple[str, ...], str]:
    """Return the label of each image, the names of the classes, and a note on them."""
    none = np.full(len(files), -1), ()
    if labels == "none":
        return *none, "no classes (data.labels=none)"
    if labels in ("auto", "dataset.json") and STYLEGAN_LABELS in tree.names:
        if given := _stylegan_labels(tree, files, required=labels == "dataset.json"):
            names = tuple(str(label) for label in range(max(given) + 1))
            return np.array(given, np.int64), names, f"classes: {len(names)} of {STYLEGAN_LABELS}"
    elif labels == "dataset.json":
        raise UserError(
            f"data.labels=dataset.json: {printable(tree.path)} has no such file at its top; try"
            " folder or none"
        )
    folders = [path.parts[0] if len(path.parts) > 1 else None for path in inner_paths]
    names = tuple(sorted({folder for folder in folders if folder is not None}))
    if not names:
        return *none, "no classes, as there are no folders"
    if labels == "auto" and len(set(folders)) == 1:
        return *none, f"no classes, as all are in the folder {printable(names[0])}"
    if labels == "auto" and _are_batches(inner_paths):
        return *none, f"no classes: {printable(names[0])} and so on are numbered batches"
    if None in folders:
        raise UserError(
            f"{printable(tree.path)}: {printable(files[folders.index(None)])} lies beside the class"
            f" folders ({printable(names[0])} and so on), so it has no class; move it into one, or"
            " use --data.labels none"
        )
    index = {name: number for number, name in enumerate(names)}
    shown = [printable(name) for name in (*names[:4], *(["..."] if len(names) > 4 else []))]
    note = f"classes: {len(names)}, the folders {', '.join(shown)}"
    return np.array([index[str(folder)] for folder in folders], np.int64), names, note


def _are_batches(paths: list[PurePosixPath]) -> bool:
    """Return whether the folders are parts of one numbered series, such as FFHQ's 00000, 01000.

    The numbers of their files go on from folder to folder; in folders of classes they start anew.
    """
    folders = {path.parts[0] for path in paths}
    if not all(re.fullmatch(r"[0-9]{4,}", folder) for folder in folders):
        return False
    stems = [re.sub(r"[^0-9]", "", path.stem) for path in sorted(paths)]
    numbers = [int(stem) if stem else -1 for stem in stems]
    return all(a < b for a, b in itertools.pairwise(numbers))


def _stylegan_labels(tree: Tree, files: list[str], required: bool) -> list[int] | None:
    """Read ``{"labels": [["00000/img00000000.png", 6], ...]}``; None if there are no labels."""
    path = tree.locate(STYLEGAN_LABELS)
    try:
        pairs = json.loads(tree.read(STYLEGAN_LABELS))["labels"]
        label_of = dict(pairs) if pairs else {}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f'{path}: must be {{"labels": [[FILE, NUMBER], ...]}} ({error}); mend it, or use'
            " --data.labels none"
        ) from error
    if not label_of and not required:
        return None
    given = [label_of.get(name) for name in files]
    for name, label in zip(files, given, strict=True):
        if type(label) is not int or not 0 <= label < 100_000:
            raise UserError(
                f"{path}: the label of {printable(name)} is {str(label)[:40]}, not a whole number"
                " from 0 on; mend it, or use --data.labels none"
            )
    return [int(label) for label in given if label is not None]


def _read_headers(
    tree: Tree, names: list[str], bad_images: Literal["error", "skip"]
) -> dict[str, _Header]:
    """Return the headers of the images that have a valid one.

    Raises:
        BadImagesError: Some have none, unless they are to be skipped.
    """
    headers, problems = {}, {}
    what = f"headers of {printable(tree.path.name)}"
    for index, name in enumerate(iter_with_progress(names, what, "images")):
        try:
            headers[name] = _header(tree, name)
        except UserError as error:
            problems[index] = str(error)
    if problems:
        error = BadImagesError(problems)
        if bad_images == "skip" or len(problems) > 1:  # else the message has all there is to say
            error.log()
        if bad_images == "error" or not headers:
            raise error
    return headers


def _header(tree: Tree, name: str) -> _Header:
    with (
        _named_errors(tree, name),
        tree.open(name) as raw,
        Image.open(raw, formats=list(FORMATS)) as file,
    ):
        _check_depth(file)
        width, height = file.size
        orientation = _orientation(file)
        if orientation in ROTATED:
            width, height = height, width
        keep = file.format == "JPEG" and file.mode in ("L", "RGB") and orientation == 1
        return _Header(height, width, keep, file.has_transparency_data)


def _orientation(file: Image.Image) -> int:
    """Return the EXIF orientation of a photograph; 1 is upright."""
    # Of a PNG whose EXIF data come after its pixels, Pillow would read all pixels.
    return file.getexif().get(ORIENTATION, 1) if "exif" in file.info else 1


def _check_depth(file: Image.Image) -> None:
    if file.mode.split(";")[0] in DEEP_MODES:
        raise UserError(f"has more than 8 bits a channel ({file.mode})")


@contextlib.contextmanager
def _named_errors(tree: Tree, name: str) -> Iterator[None]:
    """Raise errors of a file as UserError that names it."""
    try:
        yield
    # PIL raises OSError, SyntaxError, ValueError and others for a bad file.
    except Exception as error:
        reason = " ".join(str(error).split())
        if isinstance(error, UnidentifiedImageError):
            reason = "its content is of no known format"
        raise UserError(
            f"{tree.locate(name)}: cannot be read as an 8-bit image ({reason})"
        ) from error
