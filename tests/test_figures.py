"""Pictures: every pixel where it belongs, a chart that shows what it says."""

import numpy as np
import pytest
from PIL import Image

from ganray.figures import loss_chart, sample_grid, smoothed


def test_a_grid_is_read_row_by_row_and_small_images_are_enlarged():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 48, 48, 3), np.uint8)
    grid = sample_grid(images, columns=3)
    assert grid.shape == (2 * 96, 3 * 96, 3)
    cells = grid.reshape(2, 96, 3, 96, 3).swapaxes(1, 2)
    for i, cell in enumerate(cells.reshape(6, -1)):
        assert set(cell) == {i if i < 5 else 0}


def test_large_images_keep_their_size():
    assert sample_grid(np.zeros((2, 218, 178, 3), np.uint8), columns=2).shape == (218, 356, 3)


def test_smoothing_keeps_a_constant_and_does_not_lag():
    np.testing.assert_allclose(smoothed(np.full(9, 3.0)), 3.0)
    step = smoothed(np.concatenate([np.zeros(400), np.ones(400)]))  # sigma: 800 / 80 = 10
    assert step[399] + step[400] == pytest.approx(1.0)
    assert step[409] == pytest.approx(0.829, abs=0.001)  # the normal's, one sigma less half a point
    assert step[:350].max() < 1e-5
    assert len(smoothed(np.array([1.0]))) == 1
    assert len(smoothed(np.array([]))) == 0


def test_the_chart_draws_the_ideal_line_only_where_there_is_one(tmp_path):
    images, values = np.arange(1, 50) * 1000, np.full(49, 0.2)
    curves = {"D/loss": (images, values), "G/loss": (images, values)}

    def drawn(ideal, name):
        loss_chart(curves, ideal, tmp_path / name)
        return np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int)

    def gray(picture):
        return int(((picture > 115) & (picture < 140)).all(axis=2).sum())

    assert gray(drawn(0.5, "a.png")) > gray(drawn(None, "b.png")) + 200


def test_an_empty_history_still_gives_a_chart(tmp_path):
    empty = (np.array([], dtype=np.int64), np.array([]))
    loss_chart({"D/loss": empty}, 0.25, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 1000
