"""Annotations and moving pictures: every pixel where it belongs, every frame in its turn."""

import itertools
import sys

import numpy as np
import pytest
from PIL import Image

from ganray.figures import Row, enlarge, labelled_rows, write_gif, write_mp4


def images(*levels, shape=(48, 48, 1)):
    return np.stack([np.full(shape, level, np.uint8) for level in levels])


def test_digits_are_enlarged_by_whole_pixels_and_grey_becomes_rgb():
    digits = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28, 1)
    large = enlarge(digits)
    assert large.shape == (2, 112, 112, 3)
    assert (large == digits.repeat(4, 1).repeat(4, 2)).all()


def test_large_images_keep_their_size():
    assert enlarge(np.zeros((1, 218, 178, 3), np.uint8)).shape == (1, 218, 178, 3)


def test_images_lie_in_rows_on_white():
    groups = [[Row(images(10, 20)), Row(images(30, 40))], [Row(images(50, 60))]]
    picture = labelled_rows(groups).copy()
    columns, rows = [16, 16 + 96 + 4], [16, 16 + 96 + 4, 16 + 2 * 100 + 16]
    assert picture.shape == (rows[-1] + 96 + 16, columns[-1] + 96 + 16, 3)
    for level, (top, left) in enumerate(itertools.product(rows, columns), start=1):
        assert (picture[top : top + 96, left : left + 96] == 10 * level).all()
        picture[top : top + 96, left : left + 96] = 255
    assert (picture == 255).all()


def test_words_stand_beside_and_above_their_images_and_never_on_them():
    bare = labelled_rows([[Row(images(0))]])
    row = Row(images(0, shape=(96, 96, 3)), "on the shell\nlabel 3", ["z1 + z2"])
    picture = labelled_rows([[row]], "a title")
    tall, wide = picture.shape[0] - bare.shape[0], picture.shape[1] - bare.shape[1]
    assert tall == 20 + 16 + 20  # title, its gap, and the notes
    assert 60 < wide < 120
    assert (picture[-112:-16, -112:-16] == 0).all()
    words = (picture < 128).all(axis=2)
    words[-112:-16, -112:-16] = False
    assert words[:36].any()  # the title
    assert words[36:72, -112:-16].any()  # the note
    assert words[-112:-16, :-116].any()  # the caption


def test_colours_stay():
    image = np.zeros((1, 96, 96, 3), np.uint8)
    image[..., 1] = 200
    assert (labelled_rows([[Row(image)]])[16:-16, 16:-16] == [0, 200, 0]).all()


def moving(count=6, shape=(33, 47, 3)):
    frames = np.zeros((count, *shape), np.uint8)
    for i, frame in enumerate(frames):
        frame[:, 7 * i : 7 * i + 7] = (250, 40 * i, 10)
    return frames


def test_a_gif_shows_each_frame_in_turn_and_starts_again_for_ever(tmp_path):
    frames = moving()
    write_gif(frames, tmp_path / "a.gif", fps=20)
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.info["loop"], gif.info["duration"]) == (6, 0, 50)
        for i, frame in enumerate(frames):
            gif.seek(i)
            shown = np.asarray(gif.convert("RGB")).astype(int)
            assert abs(shown - frame).max() < 12  # one palette for all


def test_an_mp4_holds_each_frame_and_odd_sides_are_made_even(tmp_path):
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    write_mp4(moving(), tmp_path / "a.mp4", fps=10)
    with imageio.get_reader(tmp_path / "a.mp4") as film:
        shown = np.stack(list(film.iter_data()))
        assert film.get_meta_data()["fps"] == 10
    assert shown.shape == (6, 34, 48, 3)
    brightest = shown[:, :, :42, 0].mean(axis=1).reshape(6, 6, 7).mean(axis=2).argmax(axis=1)
    assert brightest.tolist() == [0, 1, 2, 3, 4, 5]


def test_without_an_encoder_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[video\]", or use --animation gif'):
        write_mp4(moving(), tmp_path / "a.mp4", fps=10)
    assert not list(tmp_path.iterdir())
