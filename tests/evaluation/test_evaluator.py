"""Evaluation during training, and the report of a trained generator."""

import functools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from ganray.config.schema import DataConfig, EvaluationConfig
from ganray.config.serialization import to_dict
from ganray.data.prepare import open_dataset
from ganray.data.reader import ShardedDataset
from ganray.data.remote import RemoteShards
from ganray.data.writer import resize_and_crop, write_shards
from ganray.evaluation import reference
from ganray.evaluation.classifier import TrainingRecipe, reference_classifier
from ganray.evaluation.comparison import ImageStatistics
from ganray.evaluation.reference import MIN_HALVED_IMAGES, EvaluationAssets
from ganray.evaluation.report import differences
from ganray.evaluation.suite import MetricsReport, measure
from ganray.training import checkpoints, journal
from ganray.training.context import LocalContext
from ganray.training.launch import launch
from ganray.training.state import CONFIG_FILE, TrainState, read_state
from tests.conftest import Squares, load_job, tiny_config
from tests.evaluation.test_pretrained import random_inception, save

CPU = torch.device("cpu")


@pytest.fixture
def _quick_classifier(monkeypatch):
    """Train reference classifiers on few images."""
    quick = functools.partial(reference_classifier, recipe=TrainingRecipe(min_images=640))
    monkeypatch.setattr(reference, "reference_classifier", quick)


def evaluated_config(home: Path, max_share: float = 1.0):
    settings = EvaluationConfig(samples=90, max_share=max_share, report_samples=0)
    return replace(tiny_config(home), evaluation=settings)


def test_evaluation_writes_metrics_keeps_the_best_state_and_leaves_training_unchanged(
    squares, tmp_path
):
    config = evaluated_config(tmp_path / "on")
    weights = read_state(launch(config, str(squares)))
    plain = read_state(launch(tiny_config(tmp_path / "off"), str(squares)))
    assert all(torch.equal(weights["G"][name], plain["G"][name]) for name in plain["G"])
    folder = config.run_folder()
    events = [e for e, _ in journal.read(folder) if e["name"] == "collapse"]
    assert [event["images"] for event in events] == [120, 240]
    values = events[-1]["values"]
    assert {"collapse/recall", "collapse/coverage", "collapse/vendi_share"} < set(values)
    assert 0 < values["speed/evaluation_share"] < 1
    assert "coverage" in journal.collapse_line(events[-1])
    highest = max(event["values"]["collapse/coverage"] for event in events)
    assert checkpoints.best_coverage(folder) == highest
    if highest:
        score = json.loads((folder / checkpoints.BEST_FOLDER / "score.json").read_text())
        assert read_state(folder / checkpoints.BEST_FOLDER)["step"] * 12 == score["images_seen"]


def test_repeating_reference_images_do_not_stop_training(tmp_path):
    class Flat(Squares):
        def read(self, index: int) -> Image.Image:
            return Image.new("RGB", (16, 16), (40 * (index % 3), 90, 90))

    write_shards(Flat(), tmp_path / "flat", rows_per_shard=100, processes=1)
    config = evaluated_config(tmp_path)
    launch(config, str(tmp_path / "flat"))
    _, shares = journal.history(config.run_folder(), "collapse/recall")
    assert len(shares) == 2
    assert all(0 <= share <= 1 for share in shares)


def write_squares(folder: Path, count: int = 200, **options: int | None) -> str:
    write_shards(Squares(count), folder, processes=1, **options)  # pyright: ignore
    return str(folder)


def vendi_share(config, checkpoint: Path, reference_folder: str) -> float:
    """Return the Vendi share of a checkpoint's samples, resized to the reference images."""
    dataset = ShardedDataset(Path(reference_folder))
    state = TrainState(config, (16, 16, 3), CPU)
    state.load(checkpoint)
    samples = reference.resize_samples(state.generate("evaluation", 90), dataset.image_shape)
    images = reference.ReferenceSet(dataset, config.reference_data(), "", config.evaluation)
    extractor = images.extractor(CPU)
    pair = (
        ImageStatistics.of(extractor, extractor.extract(part))
        for part in (images.read(90), samples)
    )
    return measure(*pair, quick=True)["vendi_share"]


def test_reference_images_other_than_the_training_images(tmp_path):
    """More images or larger ones are compared with; training is the same."""
    few = write_squares(tmp_path / "few", images=24)
    config = evaluated_config(tmp_path / "own")
    weights = read_state(launch(config, few))["G"]
    images_seen, _ = journal.history(config.run_folder(), "collapse/vendi_share")
    assert not len(images_seen)  # 24 training images are too few
    for name, options in (("whole", {"images": None}), ("large", {"size": 24})):
        config = evaluated_config(tmp_path / name)
        config = replace(config, evaluation=replace(config.evaluation, reference=options))
        others = write_squares(tmp_path / name / "reference", size=options.get("size", 0))
        checkpoint = launch(config, few, EvaluationAssets(reference=others))
        trained = read_state(checkpoint)["G"]
        assert all(torch.equal(weights[key], trained[key]) for key in weights)
        _, shares = journal.history(config.run_folder(), "collapse/vendi_share")
        assert len(shares) == 2
        assert shares[1] == pytest.approx(vendi_share(config, checkpoint, others))


def test_samples_are_resized_as_shards_are():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 31, 21, 3), np.uint8))
    for size in (8, 21, 40):
        resized = reference.resize_samples(images, (size, size, 3))
        expected = [resize_and_crop(Image.fromarray(image.numpy()), size) for image in images]
        distance = resized.numpy().astype(int) - np.stack([np.asarray(e) for e in expected])
        assert np.abs(distance).max() <= 1
        assert resized.is_contiguous()
    assert reference.resize_samples(images, (31, 21, 3)) is images


@pytest.mark.parametrize(
    ("samples", "references", "message"),
    [
        (
            (16, 16, 1),
            (16, 16, 3),
            "samples of 16x16x1 with references of 16x16x3: the channels differ",
        ),
        ((16, 16, 3), (31, 21, 3), "crop the references to squares with"),
    ],
)
def test_incompatible_reference_images_are_rejected(samples, references, message):
    with pytest.raises(ValueError, match=message) as error:
        reference.check_comparable(samples, references)
    assert "\n" not in str(error.value)
    reference.check_comparable(references, (16, 16, references[2]))
    reference.check_comparable(references, references)


def test_inception_features_are_combined_with_the_modes_of_the_classifier(
    squares, tmp_path, monkeypatch
):
    weights = save(random_inception(monkeypatch).state_dict(), tmp_path / "inception.pth")
    settings = EvaluationConfig(features="inception", weights=str(weights))
    opened = open_dataset(DataConfig(size=16), str(squares))
    extractor = reference.ReferenceSet(opened, DataConfig(size=16), "", settings).extractor(CPU)
    features = extractor.extract(torch.zeros(2, 16, 16, 3, dtype=torch.uint8))
    assert features.features.shape == (2, 2048)
    assert extractor.hash.endswith("+pixels-16")
    opened.close()


def test_missing_inception_weights_are_rejected_before_training(squares, tmp_path):
    with pytest.raises(ValueError, match=r"features=inception needs a file"):
        EvaluationConfig(features="inception")
    config = evaluated_config(tmp_path)
    settings = replace(config.evaluation, features="inception", weights=str(tmp_path / "none"))
    opened = open_dataset(config.data, str(squares))
    with pytest.raises(ValueError, match="weights-inception"):
        reference.prepare_classifier(replace(config, evaluation=settings), opened, "", CPU)
    opened.close()


@pytest.mark.usefixtures("_quick_classifier")
def test_images_are_not_read_if_the_classifier_is_cached(tmp_path, monkeypatch):
    config = evaluated_config(tmp_path)
    write_shards(Squares(MIN_HALVED_IMAGES), tmp_path / "set", processes=1)
    opened = open_dataset(config.data, str(tmp_path / "set"))
    trained = reference.prepare_classifier(config, opened, "squares", CPU)
    assert trained
    monkeypatch.setattr(reference, "read", None)
    assert reference.prepare_classifier(config, opened, "squares", CPU) == trained
    with pytest.raises(TypeError, match="not callable"):
        reference.prepare_classifier(config, opened, "other squares", CPU)
    opened.close()


def test_evaluations_that_exceed_the_share_of_time_are_skipped_except_the_last(squares, tmp_path):
    config = evaluated_config(tmp_path, max_share=1e-9)
    launch(config, str(squares))
    images, _ = journal.history(config.run_folder(), "collapse/recall")
    assert images.tolist() == [240]


def test_only_a_better_state_replaces_the_best(tmp_path):
    config = tiny_config(tmp_path)
    state, context = TrainState(config, (16, 16, 3), CPU), LocalContext(config, CPU)
    writer = checkpoints.CheckpointWriter(state, context)
    for coverage, kept in ((0.2, 0.2), (0.1, 0.2), (0.3, 0.3), (0.0, 0.3)):
        writer.save(latest=False, coverage=coverage)
        writer.wait()
        assert checkpoints.best_coverage(config.run_folder()) == kept
    writer.close()
    assert [path.name for path in config.run_folder().iterdir()] == ["best_coverage"]


@pytest.mark.usefixtures("_quick_classifier")
def test_job_reports_on_a_run_and_compares_two(trained_run, tmp_path, capsys):
    shards, out = write_squares(tmp_path / "squares", 400, rows_per_shard=128), tmp_path / "report"
    argv = [str(trained_run.checkpoint), "--data_root", shards, "--out", str(out)]
    argv += ["--samples", "200", "--resamples", "20"]  # half of the 400 train the classifier
    job = load_job("evaluate")
    job.main(argv)
    printed = capsys.readouterr().out
    assert re.search(r"^recall .* higher  real images among samples$", printed, re.M)
    assert re.search(r"^and \d+ more: in report.json, or by jobs/evaluate.py", printed, re.M)
    assert "diagnosis" in printed
    job.main([*argv, "--report", "full"])
    full = capsys.readouterr().out
    assert re.search(r"^effective_rank ", full, re.M)
    assert " more: in report.json" not in full
    content = json.loads((out / "report.json").read_text())
    assert content["mode_names"] == ["small", "large"]
    assert content["samples"] == 100
    assert content["results"]["coverage"]["ideal"] == pytest.approx(0.969, abs=0.01)
    assert (out / "report.png").stat().st_size > 10_000
    _, saturation = journal.history(trained_run.config.run_folder(), "discriminator/saturation")
    value = content["results"]["D_saturation"]["estimate"]["value"]
    assert value == pytest.approx(saturation[-1])
    # The same weights, but this run used Inception, whose weights are not on this machine.
    other = tmp_path / "runs" / "tiny" / "best_coverage"
    shutil.copytree(trained_run.checkpoint, other)
    inception = EvaluationConfig(features="inception", weights=str(tmp_path / "none"))
    config = to_dict(replace(trained_run.config, evaluation=inception))
    (other / CONFIG_FILE).write_text(json.dumps(config))
    for file in trained_run.config.home.glob("mlflow.db*"):
        shutil.copy(file, tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    job.main([*argv, "--against", str(other), "--tracking_uri", uri, "--register", "squares"])
    printed = capsys.readouterr().out
    version = MlflowClient(tracking_uri=uri).get_model_version_by_alias("squares", "best")
    assert version.source == trained_run.model_uri
    coverage = content["results"]["coverage"]["estimate"]["value"]
    assert version.tags["ganray.coverage"] == str(coverage)
    assert re.search(r"^registry    models:/squares/1 has coverage .* and is @best$", printed, re.M)
    assert "tiny minus tiny/best_coverage, with 95 % intervals" in printed
    assert "differ" not in printed.split("with 95 % intervals")[1]  # it is the same run twice
    folders = (out / "tiny", out / "tiny" / "best_coverage")
    first, second = (json.loads((folder / "report.json").read_text()) for folder in folders)
    assert first["extractor"] == second["extractor"]
    assert first["source"] == f"checkpoint {trained_run.checkpoint}"
    assert second["source"] == f"checkpoint {other}"


@pytest.mark.usefixtures("_quick_classifier")
def test_generators_of_two_sizes_are_compared_at_the_size_of_the_first(
    trained_run, tmp_path, capsys
):
    large, small = (write_squares(tmp_path / str(size), 400, size=size) for size in (0, 8))
    config = tiny_config(tmp_path, name="small")
    network = replace(config.network, kind="mlp")  # a DCGAN cannot be as small
    mlp = launch(replace(config, data=DataConfig(size=0), network=network), small)
    argv = ["--samples", "80", "--resamples", "20", "--out", str(tmp_path / "report")]
    job = load_job("evaluate")
    for first, second, root, message in (
        (mlp, trained_run.checkpoint, small, "samples of 16x16 are resized to 8x8"),
        (trained_run.checkpoint, mlp, large, "samples of 8x8 are resized to 16x16"),
    ):
        job.main([str(first), "--against", str(second), "--data_root", root, *argv])
        printed = capsys.readouterr().out
        assert printed.count(message) == 1
        assert "with 95 % intervals" in printed


def test_reports_of_different_extractors_are_not_subtracted():
    report = MetricsReport({}, 100, "a", (), [], [])
    assert differences(report, report) == {}
    with pytest.raises(ValueError, match="extractors a and b on"):
        differences(report, replace(report, extractor="b"))


def reference_set(images, classifier=""):
    return reference.ReferenceSet(images, DataConfig(), classifier, EvaluationConfig())


def test_usable_count_excludes_training_images_of_the_classifier():
    for count, parts, expected in ((100, 1, 90), (79, 1, 0), (100, 2, 0), (200, 2, 90)):
        assert reference_set(Squares(count)).usable_count(90, parts) == expected
    assert reference_set(Squares(170), "file").usable_count(90) == 85
    assert reference_set(Squares(30_000), "file").usable_count(90_000) == 10_000
    assert reference_set(Squares(160_000), "file").usable_count(90_000, 2) == 50_000


def test_no_reference_image_of_a_large_set_trains_the_classifier(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "_HELD_OUT", 100)
    monkeypatch.setattr(reference, "_MAX_TRAINING_IMAGES", 50)
    monkeypatch.setattr(reference, "read", lambda data, images, ids: ids)
    trained = []

    def train(images, *_, **__):
        trained.extend(images.read())
        return SimpleNamespace(hash="classifier")

    monkeypatch.setattr(reference, "reference_classifier", train)
    write_shards(Squares(300), tmp_path, processes=1)
    images = ShardedDataset(tmp_path)
    config = evaluated_config(tmp_path)
    file = reference.prepare_classifier(config, images, "digest", CPU)
    reference_images = reference_set(images, file)
    count = reference_images.usable_count(300, parts=2)
    both = np.concatenate([reference_images.read(count, part) for part in (0, 1)])
    assert (count, len(trained)) == (125, 50)
    assert sorted([*both, *trained]) == list(range(300))


def test_reference_images_come_from_all_shards_even_if_the_cache_holds_few(tmp_path):
    write_shards(Squares(300), tmp_path / "far", rows_per_shard=64, processes=1)
    local = ShardedDataset(tmp_path / "far")
    size = max(shard.bytes for shard in local.manifest.shards)
    url = f"file://{tmp_path / 'far'}"
    with RemoteShards(url, tmp_path / "cache", limit_bytes=2 * size) as shards:
        images = reference_set(ShardedDataset(shards)).read(200)
    assert torch.equal(images, reference_set(local).read(200))
    ids = np.random.default_rng(0).permutation(300)[:200]  # the same for every version of ganray
    expected = torch.empty((200, 16, 16, 3), dtype=torch.uint8)
    local.read_batch(ids, expected)
    assert torch.equal(images, expected)
