"""The report calls garbage what it is, through a stand-in for a trained classifier."""

import json
import math

import numpy as np
import pytest
import torch

from ganray.evaluation import suite
from ganray.evaluation.diagnosis import collapse_warning, diagnose, half_life
from ganray.evaluation.extractors import Features
from ganray.metrics import modes

CLASSES, N = 5, 300


class Corners:
    """Images of 8x8x1: class c is bright in its own stripe of rows; else nothing is sure.

    As a trained classifier, it is sure of what lies near a class, and has features that are not
    negative and hardly move for what looks like nothing.
    """

    hash = "corners"
    mode_names = tuple("abcde")

    def extract(self, images):
        stripes = torch.as_tensor(images).float().reshape(len(images), -1, 64)[:, 0] / 255
        rows = stripes.unflatten(1, (8, 8))[:, :CLASSES].mean(2)
        detail = stripes[:, -24:] * rows.max(1, keepdim=True).values.gt(0.6)
        features = torch.cat(
            [torch.relu(rows - 0.2) * 2, 0.5 * detail, torch.ones(len(rows), 1) / 50], 1
        )
        first, second = rows.sort(descending=True).values[:, :2].T
        return Features(features, rows.argmax(1), ((first - second) / 0.5).clamp(0, 1))


def digits(count, rng_seed, classes=range(CLASSES)):
    """uint8 (count, 8, 8, 1): a bright stripe, its strength and the three last rows random."""
    rng = np.random.default_rng(rng_seed)
    images = np.zeros((count, 8, 8, 1), np.uint8)
    labels = rng.choice(list(classes), count)
    images[np.arange(count), labels] = rng.integers(215, 256, (count, 1, 1))
    images[:, 5:] = rng.integers(0, 256, (count, 3, 8, 1))
    return images


def shuffled(images, rng_seed):
    rng = np.random.default_rng(rng_seed)
    return np.stack([rng.permutation(image.ravel()).reshape(image.shape) for image in images])


def report_of(images):
    extractor = Corners()
    reference = suite.ReferenceStatistics.of(extractor, digits(N, 0))
    return suite.report(
        reference, extractor.extract(images), extractor.extract(digits(N, 1)), resamples=20
    )


REAL = digits(N, 2)
GARBAGE = {
    "noise": np.random.default_rng(0).integers(0, 256, REAL.shape, dtype=np.uint8),
    "noise ": shuffled(REAL, 3),
    "blends": ((REAL.astype(int) + digits(N, 4)) // 2).astype(np.uint8),
    "one image": np.repeat(REAL[:1], N, 0),
    "few modes": digits(N, 5, classes=(1, 3)),
    "repeats": np.tile(REAL[:20], (N // 20, 1, 1, 1)),
    "lost modes": digits(N, 6, classes=(0, 1, 2, 4)),
    "none": REAL,
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_the_report_calls_garbage_what_it_is(kind):
    report = report_of(GARBAGE[kind])
    diagnosis = diagnose(report)
    assert diagnosis.kind == kind.strip(), diagnosis.text
    assert diagnosis.collapsed == (kind in ("one image", "few modes", "repeats"))
    if kind == "few modes":
        assert sorted(report.missing()) == ["a", "c", "e"]
        assert "2 of 5 modes" in diagnosis.text
    if kind == "lost modes":
        assert report.missing() == ["d"]
    if kind == "repeats":
        assert "about 2" in diagnosis.text


def test_real_against_real_meets_the_perfect_generator():
    report = report_of(REAL)
    for name, line in report.results.items():
        assert line.estimate.low <= line.estimate.value <= line.estimate.high, name
        if line.ideal is not None:
            spread = max(line.estimate.high - line.estimate.low, 1e-9)
            assert abs(line.reference - line.ideal) < 3 * spread + 0.02, name
    assert report["modes"] == 5
    # (K - 1) / 2 * (1 / n + 1 / m), as the reals are a sample, too.
    assert report.results["kl"].ideal == pytest.approx(4 / N, rel=0.1)


class Labels:
    """Images of one pixel, which is the class."""

    hash = "labels"
    mode_names = tuple(str(i) for i in range(100))

    def extract(self, images):
        labels = torch.as_tensor(images).flatten().long()
        features = torch.randn(len(labels), 2, generator=torch.Generator().manual_seed(0))
        return Features(features, labels, torch.ones(len(labels)))


def test_the_ideal_generator_is_compared_with_as_few_reference_images():
    """300 samples of 100 even classes: its truth, known here, is simulated as the report cannot."""
    rng = np.random.default_rng(0)
    fakes, reals = rng.multinomial(300, np.full(100, 0.01), size=(2, 1000))
    weights = np.maximum(reals, 0.5)
    pairs = list(zip(fakes, weights, reals, strict=True))
    truth = {
        "modes": np.mean([modes.count_captured(fake) for fake in fakes]),
        "kl": np.mean([modes.kl(fake, weight) for fake, weight, _ in pairs]),
        "kl_corrected": np.mean(
            [modes.kl_corrected(f, w, reference_counts=r) for f, w, r in pairs]
        ),
        "js": np.mean([modes.js(fake, weight) for fake, weight, _ in pairs]),
    }
    extractor = Labels()
    one, other, fake = rng.integers(0, 100, (3, N, 1, 1, 1), np.uint8)
    found = suite.report(
        suite.ReferenceStatistics.of(extractor, one),
        extractor.extract(fake),
        extractor.extract(other),
        resamples=4,
    )
    for name, near in {"modes": 3, "kl": 0.03, "kl_corrected": 0.02, "js": 0.01}.items():
        assert found.results[name].ideal == pytest.approx(truth[name], abs=near), name


def test_the_report_is_plain_json_with_its_origin():
    text = json.dumps(report_of(GARBAGE["few modes"]).to_dict(), allow_nan=False)
    held = json.loads(text)
    assert held["samples"] == N
    assert held["extractor"] == "corners"
    assert held["missing"]
    assert suite._finite({"high": math.inf, "low": 1.5}) == {"high": None, "low": 1.5}


def test_quick_gives_the_same_numbers_and_needs_as_many_fakes():
    extractor, reference = Corners(), suite.ReferenceStatistics.of(Corners(), digits(N, 0))
    seen = extractor.extract(REAL)
    quick, whole = (suite.measure(reference, seen, quick=way) for way in (True, False))
    assert set(whole) - set(quick) == {"kid", "support"}
    assert all(whole[name] == value for name, value in quick.items())
    with pytest.raises(ValueError, match="299 samples but 300 reference images"):
        suite.measure(reference, extractor.extract(REAL[1:]))
    with pytest.raises(ValueError, match="79 reference images"):
        suite.ReferenceStatistics.of(extractor, REAL[:79])


def test_without_modes_the_rest_is_measured():
    class Blind(Corners):
        mode_names = ()

        def extract(self, images):
            return Features(super().extract(images).features, None, None)

    reference = suite.ReferenceStatistics.of(Blind(), digits(N, 0))
    report = suite.report(reference, Blind().extract(REAL[:N]), Blind().extract(REAL), resamples=4)
    assert "kl" not in report.results
    assert "recall" in report.results
    assert report.missing() == []
    assert diagnose(report).kind == "none"


@pytest.mark.parametrize("different", [1, 2, 12])
def test_reals_that_repeat_are_measured(different):
    reals = np.tile(digits(different, 7), (N // different, 1, 1, 1))
    reference = suite.ReferenceStatistics.of(Corners(), reals)
    seen = Corners().extract(reals)
    report = suite.report(reference, seen, seen, resamples=4)
    assert report["frechet"] == pytest.approx(0, abs=1e-9)
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize(("different", "kind"), [(40, "none"), (5, "repeats")])
def test_samples_repeat_only_where_the_reals_do_so_less(different, kind):
    reals, extractor = digits(40, 7), Corners()
    rng = np.random.default_rng(8)
    reference = suite.ReferenceStatistics.of(extractor, reals[rng.integers(0, 40, N)])
    control = extractor.extract(reals[rng.integers(0, 40, N)])
    seen = extractor.extract(reals[rng.integers(0, different, N)])
    report = suite.report(reference, seen, control, resamples=20)
    assert report.results["support"].reference == pytest.approx(40, rel=0.2)
    assert diagnose(report).kind == kind


def test_half_life_is_the_first_fall_below_half_of_the_best():
    assert half_life([1, 2, 3, 4], [0.2, 0.8, 0.5, 0.3]) == 4
    assert half_life([1, 2, 3], [0.2, 0.4, 0.2]) is None
    assert half_life([], []) is None


@pytest.mark.parametrize(
    ("recall", "vendi", "saturation", "progress", "words"),
    [
        ([0.1, 0.4, 0.3], [0.5, 0.8, 0.8], 0.1, 0.5, ""),
        (
            [0.1, 0.4, 0.1],
            [0.5, 0.8, 0.8],
            0.1,
            0.5,
            "recall fell to 0.100, below half of its maximum of 0.4",
        ),
        ([0.0, 0.04, 0.0], [0.5, 0.8, 0.3], math.nan, 0.5, "vendi_share fell to 0.300"),
        ([0.0, 0.0], [0.05, 0.05], 0.0, 0.3, "never been varied"),
        ([0.0, 0.0], [0.05, 0.05], 0.0, 0.2, ""),
        ([0.4], [0.8], 0.97, 0.1, "D classifies 97% of all images correctly"),
    ],
)
def test_a_collapse_warning_gives_its_reasons(recall, vendi, saturation, progress, words):
    said = collapse_warning({"recall": recall, "vendi_share": vendi}, saturation, progress)
    assert words in said
    assert bool(words) == bool(said)
