"""Random mirrors and crops, on the device, as pure functions of (rng_seed, step).

They are drawn for the global batch and each rank takes its slice, so that a run does not depend on
how many ranks there are.
"""

import numpy as np
import torch

# Keeps these streams apart from any other that is derived from the same (rng_seed, step).
_STREAM = 0x6175676D656E74


def augment(
    images: torch.Tensor,
    *,
    crop: int,
    flip: bool,
    rng_seed: int,
    step: int,
    batch_size: int,
    mine: slice,
) -> torch.Tensor:
    """Cut a random square from each image, then mirror every second one at random.

    Args:
        images: uint8 (n, H, W, C), this rank's part of the batch.
        crop: Side of the square in pixels, at most H and W; 0 keeps the images whole.
        flip: Whether to mirror left and right.
        rng_seed: The run's seed.
        step: Counted from 0.
        batch_size: Images per step, summed over ranks.
        mine: Which of them ``images`` are.

    Returns:
        uint8 (n, crop, crop, C), or (n, H, W, C) where there is no crop.
    """
    if not (crop or flip):
        return images
    # Raw words, as in `order`: numpy promises that these stay the same in later versions.
    stream = np.random.Philox(np.random.SeedSequence([rng_seed, step, _STREAM]))
    words = stream.random_raw(3 * batch_size).reshape(batch_size, 3)[mine] >> np.uint64(32)
    if crop:
        height, width = images.shape[1:3]
        ranges = np.array([height - crop + 1, width - crop + 1], np.uint64)
        # The high half of a 32 x 32 bit product: uniform to 1 in 2^24 for any side of an image.
        corners = (words[:, :2] * ranges >> np.uint64(32)).astype(np.int64)
        images = _cut(images, torch.from_numpy(corners).to(images.device), crop)
    if flip:
        mirrored = torch.from_numpy((words[:, 2] & np.uint64(1)).astype(bool)).to(images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(2), images)
    return images


def _cut(images: torch.Tensor, corners: torch.Tensor, side: int) -> torch.Tensor:
    """Return the squares whose top left corners are ``corners``, int64 (n, 2)."""
    span = torch.arange(side, device=images.device)
    rows, columns = (corners[:, axis, None] + span for axis in (0, 1))
    which = torch.arange(len(images), device=images.device)[:, None, None]
    return images[which, rows[:, :, None], columns[:, None, :]]
