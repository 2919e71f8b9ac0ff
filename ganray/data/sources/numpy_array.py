"""Images in one NumPy array, as samples are exchanged: .npy, or .npz as ADM (guided-diffusion) has.

Object arrays, which are pickles, are never read. Images are read one by one, also of compressed
files; the labels are read whole.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from ganray.data.sources.hdf5_file import one_line, sample_digest
from ganray.data.sources.labeled_images import NumberedImages
from ganray.data.sources.listing import printable, split_by_name
from ganray.errors import UserError

_IMAGES, _LABELS = "arr_0", "arr_1"
_ADVICE = "give a .npy or .npz file with an array of images, uint8 (N, H, W, 3) or (N, H, W, 1)"
_MAX_CLASSES = 100_000
_MAX_IMAGE_BYTES = 2**28
_MAX_HEADER_BYTES = 10_000
"""Maximum length of an array's header, also of those that NumPy reads."""
_MAX_RATIO = 1032
"""Upper bound of the factor by which Deflate compresses."""


class _Header(NamedTuple):
    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]
    size: int  # of the header itself, in bytes
    file_size: int

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}{' in Fortran order' * self.is_fortran}"

    def has_images(self) -> bool:
        return (
            self.dtype == np.uint8
            and len(self.shape) == 4
            and self.shape[3] in (1, 3)
            and min(self.shape) > 0
            and not self.is_fortran
        )


@dataclass(eq=False, repr=False)
class NumpyArray(NumberedImages):
    """Images uint8 (N, H, W, 1 or 3), in a .npy file or in an array of a .npz file.

    Created by ``NumpyArray.open``. It can be pickled to other processes: each process opens the
    file itself. A tenth of the images is held out as ``test``, by a hash of the index.
    """

    path: Path
    array: str
    """Name of the array in a .npz file; '' in a .npy file."""
    offset: int
    """Size of the array's header in bytes."""
    labels: NDArray[np.int64]
    """(N,) index into ``class_names``; -1 if there are none."""
    class_names: tuple[str, ...]
    """The numbers in the array of labels, from 0 on."""
    image_shape: tuple[int, int, int]
    split: NDArray[np.uint8]
    """(N,) 0 train, 2 test."""
    notes: tuple[str, ...]
    """Detected layout and labels, for the plan."""
    name: str = "numpy"
    """Name of the source in recipes and manifests."""
    _handle: tuple[int, IO[bytes]] | None = None

    @classmethod
    def open(cls, path: Path, labels: Literal["auto", "none"] = "auto") -> NumpyArray:
        """Find the array of images, and that of labels beside it.

        Args:
            path: A .npy file, or a .npz file, whose images are ``arr_0``, else the first array of
                that form, and whose labels are ``arr_1`` if it has a class from 0 on for each.
            labels: ``none``: labels are ignored.

        Raises:
            UserError: There is no such array, or the file is damaged.
        """
        path = Path(path).expanduser().absolute()
        headers = _read_headers(path)
        names = [name for name, header in headers.items() if header.has_images()]
        if not names:
            found = ", ".join(map(str, list(headers.values())[:8])) or "no array"
            raise UserError(f"{printable(path)}: contains {found}; {_ADVICE}")
        array = _IMAGES if _IMAGES in names else names[0]
        count, height, width, channels = headers[array].shape
        if height * width * channels > _MAX_IMAGE_BYTES:
            raise UserError(
                f"{printable(path)}: contains {headers[array]}, images of more than"
                f" {_MAX_IMAGE_BYTES // 2**20} MiB each; write smaller ones"
            )
        given = None if labels == "none" else _read_labels(path, headers.get(_LABELS), count)
        class_names = () if given is None else tuple(map(str, range(int(given.max()) + 1)))
        return cls(
            path,
            array,
            headers[array].size,
            np.full(count, -1) if given is None else given,
            class_names,
            (height, width, channels),
            split_by_name(range(count)),
            (f"classes: {len(class_names)} of {_LABELS}" if class_names else "no classes",),
        )

    def read(self, index: int) -> Image.Image:
        """Return one image, gray or RGB. Of compressed files, ascending indices are fast.

        Raises:
            UserError: It is damaged.
        """
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = os.getpid(), _open(self.path, self.array)
        size = math.prod(self.image_shape)
        where = f"{printable(self.path)}: image {index}"
        try:
            self._handle[1].seek(self.offset + index * size)
            data = self._handle[1].read(size)
        except Exception as error:  # zipfile raises BadZipFile, zlib.error and others
            raise UserError(f"{where} cannot be read ({_reason(error)})") from error
        if len(data) < size:
            raise UserError(f"{where} cannot be read: the file is shorter than it was")
        pixels = np.frombuffer(data, np.uint8).reshape(self.image_shape)
        return Image.fromarray(pixels[..., 0] if self.image_shape[2] == 1 else pixels)

    def fingerprint(self) -> str:
        """Return a SHA-256 in hex of a sample of the file, the array's name and the labels."""
        digest = hashlib.sha256(f"{sample_digest(self.path)} {self.array}".encode())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the handle: processes that share a file position read wrong bytes."""
        return self.__dict__ | {"_handle": None}


def _open(path: Path, array: str) -> IO[bytes]:
    return zipfile.ZipFile(path).open(f"{array}.npy") if array else path.open("rb")


def _read_headers(path: Path) -> dict[str, _Header]:
    """Return the headers of all arrays by name; '' is that of a .npy file."""
    if not path.is_file():
        raise UserError(f"{printable(path)}: no such file; {_ADVICE}")
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                headers = {"": _read_header(file, path.stat().st_size)}
        else:
            headers = {}
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if info.filename.endswith(".npy"):
                        _check_size(info, path.stat().st_size)
                        with archive.open(info) as file:
                            header = _read_header(file, info.file_size)
                            headers[info.filename.removesuffix(".npy")] = header
    except Exception as error:  # numpy and zipfile raise exceptions of many kinds
        reason = _reason(error)
        raise UserError(f"{printable(path)}: cannot be read ({reason}); {_ADVICE}") from error
    for header in headers.values():
        if header.has_images() and header.file_size != header.size + math.prod(header.shape):
            raise UserError(f"{printable(path)}: cut short or too long; write it again")
    return headers


def _check_size(info: zipfile.ZipInfo, file_size: int) -> None:
    """Raise ValueError if a member of a zip file claims more bytes than the file can hold."""
    ratios = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _MAX_RATIO}
    if info.compress_type not in ratios:
        raise ValueError(f"{info.filename} is compressed by another method than Deflate")
    if info.file_size > ratios[info.compress_type] * min(info.compress_size, file_size):
        raise ValueError(f"{info.filename} claims more bytes than the file can hold")


def _read_header(file: IO[bytes], file_size: int) -> _Header:
    """Read a header of version 1.0, as of all arrays of numbers; others may be of any length."""
    start = file.read(npy.MAGIC_LEN)
    version = npy.read_magic(io.BytesIO(start))
    if version != (1, 0):
        raise ValueError(f"the version of its header is {version[0]}.{version[1]}, not 1.0")
    length = file.read(2)
    num_bytes = int.from_bytes(length, "little")
    if num_bytes > _MAX_HEADER_BYTES:
        raise ValueError(f"its header has {num_bytes} bytes")
    header = io.BytesIO(length + file.read(num_bytes))
    shape, is_fortran, dtype = npy.read_array_header_1_0(header, _MAX_HEADER_BYTES)
    size = len(start) + len(length) + num_bytes
    return _Header(shape, is_fortran, dtype, size, file_size)


def _reason(error: Exception) -> str:
    return printable(one_line(error)[:200])


def _read_labels(path: Path, header: _Header | None, count: int) -> NDArray[np.int64] | None:
    """Return the labels, (count,); None if there are none, or others than classes from 0 on."""
    if header is None or header.shape != (count,) or header.dtype.kind not in "ui":
        return None
    try:
        with _open(path, _LABELS) as file:
            labels = npy.read_array(file, allow_pickle=False, max_header_size=_MAX_HEADER_BYTES)
        if (labels.shape, labels.dtype) != (header.shape, header.dtype):
            raise ValueError("the file has changed")
        labels = labels.astype(np.int64)
    except Exception as error:  # numpy and zipfile raise exceptions of many kinds
        raise UserError(f"{printable(path)}: {_LABELS}: {_reason(error)}") from error
    return labels if labels.min() >= 0 and labels.max() < _MAX_CLASSES else None
