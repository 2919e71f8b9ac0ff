"""scikit-learn's handwritten digits, which need no download."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ganray.data.sources.labeled_images import NumberedImages
from ganray.errors import UserError

NUM_TEST = 297


@dataclass(eq=False, repr=False)
class Digits(NumberedImages):
    """1,797 real handwritten digits of 8x8 pixels, as scikit-learn ships them.

    Created by ``Digits.open``. They are the test part of UCI's "Optical Recognition of Handwritten
    Digits", by 13 people who wrote none of its training part. The last 297 are held out here. The
    writers of the digits are not published, so both splits may contain digits of one person.
    """

    images: NDArray[np.uint8]
    """(1797, 8, 8) in 0..255; small enough to be pickled along."""
    labels: NDArray[np.int64]
    """(1797,) in 0..9."""
    name: str = "digits"
    """Name of the source in recipes and manifests."""
    image_shape: tuple[int, int, int] = (8, 8, 1)
    """Height, width and channels of every image."""
    class_names: tuple[str, ...] = tuple("0123456789")
    """Names of the values of ``labels``."""

    @classmethod
    def open(cls) -> Self:
        """Load the set from scikit-learn.

        Raises:
            UserError: scikit-learn is not installed.
        """
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise UserError(
                f"digits: they come with scikit-learn, which does not import ({error}); "
                "pip install scikit-learn"
            ) from error
        sixteenths, labels = load_digits(return_X_y=True)
        # Each value is the number of black pixels in a block of 4x4, 0 to 16.
        images = np.rint(np.asarray(sixteenths) * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
        return cls(images, np.asarray(labels, np.int64))

    @property
    def split(self) -> NDArray[np.uint8]:
        """(1797,) 0 train; the last 297: 2 test."""
        return np.where(self.ids < len(self) - NUM_TEST, 0, 2).astype(np.uint8)

    def read(self, index: int) -> Image.Image:
        """Return one image: gray, 8x8, white on black."""
        return Image.fromarray(self.images[index])

    def fingerprint(self) -> str:
        """Return the SHA-256 in hex of pixels and labels."""
        return hashlib.sha256(self.images.tobytes() + self.labels.tobytes()).hexdigest()
