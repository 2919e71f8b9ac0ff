"""Evaluation as training goes on: it changes nothing that is learned, and keeps the best."""

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ganray.config.schema import DataConfig, EvaluationConfig
from ganray.config.serialization import to_dict
from ganray.data.prepare import open_dataset
from ganray.data.reader import ShardedDataset
from ganray.data.remote import RemoteShards
from ganray.data.writer import resize_and_crop, write_shards
from ganray.distributed import all_gather_rows
from ganray.evaluation import reference
from ganray.evaluation.classifier import TrainingRecipe, reference_classifier
from ganray.evaluation.reference import EvaluationAssets
from ganray.evaluation.report import differences
from ganray.evaluation.suite import MetricsReport, ReferenceStatistics, measure
from ganray.training import best, journal
from ganray.training.launch import launch
from ganray.training.state import CONFIG_FILE, TrainState, read_state
from tests.conftest import Squares, load_job, tiny_config
from tests.evaluation.test_pretrained import random_inception, save

CPU = torch.device("cpu")


def evaluated(home: Path, max_share: float = 1.0, **train: object):
    settings = EvaluationConfig(samples=90, max_share=max_share, report_samples=0)
    return replace(tiny_config(home, **train), evaluation=settings)


def test_it_writes_its_series_keeps_the_best_and_changes_nothing(squares, tmp_path):
    config = evaluated(tmp_path / "on")
    weights = read_state(launch(config, str(squares)))
    plain = read_state(launch(tiny_config(tmp_path / "off"), str(squares)))
    assert all(torch.equal(weights["G"][name], plain["G"][name]) for name in plain["G"])
    folder = config.run_folder()
    events = [e for e, _ in journal.read(folder) if e["name"] == "collapse"]
    assert [event["images"] for event in events] == [120, 240]
    values = events[-1]["values"]
    assert {"collapse/recall", "collapse/coverage", "collapse/vendi_share"} < set(values)
    assert 0 < values["time/evaluation_share"] < 1
    assert "coverage" in journal.collapse_line(events[-1])
    highest = max(event["values"]["collapse/coverage"] for event in events)
    assert best.best_coverage(folder) == highest
    if highest:
        score = json.loads((folder / best.BEST_FOLDER / "score.json").read_text())
        assert read_state(folder / best.BEST_FOLDER)["step"] * 12 == score["images_seen"]


def test_repeating_reference_images_do_not_stop_training(tmp_path):
    class Flat(Squares):
        def read(self, index: int) -> Image.Image:
            return Image.new("RGB", (16, 16), (40 * (index % 3), 90, 90))

    write_shards(Flat(), tmp_path / "flat", rows_per_shard=100, processes=1)
    config = evaluated(tmp_path)
    launch(config, str(tmp_path / "flat"))
    _, shares = journal.history(config.run_folder(), "collapse/recall")
    assert len(shares) == 2
    assert all(0 <= share <= 1 for share in shares)


def shards_of(folder: Path, count: int = 200, **how: int) -> str:
    write_shards(Squares(count), folder, processes=1, **how)
    return str(folder)


def found_by_hand(config, checkpoint: Path, reals: str) -> float:
    """The Vendi share of a checkpoint's samples, resized if need be, beside these reals."""
    opened = ShardedDataset(Path(reals))
    state = TrainState(config, (16, 16, 3), CPU)
    state.load(checkpoint)
    samples = reference.resize_samples(state.generate("evaluation", 90), opened.image_shape)
    beside = reference.ReferenceSet(opened, config.reference_data(), "", config.evaluation)
    eyes = beside.extractor(CPU)
    stats = ReferenceStatistics.of(eyes, beside.read(90))
    return measure(stats, eyes.extract(samples), quick=True)["vendi_share"]


def test_samples_are_compared_with_other_images_than_those_that_are_learned(tmp_path):
    """Those of a part with the whole set, small ones with large: the same training throughout."""
    few = shards_of(tmp_path / "few", images=24)
    own = evaluated(tmp_path / "own")
    plain = read_state(launch(own, few))["G"]
    past, _ = journal.history(own.run_folder(), "collapse/vendi_share")
    assert not len(past)  # these are too few to be compared with
    for name, reals in (("whole", {"images": None}), ("large", {"size": 24})):
        config = evaluated(tmp_path / name)
        config = replace(config, evaluation=replace(config.evaluation, reference=reals))
        size = reals.get("size", 0)
        others = shards_of(tmp_path / name / "reals", size=size)
        checkpoint = launch(config, few, EvaluationAssets(reference=others))
        weights = read_state(checkpoint)["G"]
        assert all(torch.equal(weights[key], plain[key]) for key in plain)
        _, shares = journal.history(config.run_folder(), "collapse/vendi_share")
        assert len(shares) == 2
        assert shares[1] == pytest.approx(found_by_hand(config, checkpoint, others))


def test_samples_are_resized_as_shards_are():
    pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 31, 21, 3), np.uint8))
    for size in (8, 21, 40):
        resized = reference.resize_samples(pictures, (size, size, 3))
        expected = [resize_and_crop(Image.fromarray(one.numpy()), size) for one in pictures]
        distance = resized.numpy().astype(int) - np.stack([np.asarray(e) for e in expected])
        assert np.abs(distance).max() <= 1
        assert resized.is_contiguous()
    assert reference.resize_samples(pictures, (31, 21, 3)) is pictures


@pytest.mark.parametrize(
    ("made", "reals", "message"),
    [
        (
            (16, 16, 1),
            (16, 16, 3),
            "samples of 16x16x1 with references of 16x16x3: the channels differ",
        ),
        ((16, 16, 3), (31, 21, 3), "crop the references to squares with"),
    ],
)
def test_incompatible_reference_images_are_rejected(made, reals, message):
    with pytest.raises(ValueError, match=message) as error:
        reference.check_comparable(made, reals)
    assert "\n" not in str(error.value)
    reference.check_comparable(reals, (16, 16, reals[2]))
    reference.check_comparable(reals, reals)


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


def test_other_weights_are_asked_for_and_refused_before_a_worker_is_held(squares, tmp_path):
    with pytest.raises(ValueError, match=r"features=inception needs a file"):
        EvaluationConfig(features="inception")
    config = evaluated(tmp_path)
    settings = replace(config.evaluation, features="inception", weights=str(tmp_path / "none"))
    opened = open_dataset(config.data, str(squares))
    with pytest.raises(ValueError, match="weights-inception"):
        reference.prepare_classifier(replace(config, evaluation=settings), opened, "", CPU)
    opened.close()


def test_no_image_is_read_where_the_classifier_is_found(squares, tmp_path, monkeypatch):
    quick = functools.partial(reference_classifier, recipe=TrainingRecipe(min_images=640))
    monkeypatch.setattr(reference, "reference_classifier", quick)
    config = evaluated(tmp_path)
    opened = open_dataset(config.data, str(squares))
    trained = reference.prepare_classifier(config, opened, "squares", CPU)
    monkeypatch.setattr(reference, "read", None)
    assert reference.prepare_classifier(config, opened, "squares", CPU) == trained
    with pytest.raises(TypeError, match="not callable"):
        reference.prepare_classifier(config, opened, "other squares", CPU)
    opened.close()


def test_one_that_would_take_too_long_is_left_out_but_never_the_last(squares, tmp_path):
    config = evaluated(tmp_path, max_share=1e-9)
    launch(config, str(squares))
    images, _ = journal.history(config.run_folder(), "collapse/recall")
    assert images.tolist() == [240]


def test_only_a_better_state_takes_the_place_of_the_best(squares, tmp_path):
    class State:
        images_seen = 12

        def save(self, folder: Path) -> None:
            folder.mkdir()

    for coverage, kept in ((0.2, 0.2), (0.1, 0.2), (0.3, 0.3), (0.0, 0.3)):
        best.keep_best(State(), tmp_path, coverage)  # pyright: ignore
        assert best.best_coverage(tmp_path) == kept


def test_rows_of_a_world_of_one():
    rows = torch.arange(6).reshape(3, 2)
    assert all_gather_rows(rows, [3]) is rows


def test_the_job_reports_on_a_run_and_compares_two(known, tmp_path, monkeypatch, capsys):
    quick = functools.partial(reference_classifier, recipe=TrainingRecipe(min_images=640))
    monkeypatch.setattr(reference, "reference_classifier", quick)
    shards = tmp_path / "squares"
    write_shards(Squares(400), shards, rows_per_shard=128, processes=1)
    argv = [str(known.checkpoint), "--data-root", str(shards), "--out", str(tmp_path / "report")]
    argv += ["--samples", "200", "--resamples", "20"]  # of 400, half are learned
    job = load_job("evaluate")
    job.main(argv)
    out = capsys.readouterr().out
    assert "recall +" in out
    assert "diagnosis" in out
    held = json.loads((tmp_path / "report" / "report.json").read_text())
    assert held["mode_names"] == ["small", "large"]
    assert held["samples"] == 100
    assert held["results"]["coverage"]["ideal"] == pytest.approx(0.969, abs=0.01)
    assert (tmp_path / "report" / "report.png").stat().st_size > 10_000
    _, saturation = journal.history(known.config.run_folder(), "D/saturation")
    assert held["results"]["D_saturation"]["estimate"]["value"] == pytest.approx(saturation[-1])
    # The same weights, but their run was looked at through a network whose file is not here.
    other = tmp_path / "runs" / "tiny" / "best_coverage"
    shutil.copytree(known.checkpoint, other)
    by_inception = EvaluationConfig(features="inception", weights=str(tmp_path / "none"))
    config = to_dict(replace(known.config, evaluation=by_inception))
    (other / CONFIG_FILE).write_text(json.dumps(config))
    job.main([*argv, "--against", str(other)])
    out = capsys.readouterr().out
    assert "tiny minus tiny/best_coverage, with 95 % intervals" in out
    assert "differ" not in out.split("with 95 % intervals")[1]  # it is the same run twice
    places = (tmp_path / "report" / "tiny", tmp_path / "report" / "tiny" / "best_coverage")
    one, two = (json.loads((place / "report.json").read_text()) for place in places)
    assert one["extractor"] == two["extractor"]
    assert (one["source"], two["source"]) == (
        f"checkpoint {known.checkpoint}",
        f"checkpoint {other}",
    )


def test_generators_of_two_sizes_are_compared_in_that_of_the_first(
    known, tmp_path, monkeypatch, capsys
):
    quick = functools.partial(reference_classifier, recipe=TrainingRecipe(min_images=640))
    monkeypatch.setattr(reference, "reference_classifier", quick)
    large, small = shards_of(tmp_path / "large", 400), shards_of(tmp_path / "small", 400, size=8)
    plain = tiny_config(tmp_path, name="small")
    network = replace(plain.network, kind="mlp")  # no DCGAN is as small
    mlp = launch(replace(plain, data=DataConfig(size=0), network=network), small)
    argv = ["--samples", "80", "--resamples", "20", "--out", str(tmp_path / "report")]
    job = load_job("evaluate")
    for first, other, root, resized in (
        (mlp, known.checkpoint, small, "samples of 16x16 are resized to 8x8"),
        (known.checkpoint, mlp, large, "samples of 8x8 are resized to 16x16"),
    ):
        job.main([str(first), "--against", str(other), "--data-root", root, *argv])
        out = capsys.readouterr().out
        assert out.count(resized) == 1
        assert "with 95 % intervals" in out


def test_reports_by_different_networks_are_not_subtracted():
    report = MetricsReport({}, 100, "a", (), [], [])
    assert differences(report, report) == {}
    with pytest.raises(ValueError, match=r"extractors a and b cannot .*--against") as error:
        differences(report, replace(report, extractor="b"))
    assert "\n" not in str(error.value)


def beside_squares(count, classifier=""):
    return reference.ReferenceSet(Squares(count), DataConfig(), classifier, EvaluationConfig())  # pyright: ignore


def test_too_few_reals_are_not_compared_with():
    for count, parts, expected in ((100, 1, 90), (79, 1, 0), (100, 2, 0), (200, 2, 90)):
        assert beside_squares(count).usable_count(90, parts) == expected
    # What the classifier has learned is not compared with.
    assert beside_squares(170, "file").usable_count(90) == 85
    assert beside_squares(30_000, "file").usable_count(90_000) == 10_000


def test_reals_come_from_all_of_a_set_that_its_cache_cannot_hold(tmp_path):
    write_shards(Squares(300), tmp_path / "far", rows_per_shard=64, processes=1)
    near = ShardedDataset(tmp_path / "far")
    size = max(shard.bytes for shard in near.manifest.shards)
    url = f"file://{tmp_path / 'far'}"

    def beside(images):
        return reference.ReferenceSet(images, DataConfig(size=16), "", EvaluationConfig())

    with RemoteShards(url, tmp_path / "cache", limit_bytes=2 * size) as shards:
        images = beside(ShardedDataset(shards)).read(200)
    assert torch.equal(images, beside(near).read(200))
    ids = np.random.default_rng(0).permutation(300)[:200]  # as they always were
    out = torch.empty((200, 16, 16, 3), dtype=torch.uint8)
    near.read_batch(ids, out)
    assert torch.equal(images, out)
