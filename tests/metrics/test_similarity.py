"""MS-SSIM against pytorch-msssim and torchmetrics, and what pairs are drawn."""

import numpy as np
import pytest
import pytorch_msssim
import torch
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from ganray.metrics import similarity
from ganray.metrics.similarity import ms_ssim, pair_similarity


def scenes(n, height, width, channels, seed=0, contrast=1.0):
    """Blocks of random colours under noise, uint8 (n, height, width, channels)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, height // 10 + 1, width // 10 + 1, channels))
    blocks = np.kron(coarse, np.ones((1, 10, 10, 1)))[:, :height, :width]
    noisy = 128 + contrast * (blocks - 128) + rng.normal(0, 20, blocks.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def theirs(left, right, window):
    a, b = (torch.tensor(x).permute(0, 3, 1, 2).double() for x in (left, right))
    return pytorch_msssim.ms_ssim(a, b, size_average=False, win=window)


@pytest.mark.parametrize("shape", [(178, 166, 3), (161, 200, 1)])
def test_ms_ssim_is_the_peers(shape):
    left = scenes(2, *shape)
    # Equal scenes under other noise and contrast, then other scenes.
    for right in (scenes(2, *shape, contrast=0.8), scenes(2, *shape, seed=1)):
        # Theirs builds the window in float32, whose weights do not quite add up to 1.
        at = torch.arange(11.0, dtype=torch.float64) - 5
        window = torch.exp(-(at**2) / 4.5)
        window = (window / window.sum()).expand(shape[2], 1, 1, 11)
        torch.testing.assert_close(
            ms_ssim(left, right).double(), theirs(left, right, window), rtol=0, atol=1e-6
        )


def test_the_four_fine_scales_are_torchmetrics(monkeypatch):
    # It lets the window of the coarsest scale's luminance reach over the border, takes the mean
    # over channels before the product of scales, and drops an odd side's last row; the published
    # weights then differ by 1e-4 to 1e-2. Without that scale, and of grey images whose sides can
    # be halved four times, it is the same.
    weights = (*similarity._WEIGHTS[:4], 0.0)
    monkeypatch.setattr(similarity, "_WEIGHTS", weights)
    left = scenes(2, 176, 192, 1)
    for right in (scenes(2, 176, 192, 1, contrast=0.8), scenes(2, 176, 192, 1, seed=1)):
        a, b = (torch.tensor(x).permute(0, 3, 1, 2).double() for x in (left, right))
        expected = multiscale_structural_similarity_index_measure(
            a, b, data_range=255.0, reduction="none", betas=weights
        )
        torch.testing.assert_close(ms_ssim(left, right).double(), expected, rtol=0, atol=1e-6)


def test_an_image_is_wholly_like_itself():
    images = scenes(2, 170, 170, 3)
    assert ms_ssim(images, torch.tensor(images)).tolist() == pytest.approx([1, 1], abs=1e-6)


def test_a_collapsed_set_is_more_alike_than_a_varied_one():
    varied = scenes(8, 165, 165, 1)
    collapsed = np.concatenate([varied[:1]] * 8)
    assert pair_similarity(collapsed, 4, rng_seed=0).mean() == pytest.approx(1, abs=1e-6)
    assert pair_similarity(varied, 4, rng_seed=0).mean() < 0.3


def test_no_image_is_in_two_pairs(monkeypatch):
    # Each image is one grey, by which it is known again.
    greys = np.arange(70, dtype=np.uint8)[:, None, None, None] * np.ones((1, 161, 161, 1), np.uint8)
    seen = []

    def looked_at(left, right):
        seen.append(np.concatenate([left[:, 0, 0, 0], right[:, 0, 0, 0]]))
        return torch.zeros(len(left))

    monkeypatch.setattr("ganray.metrics.similarity.ms_ssim", looked_at)
    assert len(pair_similarity(greys, 35, rng_seed=3)) == 35
    assert sorted(np.concatenate(seen)) == list(range(70))
    first, seen[:] = np.concatenate(seen), []
    pair_similarity(greys, 35, rng_seed=3)
    np.testing.assert_array_equal(np.concatenate(seen), first)


@pytest.mark.parametrize("side", [28, 128, 160])
def test_a_side_of_160_is_too_short(side):
    images = np.zeros((4, side, 218, 3), np.uint8)
    with pytest.raises(ValueError, match="above 160, or the window does not fit"):
        pair_similarity(images, 2, rng_seed=0)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: ms_ssim(x / 255, x), "left: .*float64.*must be uint8"),
        (lambda x: ms_ssim(x, x[:2]), "must be of one shape"),
        (lambda x: pair_similarity(x, 3, rng_seed=0), r"pairs=3 of 4 images: must be in \[1, 2\]"),
        (lambda x: pair_similarity(x, 0, rng_seed=0), "pairs=0"),
    ],
)
def test_an_error_names_value_rule_and_way_out(call, said):
    with pytest.raises(ValueError, match=said):
        call(np.zeros((4, 161, 161, 3), np.uint8))
