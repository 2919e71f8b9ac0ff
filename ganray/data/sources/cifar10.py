"""CIFAR-10 as its authors publish it: the binary version, or the Python version of torchvision.

The Python version consists of pickles, and a pickle can run any program. Here they are read by an
unpickler that knows lists, texts, numbers and bytes, and calls nothing that a file names.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, ClassVar, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray

from ganray.data.sources import labeled_images
from ganray.data.sources.labeled_images import LabeledImages
from ganray.data.sources.listing import printable
from ganray.errors import UserError

SIDE, CLASSES = 32, 10
PIXELS = 3 * SIDE * SIDE
BATCHES = {f"data_batch_{number}": 0 for number in range(1, 6)} | {"test_batch": 2}
"""Files in their order, with the index of their split in SPLITS."""
_MAX_BYTES = 2**26
"""Maximum size of a file; the published ones have 31 MB."""
_MAX_ARCHIVE_BYTES, _MAX_MEMBERS = 2**29, 100
"""Maximum size of an unpacked archive, and number of its members; the published one has 186 MB."""
_BLOCK = 2**20
"""Bytes that are read at once. No header of an archive is longer."""
_AGAIN = "delete it and download again"


class _Layout(NamedTuple):
    folder: str
    archive: str
    suffix: str


LAYOUTS = (
    _Layout("cifar-10-batches-bin", "cifar-10-binary.tar.gz", ".bin"),
    _Layout("cifar-10-batches-py", "cifar-10-python.tar.gz", ""),
)


class CIFAR10(LabeledImages):
    """CIFAR-10: 50,000 photographs of 32x32 pixels for training, then 10,000 for testing.

    Created by ``CIFAR10.open``. Its 184 MB are kept in memory. Both versions have the same images
    in the same order.
    """

    name: str = "cifar10"
    image_shape: tuple[int, int, int] = (SIDE, SIDE, 3)
    class_names: tuple[str, ...] = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )

    def __init__(self, root: Path) -> None:
        batches = _read_batches(root)
        parts = {}
        for split in dict.fromkeys(BATCHES.values()):
            chosen = [batches[name] for name in BATCHES if BATCHES[name] == split]
            pixels, labels = (np.concatenate(arrays) for arrays in zip(*chosen, strict=True))
            images = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
            parts[split] = np.ascontiguousarray(images), labels
        super().__init__(root, parts)

    @classmethod
    def open(cls, root: Path, *, download: bool = False) -> Self:
        """Open the set as torchvision lays it out, or as it was published.

        Args:
            root: Contains ``cifar-10-batches-bin``, ``cifar-10-binary.tar.gz``,
                ``cifar-10-batches-py`` or ``cifar-10-python.tar.gz``, the first of which is read.
            download: Let torchvision download the last of them if there is none (170 MB).

        Raises:
            UserError: The files are missing or damaged, or the download failed.
        """
        root = Path(root).expanduser().absolute()
        if download and not _find(root):
            _download(root)
        return cls(root)


def _find(root: Path) -> _Layout | None:
    return next(
        (
            layout
            for layout in LAYOUTS
            if (root / layout.folder).is_dir() or (root / layout.archive).is_file()
        ),
        None,
    )


def _download(root: Path) -> None:
    def fetch() -> None:
        from torchvision.datasets import CIFAR10 as Published
        from torchvision.datasets.utils import download_url

        # The archive alone: torchvision's class would also extract and unpickle it.
        part = f"{Published.filename}.part"  # an interrupted download leaves no archive
        download_url(Published.url, str(root), part, Published.tgz_md5)
        (root / part).replace(root / Published.filename)

    advice = f"fetch {LAYOUTS[0].archive} on a machine that can and copy it here"
    labeled_images.download("CIFAR-10", root, fetch, advice)


def _read_batches(root: Path) -> Mapping[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Return pixels, (n, 3072), and labels, (n,), of every batch by its name."""
    layout = _find(root)
    if layout is None:
        names = ", ".join(name for layout in LAYOUTS for name in layout[:2])
        raise UserError(
            f"{printable(root)}: contains no CIFAR-10; looked for {names}; let torchvision fetch it"
            " with --data.download true"
        )
    folder, parse = root / layout.folder, _parse_binary if layout.suffix else _parse_pickle
    place = folder if folder.is_dir() else root / layout.archive
    files = _read_folder(folder, layout) if place == folder else _read_archive(place, layout)
    if absent := [name + layout.suffix for name in BATCHES if name not in files]:
        raise UserError(f"{printable(place)}: contains no {', '.join(absent)}; {_AGAIN}")
    batches = {}
    for name, data in files.items():
        where = printable(place / (name + layout.suffix))
        if len(data) > _MAX_BYTES:
            raise UserError(f"{where}: larger than {_MAX_BYTES // 2**20} MiB; {_AGAIN}")
        batches[name] = parse(data, where)
    return batches


def _read_folder(folder: Path, layout: _Layout) -> dict[str, bytes]:
    paths = {name: folder / (name + layout.suffix) for name in BATCHES}
    return {name: _read_limited(path.open("rb")) for name, path in paths.items() if path.is_file()}


def _read_archive(archive: Path, layout: _Layout) -> dict[str, bytes]:
    names = {name + layout.suffix: name for name in BATCHES}
    files = {}
    try:
        with (
            gzip.open(archive) as unpacked,
            tarfile.TarFile(fileobj=cast(IO[bytes], _Forward(cast(IO[bytes], unpacked)))) as tar,
        ):
            for number, member in enumerate(tar):
                if number == _MAX_MEMBERS:
                    raise ValueError(f"it has more than {_MAX_MEMBERS} members")
                name = names.get(PurePosixPath(member.name).name)
                if name and member.isreg():
                    files[name] = _read_limited(cast(IO[bytes], tar.extractfile(member)))
    # tarfile raises its own exceptions, EOFError, OSError and zlib.error for a damaged archive.
    except Exception as error:
        reason = printable(" ".join(str(error).split())[:200])
        raise UserError(f"{printable(archive)}: cannot be read ({reason}); {_AGAIN}") from error
    return files


class _Forward:
    """Unpacked archive that is read forwards, within limits.

    tarfile reads a header at once, however long it is, and skips what is between the members.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._position = file, 0

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _BLOCK:
            raise ValueError(f"a header has more than {_BLOCK // 2**20} MiB")
        data = self._file.read(size)
        self._position += len(data)
        if self._position > _MAX_ARCHIVE_BYTES:
            raise ValueError(f"it unpacks to more than {_MAX_ARCHIVE_BYTES // 2**20} MiB")
        return data

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if position < self._position:
            raise ValueError("its members overlap")
        while self._position < position:
            if not self.read(min(_BLOCK, position - self._position)):
                raise EOFError("unexpected end of data")


def _read_limited(file: IO[bytes]) -> bytes:
    """Return the content of a file; of one that is too large, more than _MAX_BYTES."""
    data = bytearray()
    with file:
        while len(data) <= _MAX_BYTES and (block := file.read(_BLOCK)):
            data += block
    return bytes(data)


def _parse_binary(data: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if len(data) % (1 + PIXELS):
        raise UserError(
            f"{where}: cut short or another file: {len(data)} bytes are not a multiple of"
            f" {1 + PIXELS}; {_AGAIN}"
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, 1 + PIXELS)
    return _checked(rows[:, 1:], rows[:, 0].astype(np.int64), where)


def _parse_pickle(data: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        content = _Unpickler(io.BytesIO(data), encoding="latin1").load()  # Python 2's bytes
        _, shape, dtype, is_fortran, raw = content["data"].state
        if dtype.arguments[0] != "u1" or is_fortran:
            raise ValueError("the pixels are not bytes in C order")
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        pixels = np.frombuffer(raw, np.uint8).reshape(shape)
        labels = content["labels"]
        # An array of lists that share their elements could be larger than the file by any factor.
        if type(labels) is not list or not set(map(type, labels)) <= {int}:
            raise ValueError("the labels are not a list of integers")
        if len(labels) != len(pixels):
            raise ValueError(f"there are {len(labels)} labels for {len(pixels)} images")
        labels = np.array(labels, np.int64)
    except Exception as error:  # a pickle that is damaged raises any exception
        reason = printable(" ".join(f"{type(error).__name__}: {error}".split())[:200])
        raise UserError(
            f"{where}: not a batch of CIFAR-10's Python version ({reason}); {_AGAIN}"
        ) from error
    return _checked(pixels, labels, where)


def _checked(
    pixels: NDArray[np.uint8], labels: NDArray[np.int64], where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if not len(pixels) or pixels.shape != (len(pixels), PIXELS) or labels.shape != (len(pixels),):
        raise UserError(
            f"{where}: has pixels {pixels.shape} and labels {labels.shape}, not (n, {PIXELS}) and"
            f" (n,); {_AGAIN}"
        )
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise UserError(f"{where}: has labels outside 0 to {CLASSES - 1}; {_AGAIN}")
    return pixels, labels


class _Record:
    """Stand-in for NumPy's classes, which keeps what a pickle passes to them."""

    def __init__(self, *arguments: object) -> None:
        self.arguments, self.state = arguments, ()

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.state = state


# Python's own unpickler and not that in C, whose table grows with any number in a damaged file.
# Of its operations only that of bytearrays allocates what a file claims before it reads.
class _Unpickler(pickle._Unpickler):
    """Unpickler that makes no object of what a pickle names: arrays become records."""

    _KNOWN = ("_reconstruct", "ndarray", "dtype")
    dispatch: ClassVar[dict[int, Callable[[pickle.Unpickler], None]]] = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if code != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module: str, name: str) -> type[_Record]:
        if module.split(".")[0] == "numpy" and name in self._KNOWN:
            return _Record
        raise pickle.UnpicklingError(
            f"names {printable(f'{module}.{name}')}, which an array of bytes does not need"
        )
