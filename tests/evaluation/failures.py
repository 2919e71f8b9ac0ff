"""Samples of generators that fail in known ways, made of real digits or drawn faces.

Each failure says which kinds of the diagnosis must be found, and which others may be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d, pad

from ganray.data.sources import faces
from ganray.data.sources.mnist import MNIST
from ganray.data.writer import resize_and_crop
from ganray.evaluation import suite
from ganray.evaluation.classifier import TrainingRecipe, reference_classifier
from ganray.evaluation.comparison import ImageStatistics
from ganray.evaluation.diagnosis import diagnose
from ganray.evaluation.extractors import AttributeExtractor, ClassExtractor, FeatureExtractor
from ganray.evaluation.held_out import to_bytes
from ganray.evaluation.report import memorization_results
from ganray.metrics.memorization import TrainingNeighbors, TrainingSpacing

CPU = torch.device("cpu")
Images = np.ndarray
FIDELITY = {"unlike real", "less faithful"}
VARIETY = {"narrow", "uneven", "lost modes", "few modes"}


@dataclass(frozen=True)
class Pool:
    """Real images to make samples of, uint8 (n, H, W, C), which nothing was trained on."""

    images: Images
    labels: np.ndarray
    """Classes, (n,), or attributes, (n, A), in {0, 1}."""
    training: Images
    """Images that the generator was trained on."""
    names: tuple[str, ...] = ()
    """Names of the attributes."""

    def without(self, name: str) -> Images:
        """Return the images without an attribute."""
        return self.images[self.labels[:, self.names.index(name)] == 0]


Make = Callable[[Pool, int, np.random.Generator], Images]


@dataclass(frozen=True)
class Failure:
    """A kind of failure and what the diagnosis has to say."""

    make: Make
    """Makes n samples, uint8 (n, H, W, C)."""
    one_of: set[str]
    """Kinds of which one must be found; empty: nothing may be found."""
    also: frozenset[str] = frozenset()
    """Kinds that may be found as well."""

    def is_right(self, kinds: tuple[str, ...]) -> bool:
        """Return whether these are right kinds to find."""
        found = set(kinds)
        return (not self.one_of or bool(found & self.one_of)) and found <= self.one_of | self.also


def _repeat(images: Images, times: int, n: int) -> Images:
    return np.concatenate([images[: n // times]] * times)[:n]


def _mix(a: Images, b: Images, weight: float) -> Images:
    return (weight * a + (1 - weight) * b.astype(float)).round().astype(np.uint8)


def _blur(images: Images) -> Images:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    blurred = avg_pool2d(pad(pixels, [1] * 4, mode="replicate"), 3, 1)
    return blurred.round().byte().permute(0, 2, 3, 1).numpy()


def _noisy(images: Images, sd: float, rng: np.random.Generator) -> Images:
    return np.clip(images + rng.normal(0, sd, images.shape), 0, 255).round().astype(np.uint8)


def _noise(images: Images, rng: np.random.Generator) -> Images:
    return rng.integers(0, 256, images.shape, dtype=np.uint8)


def _replace(images: Images, others: Images, n: int) -> Images:
    """Return n images, of which the first are others."""
    return np.concatenate([others, images[: n - len(others)]])


def _thick(images: Images) -> np.ndarray:
    return images.mean((1, 2, 3))


def _thinner_half(pool: Pool, digits: range) -> Images:
    """Return the images without the thicker half of some digits."""
    keep = np.ones(len(pool.images), bool)
    for digit in digits:
        of = pool.labels == digit
        keep &= ~(of & (_thick(pool.images) > np.median(_thick(pool.images[of]))))
    return pool.images[keep]


_LOST = VARIETY | FIDELITY
"""Kinds of a diagnosis that are also allowed for images that are few or noisy."""

COMMON: dict[str, Failure] = {
    "other real images": Failure(lambda p, n, _: p.images[:n], set()),
    "copies of training images": Failure(lambda p, n, _: p.training[:n], {"memorized"}),
    "noisy copies of them": Failure(
        lambda p, n, rng: _noisy(p.training[:n], 4, rng), {"memorized"}, frozenset(_LOST)
    ),
    "30 % copies": Failure(
        lambda p, n, _: _replace(p.images, p.training[: n * 3 // 10], n), {"memorized"}
    ),
    "each image twice": Failure(
        lambda p, n, _: _repeat(p.images, 2, n), {"repeats"}, frozenset(VARIETY)
    ),
    "each four times": Failure(
        lambda p, n, _: _repeat(p.images, 4, n), {"repeats"}, frozenset(VARIETY)
    ),
    "100 images": Failure(
        lambda p, n, _: _repeat(p.images, n // 100, n), {"repeats"}, frozenset(_LOST)
    ),
    "10 images": Failure(
        lambda p, n, _: _repeat(p.images, n // 10, n), {"repeats"}, frozenset(_LOST)
    ),
    "one image": Failure(lambda p, n, _: _repeat(p.images, n, n), {"one image"}),
    "noise": Failure(
        lambda p, n, rng: _noise(p.images[:n], rng), {"unlike real"}, frozenset(_LOST)
    ),
    "half noise": Failure(
        lambda p, n, rng: _replace(p.images, _noise(p.images[: n // 2], rng), n),
        FIDELITY,
        frozenset(VARIETY),
    ),
    "5 % noise": Failure(
        lambda p, n, rng: _replace(p.images, _noise(p.images[: n // 20], rng), n),
        FIDELITY,
        frozenset(VARIETY),
    ),
    "blends of two": Failure(
        lambda p, n, _: _mix(p.images[:n], p.images[n : 2 * n], 0.5), FIDELITY, frozenset(VARIETY)
    ),
    "blends, 70 % of one": Failure(
        lambda p, n, _: _mix(p.images[:n], p.images[n : 2 * n], 0.7), FIDELITY, frozenset(VARIETY)
    ),
    "blurred": Failure(lambda p, n, _: _blur(p.images[:n]), FIDELITY, frozenset(VARIETY)),
    "noisy": Failure(lambda p, n, rng: _noisy(p.images[:n], 40, rng), FIDELITY, frozenset(VARIETY)),
    "half the contrast": Failure(
        lambda p, n, _: _mix(p.images[:n], np.zeros_like(p.images[:n]), 0.5),
        FIDELITY,
        frozenset(VARIETY),
    ),
    "30 % upside down": Failure(
        lambda p, n, _: _replace(p.images, p.images[n : n + n * 3 // 10, ::-1], n),
        FIDELITY,
        frozenset(VARIETY),
    ),
}
DIGITS = COMMON | {
    "30 % mirrored": Failure(
        lambda p, n, _: _replace(p.images, p.images[n : n + n * 3 // 10, :, ::-1], n),
        FIDELITY,
        frozenset(VARIETY),
    ),
    "without 7, 8, 9": Failure(
        lambda p, n, _: p.images[p.labels < 7][:n], {"lost modes"}, frozenset(VARIETY)
    ),
    "only 1 and 3": Failure(
        lambda p, n, _: p.images[np.isin(p.labels, (1, 3))][:n], {"few modes"}, frozenset(VARIETY)
    ),
    "a twentieth of the ones": Failure(
        lambda p, n, _: np.concatenate(
            [p.images[p.labels == 1][: n // 200], p.images[p.labels != 1]]
        )[:n],
        {"uneven", "lost modes"},
        frozenset(VARIETY),
    ),
    "thin half of each digit": Failure(
        lambda p, n, _: _thinner_half(p, range(10))[:n], {"narrow"}, frozenset(VARIETY)
    ),
    "thin half of the fours": Failure(
        lambda p, n, _: _thinner_half(p, range(4, 5))[:n], {"narrow", "uneven"}
    ),
}
FACES = COMMON | {
    "no hats": Failure(
        lambda p, n, _: p.without("Wearing_Hat")[:n], {"uneven"}, frozenset(VARIETY)
    ),
    "no smiles": Failure(lambda p, n, _: p.without("Smiling")[:n], {"uneven"}, frozenset(VARIETY)),
    "no brown hair": Failure(lambda p, n, _: p.without("Brown_Hair")[:n], VARIETY),
    "no men": Failure(lambda p, n, _: p.without("Male")[:n], VARIETY),
    "the brighter half": Failure(
        lambda p, n, _: p.images[_thick(p.images) > np.median(_thick(p.images))][:n], VARIETY
    ),
}


class FailureTest:
    """Compares failures with n real images.

    Args:
        extractor: Feature extractor that was trained on the first `training` images.
        images: Real images in random order, uint8 (m, H, W, C): those that the generator is trained
            on, n reference images, n others, n held out to measure memorization, and those that
            samples are made of.
        labels: Classes (m,) or attributes (m, A).
        names: Names of the attributes.
        n: Number of samples.
        training: Number of training images.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        images: Images,
        labels: np.ndarray,
        names: tuple[str, ...],
        n: int,
        training: int,
    ) -> None:
        self.extractor, self.n = extractor, n
        ends = training + n * np.arange(4)
        parts = np.split(images, ends)
        self.pool = Pool(parts[4], np.split(labels, ends)[4], parts[0], names)
        self.reference, self.control = map(self.statistics, parts[1:3])
        self.sets = [to_bytes(extractor.extract(part).pixels) for part in (parts[0], parts[3])]
        own = torch.arange(n)
        self.held_out = TrainingNeighbors.of(self.sets[1], *self.sets, own)

    def statistics(self, images: Images) -> ImageStatistics:
        """Return the statistics of images."""
        return ImageStatistics.of(self.extractor, self.extractor.extract(images))

    def report(self, failure: Failure, resamples: int = suite.RESAMPLES) -> suite.MetricsReport:
        """Return the report on samples that fail so."""
        images = failure.make(self.pool, self.n, np.random.default_rng(1))
        assert len(images) == self.n
        samples = self.statistics(images)
        report = suite.report(self.reference, samples, self.control, resamples=resamples)
        neighbors = TrainingNeighbors.of(to_bytes(samples.extracted.pixels), *self.sets)
        spacing, real_spacing = (
            TrainingSpacing.of(x.nearest, self.sets[0]) for x in (neighbors, self.held_out)
        )
        added = memorization_results(neighbors, spacing, self.held_out, real_spacing)
        return replace(report, results=report.results | added)

    def wrong(self, failures: dict[str, Failure], resamples: int) -> dict[str, str]:
        """Return the diagnoses that are wrong."""
        diagnoses = {name: diagnose(self.report(x, resamples)) for name, x in failures.items()}
        return {
            name: f"{diagnosis.kinds}: {diagnosis}"
            for name, diagnosis in diagnoses.items()
            if not failures[name].is_right(diagnosis.kinds)
        }


def digit_test(root: Path, cache: Path, n: int, training: int) -> FailureTest:
    """Return the test of MNIST's digits."""
    mnist = MNIST.open(root)
    # In random order, as some writers wrote the first half, and others the second one.
    order = np.random.default_rng(0).permutation(60_000)[: training + 8 * n]
    images, labels = mnist.images[order][..., None], np.asarray(mnist.labels[order], np.int64)
    sets = images[:training], labels[:training], images[training:], labels[training:]
    digest = f"{len(order)} digits"
    classifier = reference_classifier(*sets, data_digest=digest, cache=cache, device=CPU)
    extractor = ClassExtractor(classifier, MNIST.class_names)
    return FailureTest(extractor, images, labels, (), n, training)


def face_test(
    cache: Path, n: int, training: int, recipe: TrainingRecipe | None = None
) -> FailureTest:
    """Return the test of drawn faces of 32x32."""
    chunks = [
        faces.draw(0, np.arange(start, min(start + 500, training + 7 * n)))
        for start in range(0, training + 7 * n, 500)
    ]
    images = np.stack(
        [np.asarray(resize_and_crop(Image.fromarray(x), 32)) for xs, _ in chunks for x in xs]
    )
    attributes = (np.concatenate([signs for _, signs in chunks]) == 1).astype(np.uint8)
    sets = images[:training], attributes[:training], images[training:], attributes[training:]
    digest = f"{len(images)} faces"
    classifier = reference_classifier(
        *sets, data_digest=digest, cache=cache, device=CPU, recipe=recipe
    )
    extractor = AttributeExtractor(classifier, faces.ATTRIBUTE_NAMES, attributes[:training])
    return FailureTest(extractor, images, attributes, faces.ATTRIBUTE_NAMES, n, training)
