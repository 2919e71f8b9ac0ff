"""The diagnosis of known failures, made of real digits and of drawn faces."""

from ganray.evaluation.classifier import TrainingRecipe
from tests.conftest import REAL_MNIST, needs_mnist
from tests.evaluation.failures import DIGITS, FACES, digit_test, face_test

RESAMPLES = 10  # fewer than reports have, for the time


@needs_mnist
def test_failures_of_digits(tmp_path):
    assert digit_test(REAL_MNIST, tmp_path, 1_000, 10_000).wrong(DIGITS, RESAMPLES) == {}


def test_failures_of_faces(tmp_path):
    recipe = TrainingRecipe(epochs=0, min_images=40_000)
    assert face_test(tmp_path, 800, 3_000, recipe).wrong(FACES, RESAMPLES) == {}
