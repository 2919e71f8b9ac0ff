import pickle
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from ganray.data.sources.digits import Digits


def test_pixels_are_scikit_learns_scaled_to_eight_bits():
    source, original = Digits.open(), load_digits()
    assert len(source) == 1797
    pixels = np.stack([np.asarray(source.read(i)) for i in range(1797)])
    assert (pixels.dtype, pixels.min(), pixels.max()) == (np.uint8, 0, 255)
    assert (*pixels.shape[1:], 1) == source.image_shape
    assert np.abs(pixels * (16 / 255) - original.images).max() <= 0.5 * 16 / 255
    np.testing.assert_array_equal(source.labels, original.target)
    assert source.class_names == tuple("0123456789")


def test_the_last_297_are_held_out():
    source = Digits.open()
    assert source.split.tolist() == [0] * 1500 + [2] * 297
    assert np.bincount(source.labels[1500:], minlength=10).min() > 20
    assert source.ids.tolist() == list(range(1797))
    assert source.attributes.shape == (1797, 0)


def test_it_is_pickled_with_its_images():
    source = Digits.open()
    text = pickle.dumps(source)
    assert len(text) < 150_000
    copy = pickle.loads(text)
    assert copy.read(5).tobytes() == source.read(5).tobytes()
    assert copy.fingerprint() == source.fingerprint()


def test_the_fingerprint_follows_pixels_and_labels():
    pixel, label = Digits.open(), Digits.open()
    pixel.images[5, 0, 0] ^= 1
    label.labels[5] += 1
    assert len({s.fingerprint() for s in (pixel, label, Digits.open())}) == 3


def test_without_scikit_learn_it_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match="pip install scikit-learn"):
        Digits.open()
