"""The diagnosis of typical failures, made of real MNIST, with the reference classifier."""

import numpy as np
import pytest
import torch

from ganray.data.sources.mnist import MNIST
from ganray.evaluation import suite
from ganray.evaluation.classifier import reference_classifier
from ganray.evaluation.comparison import ImageStatistics
from ganray.evaluation.diagnosis import diagnose
from ganray.evaluation.extractors import ClassExtractor
from tests.conftest import REAL_MNIST, needs_mnist

pytestmark = needs_mnist
TRAINED, N = 10_000, 1000
KINDS = ("noise", "shuffled", "blends", "one image", "repeats", "few modes", "none")


@pytest.fixture(scope="module")
def digits():
    """Images and labels: a sixth of MNIST to train on, 8 s on one core, and all held-out ones."""
    mnist = MNIST.open(REAL_MNIST)
    chosen = np.r_[:TRAINED, np.flatnonzero(mnist.split == 2)]
    return mnist.images[chosen][..., None], mnist.labels[chosen]


@pytest.fixture(scope="module")
def evaluation(digits, tmp_path_factory):
    """Return (extractor, reference, control)."""
    images, labels = digits
    classifier = reference_classifier(
        images[:TRAINED],
        labels[:TRAINED],
        images[TRAINED:],
        labels[TRAINED:],
        data_digest="a sixth of mnist",
        cache=tmp_path_factory.mktemp("classifiers"),
        device=torch.device("cpu"),
    )
    assert classifier.accuracy > 0.975  # 98.1 %; 99.2 % when trained on all of MNIST
    extractor = ClassExtractor(classifier, MNIST.class_names)
    reference, control = images[TRAINED : TRAINED + 2 * N].reshape(2, N, 28, 28, 1)
    return extractor, *(
        ImageStatistics.of(extractor, extractor.extract(part)) for part in (reference, control)
    )


def failure(kind, digits):
    """Return samples of a failure, uint8 (N, 28, 28, 1), made of digits that no other test uses."""
    rng = np.random.default_rng(0)
    images, labels = (array[TRAINED + 2 * N :] for array in digits)
    if kind == "noise":
        return rng.integers(0, 256, (N, 28, 28, 1), dtype=np.uint8)
    if kind == "shuffled":  # the pixels of each digit in random order
        return rng.permuted(images[:N].reshape(N, -1), axis=1).reshape(N, 28, 28, 1)
    if kind == "blends":
        return ((images[:N].astype(int) + images[N : 2 * N]) // 2).astype(np.uint8)
    if kind == "few modes":
        return images[np.isin(labels, (1, 3))][:N]
    different = {"one image": 1, "repeats": 20, "none": N}[kind]
    return np.tile(images[:different], (N // different, 1, 1, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_diagnosis_names_the_failure(kind, digits, evaluation):
    extractor, reference, control = evaluation
    samples = ImageStatistics.of(extractor, extractor.extract(failure(kind, digits)))
    report = suite.report(reference, samples, control, resamples=20)
    diagnosis = diagnose(report)
    assert diagnosis.kind == {"shuffled": "noise"}.get(kind, kind), diagnosis.text
    assert diagnosis.collapsed == (kind in ("one image", "few modes", "repeats"))
    if kind == "few modes":
        assert sorted(report.missing()) == list("02456789")
    if kind == "repeats":
        assert "about 20 different images" in diagnosis.text
