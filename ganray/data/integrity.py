"""Verification at first touch: a block of images is compared with its digest when first read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ganray.data.format import BLOCK, REPAIR, ShardHeader, ShardSpec, check_value
from ganray.data.mapping import Mapping
from ganray.errors import UserError


class BlockVerifier:
    """Compares each block of 64 images with its digest the first time one of them is read.

    Args:
        specs: The shards.
        mapping: Their images.
    """

    def __init__(self, specs: list[ShardSpec], mapping: Mapping) -> None:
        self._specs, self._mapping = specs, mapping
        self._headers: list[ShardHeader | None] = [None] * len(specs)
        self._first_rows = np.array([spec.first for spec in specs])
        self._first_blocks = np.cumsum([0, *(len(spec.blocks) for spec in specs)])
        self._verified = np.zeros(self._first_blocks[-1], bool)
        self._num_unverified = len(self._verified)

    def add(self, number: int, header: ShardHeader) -> None:
        """Register a shard that was opened."""
        self._headers[number] = header

    def verify(self, ids: NDArray[np.int64]) -> None:
        """Verify the blocks of these images, int64 (n,), whose shards were added.

        Raises:
            UserError: A block is damaged; names the file and the rows.
        """
        if self._num_unverified == 0:
            return
        shards = np.searchsorted(self._first_rows, ids, side="right") - 1
        blocks = self._first_blocks[shards] + (ids - self._first_rows[shards]) // BLOCK
        for block in np.unique(blocks[~self._verified[blocks]]):
            self._verify_block(int(block))

    def _verify_block(self, block: int) -> None:
        number = int(np.searchsorted(self._first_blocks, block, side="right")) - 1
        spec, header = self._specs[number], self._headers[number]
        pixels = self._mapping.pieces[number]
        assert header is not None
        assert pixels is not None
        local = block - int(self._first_blocks[number])
        rows = spec.blocks[local]
        begin, end = header.offsets[[rows.start, rows.stop]]
        if check_value(pixels[begin:end]) != header.check[local]:
            raise UserError(f"{spec.path}: rows {rows.start}-{rows.stop - 1} are damaged; {REPAIR}")
        self._verified[block] = True
        self._num_unverified -= 1
