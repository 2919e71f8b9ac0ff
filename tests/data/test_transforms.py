import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from ganray.data.transforms import augment


def augmented(images: torch.Tensor, mine: slice | None = None, **options) -> torch.Tensor:
    size = len(images)
    mine = mine or slice(0, size)
    settings = {"crop": 0, "flip": False, "rng_seed": 3, "step": 7, "batch_size": size}
    return augment(images[mine], rank_slice=mine, **(settings | options))


@pytest.fixture
def numbered() -> torch.Tensor:
    """Each pixel tells its row and column: uint8 (40, 12, 10, 2)."""
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(10), indexing="ij")
    return torch.stack([rows, columns], -1).to(torch.uint8).expand(40, -1, -1, -1).contiguous()


def test_without_options_images_are_returned_unchanged(numbered: torch.Tensor):
    assert augmented(numbered).data_ptr() == numbered.data_ptr()


def test_each_crop_is_a_square_of_its_image(numbered: torch.Tensor):
    crops = augmented(numbered, crop=8)
    assert crops.shape == (40, 8, 8, 2)
    for crop, image in zip(crops, numbered, strict=True):
        top, left = crop[0, 0].tolist()
        assert torch.equal(crop, image[top : top + 8, left : left + 8])
    corners = crops[:, 0, 0]
    assert set(corners[:, 0].tolist()) == {0, 1, 2, 3, 4}
    assert set(corners[:, 1].tolist()) == {0, 1, 2}


def test_a_mirror_turns_left_and_right(numbered: torch.Tensor):
    mirrored = [image[0, 0, 1] == 9 for image in augmented(numbered, flip=True)]
    for image, turned in zip(augmented(numbered, flip=True), mirrored, strict=True):
        assert torch.equal(image, numbered[0].flip(1) if turned else numbered[0])
    assert 8 < sum(mirrored) < 32


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_join_to_the_batch_of_one_rank(numbered: torch.Tensor, world_size: int):
    whole = augmented(numbered, crop=8, flip=True)
    cuts = [rank * 40 // world_size for rank in range(world_size + 1)]
    slices = [slice(*ends) for ends in itertools.pairwise(cuts)]
    parts = [augmented(numbered, mine, crop=8, flip=True) for mine in slices]
    assert torch.equal(torch.cat(parts), whole)


def test_every_step_and_seed_has_its_own(numbered: torch.Tensor):
    one = augmented(numbered, crop=8)
    assert not torch.equal(one, augmented(numbered, crop=8, step=8))
    assert not torch.equal(one, augmented(numbered, crop=8, rng_seed=4))
    assert torch.equal(one, augmented(numbered, crop=8))


def test_corners_and_mirrors_are_uniform():
    images = torch.arange(6, dtype=torch.uint8).expand(20_000, 6, 6)[..., None].contiguous()
    crops = augmented(images, crop=5, flip=True)
    first = crops[:, 0, 0, 0].numpy()  # left 0: 0, mirrored 4; left 1: 1, mirrored 5
    counts = np.bincount(first, minlength=6)[[0, 1, 4, 5]]
    assert counts.sum() == 20_000
    assert stats.chisquare(counts).pvalue > 1e-6
