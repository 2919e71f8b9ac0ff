"""Order of the training samples: a pure function of (number of samples, rng_seed, step).

The training stream is endless. Position t of it holds sample ``sigma_e[t % N]`` with epoch
``e = t // N``, where ``sigma_e`` is a permutation keyed by ``(rng_seed, e)``. Step k of batch
size B is the positions ``[k B, (k + 1) B)``, and every rank takes a slice of them. Hence each epoch
contains each image exactly once, nothing is padded or dropped, the batch of a step is the same for
any number of ranks, and the state of the stream is one integer: the step.

There are two kinds of ``sigma_e``. The full shuffle permutes all samples. The blocked shuffle is
for storage with slow random access (network file systems, object stores, spinning disks)::

    blocks of K rows   0 1 2 3 4 5 6 7      of N samples; the last block may be short
    shuffled           5 2 7 0 6 1 4 3      a keyed permutation of the blocks
    windows of P = 3   5 2 7|0 6 1|4 3      P blocks together
    stream             =====|-----|~~~      the rows of each window, in a keyed permutation

so that a part of the stream needs only the blocks of its windows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ganray.errors import UserError

# Separates these streams from others that are derived from the same (rng_seed, integer).
ORDER_STREAM = 0x6F72646572

# Larger permutations would be too large to keep in memory.
MAX_PERMUTATION = 2**26


@dataclass(frozen=True)
class DeterministicSampler:
    """The order in which a run sees its samples.

    Raises:
        ValueError: A number is out of its range.
        UserError: The samples or the blocks are too many to be shuffled at once.
    """

    num_samples: int
    """Number of images, at least 1."""
    rng_seed: int
    """Seed of the run, not negative."""
    block: int = 0
    """Rows per block of the blocked shuffle; 0: the full shuffle."""
    window: int = 0
    """Blocks that are shuffled together, at least 1. Ignored if ``block`` is 0."""

    def __post_init__(self) -> None:
        if self.num_samples < 1 or min(self.rng_seed, self.block, self.window) < 0:
            raise ValueError(
                f"num_samples={self.num_samples}, rng_seed={self.rng_seed}, block={self.block}, "
                f"window={self.window}: num_samples must be at least 1 and the others at least 0"
            )
        if self.block and not self.window:
            raise ValueError(
                f"window=0 with block={self.block}: must be at least 1; "
                "use window=32, or block=0 for a full shuffle"
            )
        if self.block * self.window >= MAX_PERMUTATION:
            raise UserError(
                f"data.block_rows={self.block}, data.window_blocks={self.window}: a window is kept"
                f" in memory, so their product must be below {MAX_PERMUTATION}; use smaller ones"
            )
        if (self.num_blocks or self.num_samples) >= MAX_PERMUTATION:
            raise UserError(
                f"{self.num_samples} images cannot be shuffled at once, only {MAX_PERMUTATION - 1};"
                " use data.shuffle=blocks with a larger data.block_rows"
            )

    @property
    def num_blocks(self) -> int:
        """Number of blocks; 0 for the full shuffle."""
        return -(-self.num_samples // self.block) if self.block else 0

    def indices(self, start: int, count: int) -> NDArray[np.int64]:
        """Return the samples at positions ``[start, start + count)`` of the endless stream.

        Args:
            start: First position, from 0.
            count: Number of positions; may span several epochs.

        Returns:
            int64 ``(count,)`` in ``[0, num_samples)``.

        Raises:
            ValueError: A number is negative.
        """
        if min(start, count) < 0:
            raise ValueError(f"start={start}, count={count}: must be at least 0")
        ids = np.empty(count, np.int64)
        filled = 0
        while filled < count:
            epoch, position = divmod(start + filled, self.num_samples)
            piece = self._piece(epoch, position, count - filled)
            ids[filled : filled + len(piece)] = piece
            filled += len(piece)
        return ids

    def _piece(self, epoch: int, position: int, at_most: int) -> NDArray[np.int64]:
        """Return samples from ``position`` to the end of the epoch or window at most."""
        if self.block:
            window, offset = window_at(self, epoch, position)
            return window_ids(self, epoch, window)[offset : offset + at_most]
        table = permutation(self.num_samples, self.rng_seed, epoch)
        return table[position : position + at_most].astype(np.int64)

    def rank_indices(
        self, step: int, batch_size: int, rank: int, world_size: int
    ) -> NDArray[np.int64]:
        """Return the samples that ``rank`` reads at ``step``: its slice of the global batch.

        Args:
            step: Step, from 0.
            batch_size: Images per step, summed over ranks.
            rank: One of ``0 .. world_size - 1``.
            world_size: Number of ranks.

        Returns:
            int64 ``(n,)`` in ``[0, num_samples)``, n being the length of ``rank_slice``.

        Raises:
            ValueError: A number is out of its range.
        """
        if step < 0 or batch_size < 1:
            raise ValueError(f"step={step}, batch_size={batch_size}: must be at least 0 and 1")
        part = rank_slice(batch_size, rank, world_size)
        return self.indices(step * batch_size + part.start, part.stop - part.start)

    def blocks_from(self, start: int) -> Iterator[int]:
        """Yield every block once, in the order in which the stream first reads them.

        In this order blocks are fetched ahead of a run that begins at ``start``: those of the rest
        of the epoch, then the others in the order of the next epoch.

        Args:
            start: First position, from 0.

        Returns:
            An iterator over all of ``0 .. num_blocks - 1``. Block b contains the samples ``[b *
            block, (b + 1) * block)``. It keeps one byte per block.

        Raises:
            ValueError: The shuffle is full, or ``start`` is negative.
        """
        if not self.block or start < 0:
            raise ValueError(
                f"block={self.block}, start={start}: must be at least 1 and 0; "
                "a full shuffle (block=0) has no blocks"
            )
        return _blocks_from(self, start)  # a generator function would raise only when it is read

    def rows_from(self, start: int) -> Iterator[range]:
        """Yield ranges of samples in the order in which the stream reads them from ``start`` on.

        The full shuffle yields one range of all samples; the blocked one yields a range per block.
        """
        if not self.block:
            yield range(self.num_samples)
            return
        for block in self.blocks_from(start):
            first = block * self.block
            yield range(first, min(first + self.block, self.num_samples))


def rank_slice(batch_size: int, rank: int, world_size: int) -> slice:
    """Return the slice of the global batch of a rank.

    The slices of all ranks are disjoint and cover the batch. Their sizes differ by at most one
    image if ``world_size`` does not divide ``batch_size``.

    Raises:
        ValueError: ``rank`` is not one of ``0 .. world_size - 1``.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank={rank} is not in a world of {world_size}; use 0 .. world_size - 1")
    return slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)


# The blocked shuffle. All windows have ``block * window`` positions, except the last one and the
# one with the last block, which lacks ``-num_samples % block`` rows and has any place in the
# shuffle. If ``block`` divides the number of samples, every sample is equally likely at every
# position. Otherwise the few rows of the short block never come just before the end of a full
# window and are more likely elsewhere, up to w / (w - 1) times in a window of w blocks (block /
# rows times if it is the only one).


def window_at(order: DeterministicSampler, epoch: int, position: int) -> tuple[int, int]:
    """Return the window that contains ``position`` of an epoch, and the offset in that window."""
    full = order.block * order.window
    lacking = -order.num_samples % order.block
    place = position_of(order.num_blocks - 1, order.num_blocks, order.rng_seed, epoch)
    # After the window with the short block, all windows begin earlier by the rows it lacks.
    short_ends = (place // order.window + 1) * full - lacking
    shift = lacking if position >= short_ends else 0
    return divmod(position + shift, full)


@lru_cache(maxsize=4)  # a batch may span two windows, and so may prefetching
def window_ids(order: DeterministicSampler, epoch: int, window: int) -> NDArray[np.int64]:
    """Return the samples of one window.

    Returns:
        Read-only int64 ``(n,)``: all rows of the window's blocks, shuffled; n is at most
        ``order.block * order.window``.
    """
    first = window * order.window
    stop = min(first + order.window, order.num_blocks)
    blocks = permutation(order.num_blocks, order.rng_seed, epoch)[first:stop].astype(np.int64)
    rows = (blocks[:, None] * order.block + np.arange(order.block)).ravel()
    rows = rows[rows < order.num_samples]  # the last block may be short
    ids = rows[_sorted_words(len(rows), order.rng_seed, epoch, window)]
    ids.setflags(write=False)  # the cache hands the same array to every caller
    return ids


def _blocks_from(order: DeterministicSampler, start: int) -> Iterator[int]:
    seen = bytearray(order.num_blocks)
    num_seen = 0
    while num_seen < order.num_blocks:
        epoch, position = divmod(start, order.num_samples)
        window, offset = window_at(order, epoch, position)
        ids = window_ids(order, epoch, window)[offset:]
        for block in dict.fromkeys((ids // order.block).tolist()):  # each once, in order
            if not seen[block]:
                seen[block] = True
                num_seen += 1
                yield block
        start += len(ids)


@lru_cache(maxsize=4)  # called for each batch, and searching the permutation is slow
def position_of(value: int, size: int, rng_seed: int, epoch: int) -> int:
    """Return the position of ``value`` in an epoch's permutation."""
    return int(np.flatnonzero(permutation(size, rng_seed, epoch) == value)[0])


@lru_cache(maxsize=2)  # a batch may span two epochs
def permutation(size: int, rng_seed: int, epoch: int) -> NDArray[np.int32]:
    """Return the permutation of an epoch. All permutations are equally likely.

    Args:
        size: Number of elements, at least 1 and below ``MAX_PERMUTATION``.
        rng_seed: Seed of the run, not negative.
        epoch: Epoch, from 0.

    Returns:
        Read-only int32 ``(size,)``: each of ``0 .. size - 1`` once.
    """
    table = _sorted_words(size, rng_seed, epoch).astype(np.int32)  # half the memory of int64
    table.setflags(write=False)  # the cache hands the same array to every caller
    return table


def _stream(rng_seed: int, epoch: int, *window: int) -> np.random.Philox:
    return np.random.Philox(np.random.SeedSequence([rng_seed, epoch, ORDER_STREAM, *window]))


def _sorted_words(size: int, rng_seed: int, epoch: int, *window: int) -> NDArray[np.int64]:
    # Raw Philox words are sorted, because numpy guarantees stable bit streams across versions, but
    # not a stable Generator.permutation. A resumed run could get another order after an upgrade.
    words = _stream(rng_seed, epoch, *window).random_raw(size)
    # The lowest bits of each word contain its index, so that a plain sort moves both, three times
    # as fast as argsort. The other 38 bits or more are random: only ties differ from argsort.
    low = np.uint64((1 << (size - 1).bit_length()) - 1)
    words &= ~low
    words |= np.arange(size, dtype=np.uint64)
    words.sort()
    words &= low
    return words.view(np.int64)
