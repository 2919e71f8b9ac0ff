"""Image sets as they were published, for conversion to shards."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from ganray.config.schema import LabelSource
from ganray.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from ganray.data.format import Shape

NAMES = {
    "celeba": "aligned CelebA: PATH holds its images, zipped or not, and its lists, at any depth;"
    " or it is the source text's HDF5 file",
    "mnist": "70,000 handwritten digits, 28x28: PATH holds MNIST/raw/, as torchvision lays it out",
    "fashion-mnist": "70,000 pictures of clothes, 28x28: PATH holds FashionMNIST/raw/",
    "stacked-mnist": "1,000 classes of three digits in red, green, blue: PATH as for mnist",
    "cifar10": "60,000 photographs of ten classes, 32x32: PATH holds cifar-10-*, unpacked or not",
    "digits": "1,797 handwritten digits, 8x8, that come with scikit-learn: needs no PATH",
    "folder": "any images: PATH is a folder or zip of them, perhaps with a folder for each class",
    "hdf5": "all images in one dataset: PATH is an HDF5 file, as BigGAN and StudioGAN write it",
    "numpy": "all images in one array: PATH is a .npz or .npy file, as guided-diffusion writes it",
    "source-text": "CelebA as the source text stores it: PATH is its HDF5 file",
}
"""Sources by their names on the command line, with a line of help each."""

_DOWNLOADABLE = ("celeba", "mnist", "fashion-mnist", "stacked-mnist", "cifar10")


@dataclass(frozen=True)
class SourceOptions:
    """Options of single sources; the others ignore them."""

    missing: Literal["skip", "error"] = "skip"
    """celeba: whether images and lists may be missing."""
    labels: LabelSource = "auto"
    """folder, hdf5, numpy: where the classes come from."""
    bad_images: Literal["error", "skip"] = "error"
    """Whether images that cannot be read are left out."""
    background: str = "white"
    """folder: color behind what is transparent."""
    dataset: str | None = None
    """hdf5: path of the dataset in the file; None: the only one, or one called images."""


DEFAULT_OPTIONS = SourceOptions()


def source_options(config: object) -> SourceOptions:
    """Return the options that are fields of a config, with the same names."""
    names = (field.name for field in dataclasses.fields(SourceOptions))
    return SourceOptions(**{name: getattr(config, name) for name in names})


def notes_of(source: ImageSource) -> tuple[str, ...]:
    """Return what the source has detected or left out, for the plan."""
    return getattr(source, "notes", ())


class ImageSource(Protocol):
    """An image set that ``write_shards`` converts. It is pickled to the conversion workers.

    It may have an attribute ``notes``, see `notes_of`.
    """

    @property
    def name(self) -> str:
        """Name of the source in recipes and manifests."""
        ...

    @property
    def image_shape(self) -> Shape:
        """Height, width and channels of every image; (0, 0, C) if sizes differ."""
        ...

    @property
    def ids(self) -> NDArray[np.int64]:
        """(N,) number of the original."""
        ...

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) class of each image; -1 for none."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; empty if there are none."""
        ...

    @property
    def attributes(self) -> NDArray[np.uint8]:
        """(N, A) 0 or 1."""
        ...

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """Names of the A attributes."""
        ...

    @property
    def split(self) -> NDArray[np.uint8]:
        """(N,) 0 train, 1 valid, 2 test."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def read(self, index: int) -> Image.Image:
        """Return one image: 8-bit RGB or gray, of the size in ``image_shape``."""
        ...

    def fingerprint(self) -> str:
        """Return a digest that changes when the data change."""
        ...


class JpegSource(ImageSource, Protocol):
    """A source of JPEG files, which can be stored unchanged."""

    def read_bytes(self, index: int) -> bytes:
        """Return the file of one image."""
        ...

    def num_bytes(self) -> NDArray[np.int64]:
        """Return the size of every file, (N,), without reading them."""
        ...


def open_source(
    name: str,
    path: Path | None,
    *,
    download: bool = False,
    rng_seed: int = 0,
    count: int | None = None,
    options: SourceOptions = DEFAULT_OPTIONS,
) -> ImageSource:
    """Open an image set.

    Args:
        name: One of ``NAMES``.
        path: Folder or file, see ``NAMES``; None only for ``digits``, which ignores it.
        download: Let torchvision download the set into ``path`` unless it is there.
        rng_seed: Seed of the digits that ``stacked-mnist`` stacks.
        count: Number of training images of ``stacked-mnist``; None: 128,000.
        options: Options of single sources.

    Raises:
        UserError: The name is unknown, an option does not apply, or the set cannot be opened.
    """
    if name not in NAMES:
        raise UserError(f"source={name!r} is unknown; use one of {', '.join(NAMES)}")
    if count is not None and name != "stacked-mnist":
        raise UserError(f"count={count}: only stacked-mnist has this option; leave it out")
    if download and name not in (*_DOWNLOADABLE, "digits"):
        raise UserError(
            f"download=true: {name} cannot be fetched, only {', '.join(_DOWNLOADABLE)}; leave it "
            "out"
        )
    if name == "digits":
        from ganray.data.sources.digits import Digits

        return Digits.open()
    if path is None:
        raise UserError(f"{name} needs a path: {NAMES[name]}")
    # Each source is imported where it is used, because some imports are slow.
    path = Path(path)
    if name == "celeba":
        from ganray.data.sources.celeba import CelebA
        from ganray.data.sources.source_text import SourceTextHDF5, is_source_text

        if is_source_text(path):
            return SourceTextHDF5.open(path)
        return CelebA.download(path) if download else CelebA.open(path, options.missing)
    if name == "folder":
        from ganray.data.sources.image_folder import ImageFolder

        return ImageFolder.open(
            path,
            labels=options.labels,
            bad_images=options.bad_images,
            background=options.background,
        )
    if name == "hdf5":
        from ganray.data.sources.hdf5_array import HDF5Array

        return HDF5Array.open(path, options.dataset, "none" if options.labels == "none" else "auto")
    if name == "numpy":
        from ganray.data.sources.numpy_array import NumpyArray

        return NumpyArray.open(path, "none" if options.labels == "none" else "auto")
    if name == "source-text":
        from ganray.data.sources.source_text import SourceTextHDF5

        return SourceTextHDF5.open(path)
    if name == "cifar10":
        from ganray.data.sources.cifar10 import CIFAR10

        return CIFAR10.open(path, download=download)
    from ganray.data.sources import mnist

    if name == "stacked-mnist":
        count = 128_000 if count is None else count
        return mnist.StackedMNIST.open(path, rng_seed=rng_seed, count=count, download=download)
    return {"mnist": mnist.MNIST, "fashion-mnist": mnist.FashionMNIST}[name].open(
        path, download=download
    )
