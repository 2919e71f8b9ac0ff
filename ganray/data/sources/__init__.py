"""Image sets as they were published: where the pixels and the labels of image i come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ganray.errors import UserError

if TYPE_CHECKING:
    from ganray.data.format import ImageSource

NAMES = {
    "celeba": "aligned CelebA as downloaded: PATH holds its zip (or folder) and its text files",
    "mnist": "70,000 handwritten digits, 28x28: PATH holds MNIST/raw/, as torchvision lays it out",
    "fashion-mnist": "70,000 pictures of clothes, 28x28: PATH holds FashionMNIST/raw/",
    "stacked-mnist": "1,000 classes of three digits in red, green, blue: PATH as for mnist",
    "digits": "1,797 handwritten digits, 8x8, that come with scikit-learn: needs no PATH",
    "folder": "any images: PATH holds a folder for each class, or the images themselves",
    "source-text": "faces as the source text stores them: PATH is its HDF5 file",
}
"""The sources of the command line, each with one line of help."""

_DOWNLOADABLE = ("celeba", "mnist", "fashion-mnist", "stacked-mnist")


def open_source(
    name: str,
    path: Path | None,
    *,
    download: bool = False,
    rng_seed: int = 0,
    count: int | None = None,
) -> ImageSource:
    """Open an image set by the name it has on the command line.

    Args:
        name: One of ``NAMES``.
        path: What ``NAMES`` says; None only for ``digits``, which ignores it.
        download: Let torchvision fetch the set into ``path`` where it is not there.
        rng_seed: Which digits ``stacked-mnist`` stacks; the others draw nothing.
        count: How many images for training ``stacked-mnist`` makes; None makes 128,000.

    Raises:
        ValueError: The name is unknown, an option does not go with it, or the set cannot be opened.
    """
    if name not in NAMES:
        raise UserError(f"source={name!r} is unknown; use one of {', '.join(NAMES)}")
    if count is not None and name != "stacked-mnist":
        raise UserError(f"count={count}: only stacked-mnist makes as many as asked; leave it out")
    if download and name not in (*_DOWNLOADABLE, "digits"):
        raise UserError(
            f"download=True: {name} cannot be fetched, only {', '.join(_DOWNLOADABLE)}; leave it "
            "out"
        )
    if name == "digits":
        from ganray.data.sources.digits import Digits

        return Digits.open()
    if path is None:
        raise UserError(f"{name} needs a path: {NAMES[name]}")
    return _open_path(name, Path(path), download, rng_seed, 128_000 if count is None else count)


def _open_path(name: str, path: Path, download: bool, rng_seed: int, count: int) -> ImageSource:
    # Each source is imported where it is used: nobody pays for one that was not asked for.
    if name == "celeba":
        from ganray.data.sources.celeba import CelebA

        return CelebA.download(path) if download else CelebA.open(path)
    if name == "folder":
        from ganray.data.sources.image_folder import ImageFolder

        return ImageFolder.open(path)
    if name == "source-text":
        from ganray.data.sources.source_text import SourceTextHDF5

        return SourceTextHDF5.open(path)
    from ganray.data.sources import mnist

    if name == "stacked-mnist":
        return mnist.StackedMNIST.open(path, rng_seed=rng_seed, count=count, download=download)
    return {"mnist": mnist.MNIST, "fashion-mnist": mnist.FashionMNIST}[name].open(
        path, download=download
    )
