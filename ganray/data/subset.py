"""A subset of a set of images."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from ganray.data.format import Annotations
from ganray.data.loader import ImageDataset


class Subset:
    """Some images of a set, with indices from 0.

    Args:
        images: The set.
        ids: Indices of the images, int64 (n,), ascending, so that neighbors stay neighbors.
    """

    def __init__(self, images: ImageDataset, ids: NDArray[np.int64]) -> None:
        self._images, self._ids = images, ids
        self.image_shape, self.shard_rows = images.image_shape, images.shard_rows
        self.class_names, self.attribute_names = images.class_names, images.attribute_names

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._ids)

    def read_batch(self, ids: NDArray[np.int64], out: torch.Tensor) -> None:
        """Copy the images at ``ids``, (n,), into ``out``, uint8 (n, H, W, C)."""
        self._images.read_batch(self._ids[ids], out)

    def annotations(self, ids: NDArray[np.int64]) -> Annotations:
        """Return the annotations of the images that ``read_batch`` returns for ``ids``."""
        return self._images.annotations(self._ids[ids])

    def prefetch(self, rows: Iterable[range]) -> None:
        """Start fetching these images and those between them, if they are remote."""
        self._images.prefetch(range(int(self._ids[r[0]]), int(self._ids[r[-1]]) + 1) for r in rows)

    def close(self) -> None:
        """Stop fetching; no batch is read afterwards."""
        self._images.close()
