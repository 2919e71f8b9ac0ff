"""Location and preparation of reference images other than the training images."""

import functools
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ganray.config.schema import DataConfig, EvaluationConfig
from ganray.data import prepare
from ganray.evaluation import reference
from ganray.evaluation.classifier import TrainingRecipe, reference_classifier
from ganray.evaluation.datasets import locate_datasets
from ganray.evaluation.evaluator import Evaluator
from ganray.evaluation.extractors import coarse_pixels
from ganray.evaluation.held_out import MemorizationTest
from tests.conftest import tiny_config

CPU = torch.device("cpu")


def digits_config(home, samples=80, check=False, reference=None, **data):
    config = tiny_config(home)
    return replace(
        config,
        data=DataConfig(**({"source": "digits", "size": 0} | data)),
        network=replace(config.network, kind="mlp"),
        evaluation=replace(config.evaluation, samples=samples, reference=reference or {}),
        check_discriminator=check,
    )


def test_other_reference_images_are_prepared_if_evaluation_is_enabled(tmp_path):
    config = digits_config(tmp_path, images=100, reference={"images": None})
    datasets = locate_datasets(config)
    assert not datasets.same
    assert (datasets.images.count, datasets.reference.count) == (100, 1797)
    assert datasets.prepare() != datasets.reference_digest()
    with datasets.open_reference() as images:
        assert len(images) == 1797
    for config in (
        digits_config(tmp_path, images=100),
        digits_config(tmp_path, images=100, reference={"images": 100}),
        digits_config(tmp_path, samples=0, images=100, reference={"images": 50}),
        digits_config(tmp_path, check=True, images=100, reference={"images": 50}),
    ):
        datasets = locate_datasets(config)
        assert datasets.same
        assert datasets.prepare()
    assert len(list((tmp_path / "shards").iterdir())) == 2


def test_faces_are_drawn_once_for_training_and_reference_images(tmp_path, monkeypatch):
    calls = []
    progress = prepare.Progress
    monkeypatch.setattr(prepare, "Progress", lambda *args: calls.append(args) or progress(*args))
    config = digits_config(
        tmp_path, source="celeba", faces=12, images=5, reference={"images": None}
    )
    datasets = locate_datasets(config)
    datasets.prepare()
    datasets.reference_digest()
    assert calls == [(12, "drawing faces", "faces")]


def test_the_disk_must_have_room_for_both_sets(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=1797 * 64 + 99)  # for one set of 8x8 digits
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda _: free)
    locate_datasets(digits_config(tmp_path))
    locate_datasets(digits_config(tmp_path, flip=True, reference={"flip": False}))  # one set
    with pytest.raises(ValueError, match="the shards need"):
        locate_datasets(digits_config(tmp_path, images=100, reference={"images": None}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, r"evaluation\.reference=.*: data\.split=valid has no images"),
        ({"size": 24}, r"evaluation\.reference=.*: data\.size=24: .* contains pixels of 16x16"),
        (
            {"split": "test"},
            r"data\.split=all and evaluation\.reference\.split=test: all of .* is used",
        ),
    ],
)
def test_missing_reference_images_are_rejected_by_option(tmp_path, squares, options, message):
    root = {"root": str(squares), "source": "celeba"} if options != {"split": "valid"} else {}
    with pytest.raises(ValueError, match=message) as error:
        locate_datasets(digits_config(tmp_path, reference=options, **root))
    assert "\n" not in str(error.value)


def test_images_are_not_downloaded_to_a_url(tmp_path):
    remote = DataConfig("mnist", root="http://me:hush@127.0.0.1:9/mnist", download=True)
    assert prepare.fetch(remote, tmp_path) is remote


def noise_folder(root: Path, classes: dict[str, int]) -> None:
    """Write random images, which no classifier can tell apart, in folders of classes."""
    rng = np.random.default_rng(0)
    for name, count in classes.items():
        (root / "images" / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(root / "images" / name / f"{number}.png")


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        ({"a": 100, "b": 100}, r"the classifier is right about \d+% of the real images only"),
        (
            {f"{i:02d}": 2 for i in range(90)},
            r"the classifier is right about \d% of the real images",
        ),
        ({"a": 195, "b": 1}, r"no modes, and samples are compared by their pixels: 1 classes in"),
        ({"a": 80, "b": 79}, r"compared by their pixels: 159 images are too few to train a class"),
        ({"a": 200}, None),
    ],
)
def test_no_modes_are_counted_where_the_classes_of_real_images_cannot_be_told(
    tmp_path, monkeypatch, ganray_log, classes, reason
):
    quick = functools.partial(reference_classifier, recipe=TrainingRecipe(min_images=640))
    monkeypatch.setattr(reference, "reference_classifier", quick)
    noise_folder(tmp_path, classes)
    config = tiny_config(tmp_path)
    root = str(tmp_path / "images")
    data = DataConfig(source="folder", root=root, size=16, labels="folder")
    config = replace(config, data=data, evaluation=EvaluationConfig())
    datasets = locate_datasets(config)
    datasets.prepare()
    classifier = datasets.prepare_classifier()
    with datasets.open_reference() as images:
        assert len(images.class_names) == len(classes)
        extractor = datasets.assets(classifier).reference_set(config, images).extractor(CPU)
        features = extractor.extract(torch.zeros(2, 16, 16, 3, dtype=torch.uint8))
    assert (tuple(extractor.mode_names), features.modes) == ((), None)
    if reason:
        assert re.search(reason, ganray_log.text)
    else:
        assert (classifier, ganray_log.text.count("no modes:")) == ("", 0)


def memorization_test(config) -> MemorizationTest | None:
    datasets = locate_datasets(config)
    datasets.prepare()
    file = datasets.assets("").held_out
    return MemorizationTest(file) if file else None


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"split": "train"}, (1_500, 297)),  # the test split
        ({"split": "train", "images": 100}, (100, 297)),
        ({"images": 1_000, "reference": {"images": None}}, (1_000, 797)),  # the rest
        ({"images": 1_750, "reference": {"images": None}}, None),  # too few are left
        ({"split": "all"}, None),
        ({"split": "train", "crop": 8}, None),
        ({"split": "train", "reference": {"size": 16}}, None),  # compared at another size
    ],
)
def test_memorization_is_measured_with_images_that_are_held_out(tmp_path, options, sizes):
    test = memorization_test(digits_config(tmp_path, **options))
    assert (test and (len(test.training), len(test.held_out))) == sizes


def test_copies_of_training_images_are_found_through_their_files(tmp_path):
    config = digits_config(tmp_path, split="train")
    test = memorization_test(config)
    assert test is not None
    with locate_datasets(config).open_training() as read_training:
        copies = read_training(np.arange(100, 300))
    neighbors = test(coarse_pixels(copies, CPU))
    assert neighbors.nearest.tolist() == list(range(100, 300))
    radius = test.control.radius()
    assert neighbors.memorized(radius).low > 0.5 > test.control.memorized(radius).high
    few = test(coarse_pixels(copies, CPU), max_pairs=3 * (len(test.training) + len(test.held_out)))
    assert few.nearest.tolist() == [100, 199, 299]  # evenly spaced
    datasets = locate_datasets(config)
    with datasets.open_reference() as images:
        reference_set = datasets.assets("").reference_set(config, images)
        evaluator = Evaluator(replace(config.evaluation, samples=200), reference_set, CPU)
        scores = evaluator(lambda rows: copies[rows], final=True)
    assert scores is not None
    assert 0.5 < scores["memorization_low"] < scores["memorization"] <= scores["memorization_high"]
