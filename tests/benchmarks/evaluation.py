"""How true the evaluation is: on known failures, by feature space, and in its intervals.

    python -m tests.benchmarks.evaluation failures --root MNIST     # 5 minutes
    python -m tests.benchmarks.evaluation features                  # 10 minutes
    python -m tests.benchmarks.evaluation intervals --root MNIST    # 20 minutes

failures: the metrics and the diagnosis of samples that fail in known ways. features: with which
features of faces these failures differ most from other real images. intervals: how often the 95 %
intervals of a report hold over new samples and new reference images, and how often the diagnosis
finds a failure of real images.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, normalize

from ganray.evaluation import suite
from ganray.evaluation.classifier import Classifier, load_classifier
from ganray.evaluation.diagnosis import diagnose
from ganray.evaluation.extractors import coarse_pixels
from ganray.metrics.diversity import vendi_score
from ganray.metrics.precision_recall import Manifold, manifold_scores
from tests.evaluation.failures import (
    CPU,
    DIGITS,
    FACES,
    Failure,
    FailureTest,
    digit_test,
    face_test,
)

N, TRAINING = 2_000, {"digits": 10_000, "faces": 6_000}
COLUMNS = ("precision", "coverage", "recall", "density", "vendi_share", "support", "frechet")
COLUMNS += ("memorization", "authenticity", "copying")
FEATURE_FAILURES = (
    *("other real images", "each image twice", "blends of two", "blends, 70 % of one"),
    *("blurred", "noisy", "half the contrast", "5 % noise", "30 % upside down"),
    *("no hats", "no smiles", "no brown hair", "no men", "the brighter half"),
)
"""Failures that are compared by feature space."""

Images = np.ndarray
Extract = Callable[[Images], torch.Tensor]
"""Maps uint8 (n, H, W, C) to features (n, d)."""


def print_failures(tests: dict[str, tuple[FailureTest, dict[str, Failure]]]) -> None:
    """Print the metrics and the diagnosis of each failure."""
    for kind, (test, failures) in tests.items():
        print(f"\n| {kind} | {' | '.join(COLUMNS)} | diagnosis |\n|{'---|' * (len(COLUMNS) + 2)}")
        for name, failure in failures.items():
            report = test.report(failure)
            values = [f"{report[column]:.2g}" for column in COLUMNS]
            support = report["support"]
            values[COLUMNS.index("support")] = f"{support:,.0f}" if support < 1e5 else "> 100,000"
            kinds = ", ".join(diagnose(report).kinds) or "none"
            print(f"| {name} | {' | '.join(values)} | {kinds} |", flush=True)


def print_features(test: FailureTest, classifier: Classifier) -> None:
    """Print for each feature space how far failures are from other real images.

    An entry is how far the worst of precision, coverage and recall is below that of 12 sets of real
    images, in their standard deviations, and after the slash how far the Vendi score is.
    """
    training = test.pool.training
    print(f"| features of faces | {' | '.join(FEATURE_FAILURES)} |")
    print(f"|{'---|' * (len(FEATURE_FAILURES) + 1)}")
    for name, extract in feature_spaces(training, classifier):
        pool = extract(test.pool.images)
        null = []
        for draw in range(12):
            rows = np.random.default_rng(draw).permutation(len(pool))
            null.append(losses(Manifold.fit(pool[rows[:N]]), pool[rows[N : 2 * N]]))
        null = np.array(null)
        reference = Manifold.fit(pool[-N:])  # failures are made of the first images
        cells = []
        for failure in FEATURE_FAILURES:
            images = FACES[failure].make(test.pool, N, np.random.default_rng(1))
            scores = losses(reference, extract(images))
            distances = (scores - null.mean(0)) / null.std(0, ddof=1)
            cells.append(f"{distances[:3].max():.0f} / {distances[3]:.0f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def losses(reference: Manifold, features: torch.Tensor) -> np.ndarray:
    """Return precision, coverage, recall and Vendi score with their sign reversed."""
    scores = manifold_scores(reference, Manifold.fit(features))
    values = scores.precision, scores.coverage, scores.recall, vendi_score(features)
    return -np.array(values)


def feature_spaces(training: Images, classifier: Classifier) -> Iterator[tuple[str, Extract]]:
    """Yield the feature spaces to compare, trained on the training images alone when needed."""

    def embed(network: nn.Module) -> Extract:
        def extract(images: Images) -> torch.Tensor:
            with torch.no_grad():
                return torch.cat([network(to_pixels(part)) for part in chunks(images)])

        return extract

    def unit(extract: Extract) -> Extract:
        return lambda images: normalize(extract(images))

    raw: Extract = classifier.features
    torch.manual_seed(0)
    untrained = Classifier(classifier.image_shape, 2, 0).body.eval()
    yield "classifier, raw", raw
    yield "classifier, length 1", unit(raw)
    yield "classifier, length 1, whitened", whitened(unit(raw), training)
    yield "classifier, probabilities", lambda images: classifier.predict(images).sigmoid()
    yield "coarse pixels", lambda images: coarse_pixels(images, CPU)
    yield "untrained network, length 1", unit(embed(untrained))
    yield "contrastive network, length 1", unit(embed(contrastive_network(training)))
    yield "autoencoder", embed(autoencoder(training))


def chunks(images: Images) -> list[Images]:
    """Split images into parts of 500."""
    return [images[start : start + 500] for start in range(0, len(images), 500)]


def to_pixels(images: Images) -> torch.Tensor:
    """Convert uint8 (n, H, W, C) to float32 (n, C, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def whitened(extract: Extract, training: Images) -> Extract:
    """Return the features in coordinates in which those of training images have covariance 1."""
    features = extract(training).double()
    mean = features.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((features - mean).T))
    scale = vectors / values.clamp_min(1e-3 * values[-1]).sqrt()
    return lambda images: (extract(images).double() - mean) @ scale


def contrastive_network(training: Images, steps: int = 800, batch: int = 256) -> nn.Module:
    """Train the classifier's network as in SimCLR (Chen et al. 2020), without labels."""
    torch.manual_seed(0)
    height, width, channels = training.shape[1:]
    network = Classifier((height, width, channels), 2, 0).body
    head = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64))
    optimizer = torch.optim.AdamW([*network.parameters(), *head.parameters()], 1e-3)
    pixels = to_pixels(training)
    for _ in range(steps):
        x = pixels[torch.randint(len(pixels), (batch,))]
        views = torch.cat([jitter(x), jitter(x)])
        z = normalize(head(network(views)))
        similarity = (z @ z.T / 0.2).fill_diagonal_(-torch.inf)
        optimizer.zero_grad()
        cross_entropy(similarity, torch.arange(2 * batch).roll(batch)).backward()
        optimizer.step()
    return network.eval()


def jitter(x: torch.Tensor) -> torch.Tensor:
    """Crop, brighten and change the contrast of each image at random."""
    n = len(x)
    scale = torch.empty(n).uniform_(0.75, 1)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = (2 * torch.rand(n, 2) - 1) * (1 - scale)[:, None]
    grid = affine_grid(theta, list(x.shape), align_corners=False)
    x = grid_sample(x, grid, padding_mode="border", align_corners=False)
    contrast = torch.empty(n, 1, 1, 1).uniform_(0.8, 1.25)
    return x * contrast + torch.empty(n, 1, 1, 1).uniform_(-0.2, 0.2)


def autoencoder(training: Images, steps: int = 800, batch: int = 256) -> nn.Module:
    """Train an autoencoder with a code of 64 numbers, and return its encoder."""
    torch.manual_seed(0)
    side, channels = training.shape[1] // 8, training.shape[3]
    encoder, decoder = [], []
    widths = [channels, 32, 64, 64]
    for a, b in itertools.pairwise(widths):
        encoder += [nn.Conv2d(a, b, 3, 2, 1), nn.LeakyReLU(0.2)]
        decoder[:0] = [nn.Upsample(scale_factor=2), nn.LeakyReLU(0.2), nn.Conv2d(b, a, 3, 1, 1)]
    encoding = nn.Sequential(*encoder, nn.Flatten(), nn.Linear(64 * side * side, 64))
    decoding = nn.Sequential(
        nn.Linear(64, 64 * side * side), nn.Unflatten(1, (64, side, side)), *decoder
    )
    parameters = [*encoding.parameters(), *decoding.parameters()]
    optimizer = torch.optim.AdamW(parameters, 2e-3)
    pixels = to_pixels(training)
    for _ in range(steps):
        x = pixels[torch.randint(len(pixels), (batch,))]
        optimizer.zero_grad()
        (decoding(encoding(x)) - x).square().mean().backward()
        optimizer.step()
    return encoding.eval()


def print_intervals(test: FailureTest, n: int, draws: int) -> None:
    """Print how often intervals hold the mean of a metric over all draws, and the false alarms."""
    pool = test.pool
    rng = np.random.default_rng(0)
    makers: dict[str, Callable[[], Images]] = {
        "real images": lambda: pool.images,
        "without 7, 8, 9": lambda: pool.images[pool.labels < 7],
        "blends, 70 % of one": lambda: DIGITS["blends, 70 % of one"].make(
            pool, len(pool.images) // 2, rng
        ),
    }
    real = test.statistics(pool.images)
    for name, make in makers.items():
        fake = real if name == "real images" else test.statistics(make())
        reports = []
        for _ in range(draws):
            rows = torch.from_numpy(rng.permutation(len(real)))
            others = torch.from_numpy(rng.permutation(len(fake)))[:n]
            # Real images as samples must not be among the reference images.
            others = rows[2 * n : 3 * n] if fake is real else others
            sides = real.take(rows[:n]), fake.take(others), real.take(rows[n : 2 * n])
            reports.append(suite.report(*sides, rng_seed=len(reports)))
        held = {}
        for metric in reports[0].results:
            estimates = [report.results[metric].estimate for report in reports]
            mean = np.mean([estimate.value for estimate in estimates])
            if np.isfinite(mean):
                held[metric] = np.mean([e.low <= mean <= e.high for e in estimates])
        found = sum(bool(diagnose(report).kinds) for report in reports)
        cells = ", ".join(f"{metric} {share:.0%}" for metric, share in held.items())
        print(f"{name}, n = {n:,}: {found} of {draws} diagnosed; {cells}", flush=True)


def main() -> None:
    """Run one of the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("part", choices=("failures", "features", "intervals"))
    parser.add_argument("--root", type=Path, help="folder of MNIST")
    parser.add_argument(
        "--home", type=Path, default=Path("~/.cache/ganray-evaluation").expanduser()
    )
    parser.add_argument("--draws", type=int, default=40)
    options = parser.parse_args()
    if options.part == "features":
        test = face_test(options.home, N, TRAINING["faces"])
        (file,) = options.home.glob("*.pt")
        print_features(test, load_classifier(file, CPU))
        return
    digits = digit_test(options.root, options.home / "digits", N, TRAINING["digits"])
    if options.part == "intervals":
        for n in (1_000, 2_000):
            print_intervals(digits, n, options.draws)
        return
    faces = face_test(options.home, N, TRAINING["faces"])
    print_failures({"digits": (digits, DIGITS), "faces": (faces, FACES)})


if __name__ == "__main__":
    main()
