"""Notice damaged pictures when they are first read, and say which others stand in for them."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ganray.data.format import BLOCK, REPAIR, ShardHeader, ShardSpec, check_value
from ganray.data.mapping import Mapping
from ganray.errors import UserError

_UNREAD, _SOUND, _DAMAGED = range(3)


class FirstTouch:
    """Compares a block of 64 images with its check value the first time one of them is read.

    Args:
        places: The shards of the set.
        mapping: Their pictures.
        skip: Replace the images of a damaged block by those of the next sound one, instead of
            raising. Which ones depends on the files alone, so every run and rank does the same.
        bring: Makes sure that the shard of this number is mapped.
    """

    def __init__(
        self, places: list[ShardSpec], mapping: Mapping, skip: bool, bring: Callable[[int], None]
    ) -> None:
        self._places, self._mapping, self._skip, self._bring = places, mapping, skip, bring
        self._contents: list[ShardHeader | None] = [None] * len(places)
        self._first_rows = np.array([place.first for place in places])
        blocks = [len(place.blocks) for place in places]
        self._first_blocks = np.cumsum([0, *blocks])
        self._states = np.full(sum(blocks), _UNREAD, np.uint8)
        self._not_sound = sum(blocks)  # as far as is known
        self._num_rows = sum(place.rows for place in places)

    def add(self, number: int, contents: ShardHeader) -> None:
        """Take the check values of a shard that was opened."""
        self._contents[number] = contents

    def lose(self, number: int, error: ValueError) -> None:
        """Take all of a shard that cannot be opened as damaged.

        Raises:
            ValueError: Damage, and images may not be skipped.
        """
        first, last = self._first_blocks[number : number + 2]
        self._mark(slice(first, last), str(error))

    def is_lost(self, number: int) -> bool:
        """Return whether no image of a shard can be used."""
        first, last = self._first_blocks[number : number + 2]
        return bool((self._states[first:last] == _DAMAGED).all())

    def sound(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the images to read for these: themselves, or what stands in for them.

        Args:
            ids: int64 (n,). Their shards must have been added, or lost.

        Raises:
            ValueError: Damage, and images may not be skipped; or no image is sound.
        """
        if self._not_sound == 0:  # every block was read: nothing is left to be done in a batch
            return ids
        blocks = self._blocks(ids)
        for block in np.unique(blocks[self._states[blocks] == _UNREAD]):
            self._check(int(block))
        damaged = self._states[blocks] == _DAMAGED
        if not damaged.any():
            return ids
        ids = ids.copy()
        ids[damaged] = [self._stand_in(int(row)) for row in ids[damaged]]
        return ids

    def _stand_in(self, row: int) -> int:
        """Return the first image after this one, a block at a time, that may be used."""
        for _ in range(len(self._states) + 1):
            row = (row + BLOCK) % self._num_rows
            (block,) = self._blocks(np.array([row]))
            if self._states[block] == _DAMAGED:
                continue
            self._bring(self._shard(int(block)))
            if self._states[block] == _UNREAD:
                self._check(int(block))
            if self._states[block] == _SOUND:
                return row
        raise UserError(f"{self._places[0].path.parent}: no image is sound; {REPAIR}")

    def _blocks(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        shards = np.searchsorted(self._first_rows, rows, side="right") - 1
        return self._first_blocks[shards] + (rows - self._first_rows[shards]) // BLOCK

    def _shard(self, block: int) -> int:
        return int(np.searchsorted(self._first_blocks, block, side="right")) - 1

    def _check(self, block: int) -> None:
        number = self._shard(block)
        place, contents = self._places[number], self._contents[number]
        pictures = self._mapping.pieces[number]
        assert contents is not None
        assert pictures is not None
        local = block - int(self._first_blocks[number])
        rows = place.blocks[local]
        begin, end = contents.offsets[[rows.start, rows.stop]]
        if check_value(pictures[begin:end]) == contents.check[local]:
            self._states[block] = _SOUND
            self._not_sound -= 1
            return
        problem = f"{place.path}: rows {rows.start}-{rows.stop - 1} are damaged; {REPAIR}"
        self._mark(slice(block, block + 1), problem)

    def _mark(self, blocks: slice, problem: str) -> None:
        if not self._skip:
            raise UserError(problem)
        self._states[blocks] = _DAMAGED
        print(f"skipped, others stand in: {problem}", file=sys.stderr, flush=True)
