"""Metrics and diagnosis of typical failures, with a simple extractor instead of a classifier."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from ganray.errors import UserError
from ganray.evaluation import suite
from ganray.evaluation.comparison import ImageStatistics
from ganray.evaluation.diagnosis import collapse_warning, diagnose, half_life
from ganray.evaluation.extractors import Features
from ganray.evaluation.report import memorization_results, table
from ganray.metrics import modes
from ganray.metrics.intervals import Estimate
from ganray.metrics.memorization import TrainingNeighbors, TrainingSpacing

CLASSES, N = 5, 300
PUBLISHED = {"fid", "fd_dinov2", "cmmd"}
"""Metrics of published features only."""


class StripeExtractor:
    """Extractor for images of 8x8x1, whose class is the bright one of the first five rows.

    Like a trained classifier, it is confident only about images close to a class, and its features
    are not negative and change little among images that resemble no class.
    """

    hash = "stripes"
    mode_names = tuple("abcde")
    attribute_names = ()

    def extract(self, images):
        pixels = torch.as_tensor(images).float().reshape(len(images), 64) / 255
        rows = pixels.unflatten(1, (8, 8))[:, :CLASSES].mean(2)
        detail = pixels[:, -24:] * rows.max(1, keepdim=True).values.gt(0.6)
        features = torch.cat(
            [torch.relu(rows - 0.2) * 2, 0.5 * detail, torch.ones(len(rows), 1) / 50], 1
        )
        first, second = rows.sort(descending=True).values[:, :2].T
        confidences = ((first - second) / 0.5).clamp(0, 1)
        return Features(normalize(features), pixels, rows.argmax(1), confidences)


STRIPES = StripeExtractor()


def stripes(count, rng_seed, classes=range(CLASSES)):
    """Return images uint8 (count, 8, 8, 1): a bright row; its level and the last rows vary."""
    rng = np.random.default_rng(rng_seed)
    images = np.zeros((count, 8, 8, 1), np.uint8)
    labels = rng.choice(list(classes), count)
    images[np.arange(count), labels] = rng.integers(215, 256, (count, 1, 1))
    images[:, 5:] = rng.integers(0, 256, (count, 3, 8, 1))
    return images


def statistics_of(images, extractor=STRIPES):
    return ImageStatistics.of(extractor, extractor.extract(images))


def report_of(images):
    reference, control = statistics_of(stripes(N, 0)), statistics_of(stripes(N, 1))
    return suite.report(reference, statistics_of(images), control, resamples=20)


REAL = stripes(N, 2)
SAMPLES = {
    "noise": np.random.default_rng(0).integers(0, 256, REAL.shape, dtype=np.uint8),
    "shuffled": np.random.default_rng(3).permuted(REAL.reshape(N, -1), axis=1).reshape(REAL.shape),
    "blends": ((REAL.astype(int) + stripes(N, 4)) // 2).astype(np.uint8),
    "one image": np.repeat(REAL[:1], N, 0),
    "few modes": stripes(N, 5, classes=(1, 3)),
    "repeats": np.tile(REAL[:20], (N // 20, 1, 1, 1)),
    "lost modes": stripes(N, 6, classes=(0, 1, 2, 4)),
    "none": REAL,
}
KINDS = {"noise": "unlike real", "shuffled": "unlike real", "blends": "unlike real"}


@pytest.mark.parametrize("name", SAMPLES)
def test_diagnosis_names_the_failure(name):
    report = report_of(SAMPLES[name])
    diagnosis = diagnose(report)
    assert (*diagnosis.kinds, "none")[0] == KINDS.get(name, name), diagnosis.text
    assert diagnosis.collapsed == (name in ("one image", "few modes", "repeats"))
    if name == "few modes":
        assert sorted(report.missing) == ["a", "c", "e"]
        assert "2 of 5 modes are there (other real images: 5), without" in diagnosis.text
    if name == "lost modes":
        assert report.missing == ("d",)
        assert "Coverage is below that of real images" in diagnosis.text
        assert "4 of 5 modes are there (other real images: 5), without d." in diagnosis.text
    if name == "repeats":
        assert "100% have a near duplicate" in diagnosis.text
    if name in KINDS:  # modes of samples without a class mean nothing
        assert "modes are there" not in diagnosis.text


@pytest.mark.parametrize(
    ("repeated", "sentence"),
    [
        (0, "Samples do not repeat more than real images: 0.7%"),
        (12, "Few samples repeat: 4.7%"),
        (150, "Samples repeat as if there were about 4 equally frequent images: 50%"),
    ],
)
def test_a_diagnosis_says_how_many_samples_repeat(repeated, sentence):
    """Copies of one image are a collapse only if most real images are far from all samples."""
    copies = np.repeat(REAL[-1:], repeated, 0)
    diagnosis = diagnose(report_of(np.concatenate([REAL[: N - repeated], copies])))
    assert f"{sentence} have a near duplicate (other real" in diagnosis.text
    assert ("repeats" in diagnosis.kinds) == (repeated > 100)
    assert not diagnosis.collapsed


@pytest.mark.parametrize(("high", "most"), [(-0.01, "0%"), (0.02, "2.0%")])
def test_a_diagnosis_bounds_the_share_of_copies(high, most):
    report = report_of(REAL)
    low = suite.MetricResult(
        *("memorization", "lower", ""), Estimate(-0.02, -0.05, high, N), 0.0, 0.0,
        control=Estimate(0.0, -0.02, 0.02, N),
    )  # fmt: skip
    text = diagnose(replace(report, results=report.results | {"memorization": low})).text
    assert text.endswith(f"No copies of training images are detected; at most {most} are.")


def test_measures_of_memorization_state_those_of_held_out_images():
    training, held_out, samples = torch.rand(3, N, 4, generator=torch.Generator().manual_seed(0))
    own = TrainingNeighbors.of(held_out, training, held_out, torch.arange(N))
    fake = TrainingNeighbors.of(samples / 2, training, held_out)
    spacings = [TrainingSpacing.of(x.nearest, training) for x in (fake, own)]
    results = memorization_results(fake, spacings[0], own, spacings[1])
    same = memorization_results(own, spacings[1], own, spacings[1])
    for name, result in results.items():
        assert result.reference == same[name].estimate.value, name
    assert results["authenticity"].estimate.value != results["authenticity"].reference


def test_real_images_score_like_an_ideal_generator():
    report = report_of(REAL)
    for name, result in report.results.items():
        estimate = result.estimate
        assert estimate.low <= estimate.value <= estimate.high, name
        if result.ideal is not None:
            width = max(estimate.high - estimate.low, 1e-9)
            assert abs(result.reference - result.ideal) < 3 * width + 0.02, name
    assert report["modes"] == 5
    # (K - 1) / 2 * (1 / n + 1 / m), as the reference images are a sample, too.
    assert report.results["kl"].ideal == pytest.approx(4 / N, rel=0.1)


class PixelClassExtractor:
    """Extractor for images of one pixel, whose level is the class."""

    hash = "labels"
    mode_names = tuple(str(i) for i in range(100))
    attribute_names = ()

    def extract(self, images):
        labels = torch.as_tensor(images).flatten().long()
        features = torch.randn(len(labels), 2, generator=torch.Generator().manual_seed(0))
        return Features(features, features, labels, torch.ones(len(labels)))


def test_ideal_scores_take_the_sampling_of_the_reference_images_into_account():
    """300 samples of 100 even classes against 300 reference images, simulated 1,000 times."""
    rng = np.random.default_rng(0)
    samples, references = rng.multinomial(300, np.full(100, 0.01), size=(2, 1000))
    pairs = list(zip(samples, np.maximum(references, 0.5), references, strict=True))
    truth = {
        "modes": np.mean([modes.count_captured(sample) for sample in samples]),
        "kl": np.mean([modes.kl(sample, weight) for sample, weight, _ in pairs]),
        "kl_corrected": np.mean(
            [modes.kl_corrected(s, w, reference_counts=r) for s, w, r in pairs]
        ),
        "js": np.mean([modes.js(sample, weight) for sample, weight, _ in pairs]),
    }
    images = rng.integers(0, 100, (3, N, 1, 1, 1), np.uint8)
    reference, control, fake = (statistics_of(part, PixelClassExtractor()) for part in images)
    report = suite.report(reference, fake, control, resamples=4)
    for name, tolerance in {"modes": 3, "kl": 0.03, "kl_corrected": 0.02, "js": 0.01}.items():
        assert report.results[name].ideal == pytest.approx(truth[name], abs=tolerance), name


def test_an_entry_in_the_table_is_all_that_a_metric_needs(monkeypatch):
    spread = suite.Metric(
        "spread",
        "higher",
        "total variance",
        lambda c: c.samples.moments.covariance().trace().item(),
    )
    monkeypatch.setattr(suite, "METRICS", (*suite.METRICS, spread))
    report = report_of(REAL)
    variance = StripeExtractor().extract(REAL).features.double().var(0).sum().item()
    assert report["spread"] == pytest.approx(variance)
    assert report.results["spread"].estimate.low < variance < report.results["spread"].estimate.high
    assert "spread" not in table(report)
    lines = table(report, full=True).splitlines()
    row, meaning = (line for line in lines if line.startswith("spread"))
    assert row.endswith("higher")
    assert meaning == "spread: total variance"


@pytest.mark.parametrize("columns", [60, 80, 100, 140])
def test_the_table_fits_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    result = report_of(stripes(N, 7, range(3)))
    for full in (False, True):
        lines = table(result, full).splitlines()
        assert max(map(len, lines)) <= max(columns, 70)
        assert ("real images near a sample" in table(result)) == (columns >= 100)
    # Seven metrics, the heading, how many more, and what the intervals are over.
    assert len(table(result).splitlines()) <= 12


def test_the_table_states_what_intervals_are_over(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    over = "300 of each; [95 %] over new samples and new real images"
    report = report_of(REAL)
    assert table(report).endswith(f"{over}; of support over new samples only")
    full = table(report, full=True)
    assert full.endswith(f"{over}; of duplicates, support over new samples only")


def test_modes_are_ordered_by_what_they_lack(monkeypatch):
    """Half of the samples of c vary in their last row only, those of d not at all."""
    monkeypatch.setenv("COLUMNS", "120")
    samples = REAL.copy()
    c, d = (np.flatnonzero(REAL[:, row].mean((1, 2)) > 200) for row in (2, 3))
    samples[d] = samples[d[0]]
    samples[c[::2], 5:7] = samples[c[0], 5:7]
    report = report_of(samples)
    assert [mode.name for mode in report.modes][:2] == ["d", "c"]
    assert [mode.lack for mode in report.modes] == sorted(mode.lack for mode in report.modes)
    lines = [line for line in table(report, full=True).splitlines() if line[1:2] == ":"]
    assert [line[0] for line in lines] == [mode.name for mode in report.modes]
    assert lines[0].startswith("d: coverage 0.0175, -1.0 [")
    assert "least in d, of which samples lie near 2% (100%)" in diagnose(report).text


def test_every_metric_is_described_in_the_readme():
    readme = (Path(suite.__file__).parent / "README.md").read_text()
    assert not [metric.name for metric in suite.METRICS if f"`{metric.name}`" not in readme]


def test_report_is_plain_json():
    report = report_of(SAMPLES["few modes"])
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert content["samples"] == N
    assert content["extractor"] == "stripes"
    assert content["missing"] == list(report.missing)
    assert content["results"]["recall"]["estimate"]["value"] == report["recall"]
    assert suite._finite({"high": math.inf, "low": 1.5}) == {"high": None, "low": 1.5}


def frechet(reference, samples):
    a, b = (fid_features_to_statistics(rows) for rows in (reference, samples))
    return fid_statistics_to_metric(a, b, verbose=False)["frechet_inception_distance"]


def kid(reference, samples):
    options = {"kid_subsets": 1, "kid_subset_size": len(reference), "verbose": False}
    return kid_features_to_metric(reference, samples, **options)["kernel_inception_distance_mean"]


def cmmd(reference, samples):
    x, y = reference.numpy(), samples.numpy()
    pairs = ((x, x, 1), (y, y, 1), (x, y, -2))  # of unit vectors: |x - y|^2 = 2 - 2 x . y
    return 1000 * sum(sign * np.exp((a @ b.T - 1) / 100).mean() for a, b, sign in pairs)


@pytest.mark.parametrize(
    ("extractor", "expected"),
    [
        ("0123456789abcdef", {"frechet": frechet, "kid": kid}),
        ("pixels-16", {"frechet": frechet, "kid": kid}),
        ("inception-01+pixels-16", {"fid": frechet, "kid": kid}),
        ("dinov2-01+pixels-16", {"fd_dinov2": frechet}),
        ("clip-01+pixels-16", {"cmmd": cmmd}),
    ],
)
def test_distances_have_the_published_name_of_the_features(extractor, expected):
    rows = torch.rand(2, 100, 8, generator=torch.Generator().manual_seed(0))
    sides = [ImageStatistics(Features(x, x), (), (), extractor) for x in normalize(rows, dim=2)]
    values = suite.measure(*sides)
    assert expected.keys() == values.keys() & {"frechet", "kid", "fid", "fd_dinov2", "cmmd"}
    for name, oracle in expected.items():
        features = (side.features.double() for side in sides)
        assert values[name] == pytest.approx(oracle(*features), rel=1e-6), name


def test_quick_metrics_are_the_same_numbers_without_slow_ones():
    reference, samples = statistics_of(stripes(N, 0)), statistics_of(REAL)
    quick, all_metrics = (suite.measure(reference, samples, quick=quick) for quick in (True, False))
    assert list(all_metrics) == [name for name in suite.METRICS_BY_NAME if name not in PUBLISHED]
    assert set(all_metrics) - set(quick) == {"kid", "support", "duplicates"}
    assert all(all_metrics[name] == value for name, value in quick.items())
    report = report_of(REAL)
    assert all(report[name] == value for name, value in all_metrics.items())


def test_unequal_or_too_few_images_are_rejected():
    with pytest.raises(ValueError, match="299 samples but 300 reference images"):
        suite.measure(statistics_of(stripes(N, 0)), statistics_of(REAL[1:]))
    with pytest.raises(UserError, match="100 samples and 159 reference images are too few"):
        suite.evaluate(REAL[:100], REAL[:159])


def test_metrics_of_modes_are_left_out_without_modes():
    report = suite.evaluate(REAL, np.concatenate([stripes(N, 0), stripes(N, 1)]), resamples=4)
    needs_modes = {metric.name for metric in suite.METRICS if metric.needs_modes}
    assert set(report.results) == set(suite.METRICS_BY_NAME) - needs_modes - PUBLISHED
    assert report.missing == ()
    assert diagnose(report).kinds == ()


@pytest.mark.parametrize("distinct", [1, 2, 12])
def test_repeating_reference_images_are_measured(distinct):
    images = np.tile(stripes(distinct, 7), (N // distinct, 1, 1, 1))
    reference = statistics_of(images)
    report = suite.report(reference, reference, reference, resamples=4)
    assert report["frechet"] == pytest.approx(0, abs=1e-9)
    assert diagnose(report).text  # no coverage: balls of equal images are empty
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize(("distinct", "repeats"), [(40, False), (5, True)])
def test_samples_repeat_only_if_reference_images_repeat_less(distinct, repeats):
    images = stripes(40, 7)
    rng = np.random.default_rng(8)
    reference, control, samples = (
        statistics_of(images[rng.integers(0, count, N)]) for count in (40, 40, distinct)
    )
    report = suite.report(reference, samples, control, resamples=20)
    assert report.results["support"].reference == pytest.approx(40, rel=0.2)
    assert ("repeats" in diagnose(report).kinds) == repeats


class RareModesExtractor(PixelClassExtractor):
    """Extractor for images of one pixel with 1,000 modes, given by two bytes."""

    mode_names = tuple(str(i) for i in range(1000))

    def extract(self, images):
        high, low = torch.as_tensor(images).long().reshape(len(images), 2).T
        features = torch.randn(len(high), 2, generator=torch.Generator().manual_seed(0))
        return Features(features, features, 256 * high + low, torch.ones(len(high)))


@pytest.mark.parametrize(("modes", "is_lost"), [(1000, False), (400, True)])
def test_modes_that_real_images_miss_by_chance_are_not_lost(modes, is_lost):
    """600 images of 1,000 modes: about half of the modes are absent on each side."""
    rng = np.random.default_rng(1)
    numbers = rng.integers(0, (1000, modes, 1000), (600, 3)).T
    parts = np.stack([numbers // 256, numbers % 256], 2).astype(np.uint8)[..., None, None]
    reference, samples, control = (statistics_of(part, RareModesExtractor()) for part in parts)
    report = suite.report(reference, samples, control, resamples=4)
    assert bool(report.missing) == is_lost
    assert len(report.missing) < 400


def test_half_life_is_the_first_fall_below_half_of_the_maximum():
    assert half_life([1, 2, 3, 4], [0.2, 0.8, 0.5, 0.3]) == 4
    assert half_life([1, 2, 3], [0.2, 0.4, 0.2]) is None
    assert half_life([], []) is None


@pytest.mark.parametrize(
    ("recall", "vendi", "saturation", "progress", "reason"),
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
        ([0.0, 0.0], [0.05, 0.05], 0.0, 0.6, "never been varied"),
        ([0.0, 0.0], [0.05, 0.05], 0.0, 0.4, ""),
        ([0.4], [0.8], 0.97, 0.1, "D classifies 97% of all images correctly"),
    ],
)
def test_collapse_warning_gives_its_reason(recall, vendi, saturation, progress, reason):
    warning = collapse_warning({"recall": recall, "vendi_share": vendi}, saturation, progress)
    assert reason in warning
    assert bool(reason) == bool(warning)
