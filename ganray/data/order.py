"""Which images make up a step: a pure function of (number of samples, rng_seed, step).

The training stream is endless. Position t of it holds sample ``sigma_e[t % N]`` with epoch
``e = t // N``, where ``sigma_e`` is a permutation keyed by ``(rng_seed, e)``. Step k of batch
size B is the positions ``[k B, (k + 1) B)`` and every rank takes its own slice of them. Hence each
epoch holds each image exactly once, nothing is padded or dropped, the batch of a step is the same
for any number of ranks, and the state of the stream is one integer: the step.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Keeps these streams apart from any other that is derived from the same (rng_seed, integer).
ORDER_STREAM = 0x6F72646572


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def permutation(num_samples: int, rng_seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of one epoch.

    Args:
        num_samples: How many images there are, at least 1.
        rng_seed: The run's seed, not negative.
        epoch: Counted from 0.

    Returns:
        Read-only int64 ``(num_samples,)``: each of ``0 .. num_samples - 1`` once.
    """
    # Sorting raw Philox words, and not Generator.permutation: numpy promises that bit streams stay
    # the same in later versions, but not what Generator makes of them. A resumed run would
    # otherwise see another order after an upgrade.
    stream = np.random.Philox(np.random.SeedSequence([rng_seed, epoch, ORDER_STREAM]))
    order = np.argsort(stream.random_raw(num_samples), kind="stable")
    order.setflags(write=False)  # the cache hands the same array to every caller
    return order


def sample_ids(num_samples: int, rng_seed: int, start: int, count: int) -> NDArray[np.int64]:
    """Return the samples at positions ``[start, start + count)`` of the endless stream.

    Args:
        num_samples: How many images there are, at least 1.
        rng_seed: The run's seed, not negative.
        start: First position, counted from 0.
        count: How many positions; may reach over several epochs.

    Returns:
        int64 ``(count,)`` in ``[0, num_samples)``.

    Raises:
        ValueError: There is no sample, or a number is negative.
    """
    if num_samples < 1 or min(rng_seed, start, count) < 0:
        raise ValueError(
            f"num_samples={num_samples}, rng_seed={rng_seed}, start={start}, count={count}: "
            "num_samples must be at least 1 and the others at least 0"
        )
    ids = np.empty(count, np.int64)
    filled = 0
    while filled < count:
        epoch, offset = divmod(start + filled, num_samples)
        taken = min(count - filled, num_samples - offset)
        order = permutation(num_samples, rng_seed, epoch)
        ids[filled : filled + taken] = order[offset : offset + taken]
        filled += taken
    return ids


def rank_slice(batch_size: int, rank: int, world_size: int) -> slice:
    """Return the part of the global batch that belongs to ``rank``.

    The slices of all ranks join without gap or overlap, and differ by at most one image where
    ``world_size`` does not divide ``batch_size``.

    Raises:
        ValueError: ``rank`` is not one of ``0 .. world_size - 1``.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank={rank} is not in a world of {world_size}; use 0 .. world_size - 1")
    return slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)


def rank_sample_ids(
    num_samples: int, rng_seed: int, step: int, batch_size: int, rank: int, world_size: int
) -> NDArray[np.int64]:
    """Return the samples that ``rank`` reads at ``step``: its slice of the global batch.

    Returns:
        int64 ``(n,)`` in ``[0, num_samples)``, n being the length of ``rank_slice``.
    """
    part = rank_slice(batch_size, rank, world_size)
    return sample_ids(num_samples, rng_seed, step * batch_size + part.start, part.stop - part.start)
