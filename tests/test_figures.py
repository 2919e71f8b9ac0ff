"""Figures and animations: every pixel in its place, charts that draw what they are given."""

import itertools
import sys

import numpy as np
import pytest
from PIL import Image

from ganray.errors import UserError
from ganray.figures import (
    Row,
    enlarge,
    labeled_rows,
    loss_chart,
    mode_chart,
    sample_grid,
    write_gif,
    write_mp4,
)


def test_a_grid_is_filled_row_by_row_and_small_images_are_enlarged():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 48, 48, 3), np.uint8)
    grid = sample_grid(images, columns=3)
    assert grid.shape == (2 * 96, 3 * 96, 3)
    cells = grid.reshape(2, 96, 3, 96, 3).swapaxes(1, 2)
    for i, cell in enumerate(cells.reshape(6, -1)):
        assert set(cell) == {i if i < 5 else 0}


def test_a_grid_of_large_images_keeps_their_size():
    assert sample_grid(np.zeros((2, 218, 178, 3), np.uint8), columns=2).shape == (218, 356, 3)


def test_the_loss_chart_draws_the_ideal_only_if_there_is_one(tmp_path):
    images, values = np.arange(1, 50) * 1000, np.full(49, 0.2)
    curves = {"loss/D": (images, values), "loss/G": (images, values)}

    def draw(ideal, name):
        loss_chart(curves, ideal, tmp_path / name, "run")
        return np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int)

    def gray_pixels(figure):
        return int(((figure > 115) & (figure < 140)).all(axis=2).sum())

    assert gray_pixels(draw(0.5, "a.png")) > gray_pixels(draw(None, "b.png")) + 200


def test_the_loss_chart_accepts_empty_curves(tmp_path):
    empty = (np.array([], dtype=np.int64), np.array([]))
    loss_chart({"loss/D": empty}, 0.25, tmp_path / "c.png", "run")
    assert (tmp_path / "c.png").stat().st_size > 1000


def images(*levels, shape=(48, 48, 1)):
    return np.stack([np.full(shape, level, np.uint8) for level in levels])


def test_small_images_are_enlarged_by_an_integer_factor_and_become_rgb():
    digits = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28, 1)
    large = enlarge(digits)
    assert large.shape == (2, 112, 112, 3)
    assert (large == digits.repeat(4, 1).repeat(4, 2)).all()


def test_large_images_are_not_enlarged():
    assert enlarge(np.zeros((1, 218, 178, 3), np.uint8)).shape == (1, 218, 178, 3)


def test_groups_of_rows_are_drawn_on_white():
    groups = [[Row(images(10, 20)), Row(images(30, 40))], [Row(images(50, 60))]]
    picture = labeled_rows(groups).copy()
    columns, rows = [16, 16 + 96 + 4], [16, 16 + 96 + 4, 16 + 2 * 100 + 16]
    assert picture.shape == (rows[-1] + 96 + 16, columns[-1] + 96 + 16, 3)
    for level, (top, left) in enumerate(itertools.product(rows, columns), start=1):
        assert (picture[top : top + 96, left : left + 96] == 10 * level).all()
        picture[top : top + 96, left : left + 96] = 255
    assert (picture == 255).all()


def test_text_is_drawn_beside_and_above_images_and_never_on_them():
    bare = labeled_rows([[Row(images(0))]])
    row = Row(images(0, shape=(96, 96, 3)), "on the shell\nlabel 3", ["z1 + z2"])
    picture = labeled_rows([[row]], "a title")
    tall, wide = picture.shape[0] - bare.shape[0], picture.shape[1] - bare.shape[1]
    assert tall == 20 + 16 + 20  # title, its gap, and the notes
    assert 60 < wide < 120
    assert (picture[-112:-16, -112:-16] == 0).all()
    text = (picture < 128).all(axis=2)
    text[-112:-16, -112:-16] = False
    assert text[:36].any()  # the title
    assert text[36:72, -112:-16].any()  # the note
    assert text[-112:-16, :-116].any()  # the caption


def test_colors_are_kept():
    image = np.zeros((1, 96, 96, 3), np.uint8)
    image[..., 1] = 200
    assert (labeled_rows([[Row(image)]])[16:-16, 16:-16] == [0, 200, 0]).all()


def moving_bar(count=6, shape=(33, 47, 3)):
    frames = np.zeros((count, *shape), np.uint8)
    for i, frame in enumerate(frames):
        frame[:, 7 * i : 7 * i + 7] = (250, 40 * i, 10)
    return frames


def test_a_gif_has_all_frames_and_loops_forever(tmp_path):
    frames = moving_bar()
    write_gif(frames, tmp_path / "a.gif", fps=20)
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.info["loop"], gif.info["duration"]) == (6, 0, 50)
        for i, frame in enumerate(frames):
            gif.seek(i)
            shown = np.asarray(gif.convert("RGB")).astype(int)
            assert abs(shown - frame).max() < 12  # one palette for all


def test_an_mp4_has_all_frames_and_even_sides(tmp_path):
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    write_mp4(moving_bar(), tmp_path / "a.mp4", fps=10)
    with imageio.get_reader(tmp_path / "a.mp4") as video:
        shown = np.stack(list(video.iter_data()))
        assert video.get_meta_data()["fps"] == 10
    assert shown.shape == (6, 34, 48, 3)
    brightest = shown[:, :, :42, 0].mean(axis=1).reshape(6, 6, 7).mean(axis=2).argmax(axis=1)
    assert brightest.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_missing_encoder_is_reported_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match=r"pip install 'imageio\[ffmpeg\]', or use --animation gif"):
        write_mp4(moving_bar(), tmp_path / "a.mp4", fps=10)
    assert not list(tmp_path.iterdir())


def test_the_chart_of_modes_has_a_bar_for_each_share():
    chart = mode_chart(["zero", "one"], np.array([30, 10]), np.array([0, 40])).astype(int)
    blue = (chart == [0, 0x72, 0xB2]).all(2)
    gray = (chart == 110).all(2)
    # 100 % is the full width; the real images have 75 % and 25 %.
    assert 361 in blue.sum(1)
    assert 271 in gray.sum(1)


def test_names_of_modes_are_in_the_font_of_the_other_pictures():
    chart = mode_chart(["woman"], np.ones(1), np.ones(1))
    rows = labeled_rows([[Row(np.zeros((1, 64, 64, 3), np.uint8), "woman")]])
    one, other = ((picture[40:, :60] < 128).any(2).sum(0) for picture in (chart, rows[:-2]))
    assert one.any()
    np.testing.assert_array_equal(one, other)
