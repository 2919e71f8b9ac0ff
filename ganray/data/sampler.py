"""Which images make up a step: a pure function of (number of samples, rng_seed, step).

The training stream is endless. Position t of it holds sample ``sigma_e[t % N]`` with epoch
``e = t // N``, where ``sigma_e`` is a permutation keyed by ``(rng_seed, e)``. Step k of batch
size B is the positions ``[k B, (k + 1) B)`` and every rank takes its own slice of them. Hence each
epoch holds each image exactly once, nothing is padded or dropped, the batch of a step is the same
for any number of ranks, and the state of the stream is one integer: the step.

There are two kinds of ``sigma_e``. The full shuffle permutes all samples. The blocked shuffle is
for storage where random rows are dear (network file systems, object stores, spinning disks)::

    blocks of K rows   0 1 2 3 4 5 6 7      of N samples; the last block may be short
    shuffled           5 2 7 0 6 1 4 3      a keyed permutation of the blocks
    windows of P = 3   5 2 7|0 6 1|4 3      P blocks together
    stream             =====|-----|~~~      the rows of each window, in a keyed permutation

so that a stretch of the stream needs only the blocks of the windows that it lies in.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ganray.errors import UserError

# Keeps these streams apart from any other that is derived from the same (rng_seed, integer).
ORDER_STREAM = 0x6F72646572

# Larger permutations would be too large to keep in memory.
MAX_PERMUTATION = 2**26


@dataclass(frozen=True)
class DeterministicSampler:
    """The order in which a run sees its samples.

    Raises:
        ValueError: A number is out of its range.
    """

    num_samples: int
    """How many images there are, at least 1."""
    rng_seed: int
    """The run's seed, not negative."""
    block: int = 0
    """Annotations per block of the blocked shuffle; 0: the full shuffle."""
    window: int = 0
    """Blocks that are mixed together, at least 1. Without meaning where ``block`` is 0."""

    def __post_init__(self) -> None:
        if self.num_samples < 1 or min(self.rng_seed, self.block, self.window) < 0:
            raise UserError(
                f"num_samples={self.num_samples}, rng_seed={self.rng_seed}, block={self.block}, "
                f"window={self.window}: num_samples must be at least 1 and the others at least 0"
            )
        if self.block and not self.window:
            raise UserError(
                f"window=0 with block={self.block}: must be at least 1; "
                "use window=32, or block=0 for a full shuffle"
            )
        if self.block * self.window >= MAX_PERMUTATION:
            raise UserError(
                f"block={self.block}, window={self.window}: a window is held in memory, so block * "
                f"window must be below {MAX_PERMUTATION}; use smaller ones, or block=0"
            )
        if (self.num_blocks or self.num_samples) >= MAX_PERMUTATION:
            raise UserError(
                f"{self.num_samples} images cannot be shuffled at once, only {MAX_PERMUTATION - 1};"
                " use data.shuffle=blocks with a larger data.block_rows"
            )

    @property
    def num_blocks(self) -> int:
        """How many blocks hold all samples; 0 for the full shuffle."""
        return -(-self.num_samples // self.block) if self.block else 0

    def indices(self, start: int, count: int) -> NDArray[np.int64]:
        """Return the samples at positions ``[start, start + count)`` of the endless stream.

        Args:
            start: First position, counted from 0.
            count: How many positions; may reach over several epochs.

        Returns:
            int64 ``(count,)`` in ``[0, num_samples)``.

        Raises:
            ValueError: A number is negative.
        """
        if min(start, count) < 0:
            raise UserError(f"start={start}, count={count}: must be at least 0")
        ids = np.empty(count, np.int64)
        filled = 0
        while filled < count:
            epoch, position = divmod(start + filled, self.num_samples)
            piece = self._piece(epoch, position, count - filled)
            ids[filled : filled + len(piece)] = piece
            filled += len(piece)
        return ids

    def _piece(self, epoch: int, position: int, at_most: int) -> NDArray[np.int64]:
        """Return ids from ``position`` on, as far as one epoch or one window reaches."""
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
            step: Counted from 0.
            batch_size: Images per step, summed over ranks.
            rank: One of ``0 .. world_size - 1``.
            world_size: How many ranks share a batch.

        Returns:
            int64 ``(n,)`` in ``[0, num_samples)``, n being the length of ``rank_slice``.

        Raises:
            ValueError: A number is out of its range.
        """
        if step < 0 or batch_size < 1:
            raise UserError(f"step={step}, batch_size={batch_size}: must be at least 0 and 1")
        part = rank_slice(batch_size, rank, world_size)
        return self.indices(step * batch_size + part.start, part.stop - part.start)

    def blocks_from(self, start: int) -> Iterator[int]:
        """Name every block once, in the order in which the stream first touches them.

        This is the order in which to fetch blocks ahead of a run that begins at ``start``: first
        what the rest of that epoch touches, then what is left, as the next epoch touches it.

        Args:
            start: First position, counted from 0.

        Returns:
            An iterator over all of ``0 .. num_blocks - 1``. Block b holds the
            samples ``[b * block, (b + 1) * block)``. It keeps one byte per block.

        Raises:
            ValueError: The shuffle is full, or ``start`` is negative.
        """
        if not self.block or start < 0:
            raise UserError(
                f"block={self.block}, start={start}: must be at least 1 and 0; "
                "a full shuffle (block=0) has no blocks"
            )
        return _blocks_from(self, start)  # a generator, which would raise only when it is read

    def rows_from(self, start: int) -> Iterator[range]:
        """Name all samples, in the order in which the stream touches them from ``start`` on.

        The full shuffle touches all at once; the blocked one a block at a time, as ``blocks_from``.
        """
        if not self.block:
            yield range(self.num_samples)
            return
        for block in self.blocks_from(start):
            first = block * self.block
            yield range(first, min(first + self.block, self.num_samples))


def rank_slice(batch_size: int, rank: int, world_size: int) -> slice:
    """Return the part of the global batch that belongs to ``rank``.

    The slices of all ranks join without gap or overlap, and differ by at most one image where
    ``world_size`` does not divide ``batch_size``.

    Raises:
        ValueError: ``rank`` is not one of ``0 .. world_size - 1``.
    """
    if not 0 <= rank < world_size:
        raise UserError(f"rank={rank} is not in a world of {world_size}; use 0 .. world_size - 1")
    return slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)


# The blocked shuffle. All windows hold ``block * window`` positions, but for the last one and the
# one that contains the last block, which lacks ``-num_samples % block`` rows. That block takes any
# place in the shuffle, like the others. Where ``block`` divides, every sample is equally likely at
# every position. Where not, this fails for the few rows of the short block: they never come just
# before the end of a whole window, and elsewhere are likelier, up to w / (w - 1) times in a window
# of w blocks (block / rows times where it is the only one).


def window_at(order: DeterministicSampler, epoch: int, position: int) -> tuple[int, int]:
    """Return the window that holds ``position`` of an epoch, and the place in that window."""
    full = order.block * order.window
    lacking = -order.num_samples % order.block
    place = position_of(order.num_blocks - 1, order.num_blocks, order.rng_seed, epoch)
    # Behind the window with the short block, all windows begin earlier by the rows it lacks.
    short_ends = (place // order.window + 1) * full - lacking
    shift = lacking if position >= short_ends else 0
    return divmod(position + shift, full)


@lru_cache(maxsize=4)  # two that a batch straddles, and two for who fetches blocks ahead
def window_ids(order: DeterministicSampler, epoch: int, window: int) -> NDArray[np.int64]:
    """Return the samples of one window.

    Returns:
        Read-only int64 ``(n,)``: all rows of the window's blocks, mixed; n is at most
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
    named = bytearray(order.num_blocks)
    num_named = 0
    while num_named < order.num_blocks:
        epoch, position = divmod(start, order.num_samples)
        window, offset = window_at(order, epoch, position)
        ids = window_ids(order, epoch, window)[offset:]
        for block in dict.fromkeys((ids // order.block).tolist()):  # each once, in order
            if not named[block]:
                named[block] = True
                num_named += 1
                yield block
        start += len(ids)


@lru_cache(maxsize=4)  # called for each batch, where searching the permutation takes a while
def position_of(value: int, size: int, rng_seed: int, epoch: int) -> int:
    """Return the place of ``value`` in an epoch's permutation."""
    return int(np.flatnonzero(permutation(size, rng_seed, epoch) == value)[0])


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def permutation(size: int, rng_seed: int, epoch: int) -> NDArray[np.int32]:
    """Return the table of an epoch's permutation, every order of it equally likely.

    Args:
        size: How many things are permuted, at least 1 and below ``MAX_PERMUTATION``.
        rng_seed: The run's seed, not negative.
        epoch: Counted from 0.

    Returns:
        Read-only int32 ``(size,)``: each of ``0 .. size - 1`` once.
    """
    table = _sorted_words(size, rng_seed, epoch).astype(np.int32)  # half the memory of int64
    table.setflags(write=False)  # the cache hands the same array to every caller
    return table


def _stream(rng_seed: int, epoch: int, *window: int) -> np.random.Philox:
    return np.random.Philox(np.random.SeedSequence([rng_seed, epoch, ORDER_STREAM, *window]))


def _sorted_words(size: int, rng_seed: int, epoch: int, *window: int) -> NDArray[np.int64]:
    # Sorting raw Philox words, and not Generator.permutation: numpy promises that bit streams stay
    # the same in later versions, but not what Generator makes of them. A resumed run would
    # otherwise see another order after an upgrade.
    words = _stream(rng_seed, epoch, *window).random_raw(size)
    # Each word carries its place in its lowest bits, so that a plain sort, three times as fast as
    # argsort, moves both. The rest is 38 random bits or more: the order is argsort's, but for ties.
    low = np.uint64((1 << (size - 1).bit_length()) - 1)
    words &= ~low
    words |= np.arange(size, dtype=np.uint64)
    words.sort()
    words &= low
    return words.view(np.int64)
