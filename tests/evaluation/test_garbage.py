"""The report calls garbage made of real MNIST what it is, through ganray's own classifier."""

import numpy as np
import pytest
import torch

from ganray.data.sources.mnist import MNIST
from ganray.evaluation import suite
from ganray.evaluation.classifier import reference_classifier
from ganray.evaluation.diagnosis import diagnose
from ganray.evaluation.extractors import ClassExtractor
from tests.conftest import REAL_MNIST, needs_mnist

pytestmark = needs_mnist
LEARNED, N = 10_000, 1000
KINDS = ("noise", "shuffled", "blends", "one image", "repeats", "few modes", "none")


@pytest.fixture(scope="module")
def digits():
    """(images, labels): a sixth to learn from, which takes 8 s on one core, and all held out."""
    mnist = MNIST.open(REAL_MNIST)
    chosen = np.r_[:LEARNED, np.flatnonzero(mnist.split == 2)]
    return mnist.images[chosen][..., None], mnist.labels[chosen]


@pytest.fixture(scope="module")
def compared(digits, tmp_path_factory):
    """(extractor, reference, control)"""
    images, labels = digits
    classifier = reference_classifier(
        images[:LEARNED],
        labels[:LEARNED],
        images[LEARNED:],
        labels[LEARNED:],
        data_digest="a sixth of mnist",
        cache=tmp_path_factory.mktemp("classifiers"),
        device=torch.device("cpu"),
    )
    assert classifier.accuracy > 0.975  # 98.1 %; of all of MNIST it learns to tell 99.2 %
    extractor = ClassExtractor(classifier, MNIST.class_names)
    reals, others = images[LEARNED : LEARNED + 2 * N].reshape(2, N, 28, 28, 1)
    return extractor, suite.ReferenceStatistics.of(extractor, reals), extractor.extract(others)


def garbage(kind, digits):
    """uint8 (N, 28, 28, 1), of digits that nothing else is compared with."""
    rng = np.random.default_rng(0)
    images, labels = (of_all[LEARNED + 2 * N :] for of_all in digits)
    if kind == "noise":
        return rng.integers(0, 256, (N, 28, 28, 1), dtype=np.uint8)
    if kind == "shuffled":  # each digit's pixels, in an order of its own
        return rng.permuted(images[:N].reshape(N, -1), axis=1).reshape(N, 28, 28, 1)
    if kind == "blends":
        return ((images[:N].astype(int) + images[N : 2 * N]) // 2).astype(np.uint8)
    if kind == "few modes":
        return images[np.isin(labels, (1, 3))][:N]
    different = {"one image": 1, "repeats": 20, "none": N}[kind]
    return np.tile(images[:different], (N // different, 1, 1, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_calls_garbage_what_it_is(kind, digits, compared):
    extractor, reference, control = compared
    seen = extractor.extract(garbage(kind, digits))
    report = suite.report(reference, seen, control, resamples=20)
    verdict = diagnose(report)
    assert verdict.kind == {"shuffled": "noise"}.get(kind, kind), verdict.words
    assert verdict.collapsed == (kind in ("one image", "few modes", "repeats"))
    if kind == "few modes":
        assert sorted(report.missing()) == list("02456789")
    if kind == "repeats":
        assert "about 20 different images" in verdict.words
