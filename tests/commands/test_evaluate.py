"""Evaluation of images that no run of ganray has made."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ganray.commands import evaluate as evaluate_command
from ganray.commands import main
from ganray.data.writer import write_shards
from ganray.errors import UserError
from ganray.evaluation import reference
from ganray.evaluation.classifier import TrainingRecipe, reference_classifier
from tests.conftest import Squares

QUICK = ["--resamples", "20"]


@pytest.fixture(autouse=True)
def _quick_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = functools.partial(reference_classifier, recipe=TrainingRecipe(min_images=2_000))
    monkeypatch.setattr(reference, "reference_classifier", quick)


def squares(count: int, first: int = 0) -> np.ndarray:
    """Return uint8 (count, 16, 16, 3): small and large squares in turn."""
    source = Squares(first + count)
    return np.stack([np.asarray(source.read(i)) for i in range(first, first + count)])


def write_folder(folder: Path, images: np.ndarray, classes: tuple[str, ...] = ("",)) -> Path:
    for number, pixels in enumerate(images):
        path = folder / classes[number % len(classes)] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 400 images with a folder for each of two classes. Read-only."""
    return write_folder(tmp_path_factory.mktemp("real"), squares(400), ("small", "large"))


def evaluate(*argv: object) -> None:
    main.evaluate([*map(str, argv), *QUICK])


def read_report(folder: Path) -> dict:
    content = json.loads((folder / "report.json").read_text())
    assert (folder / "report.png").stat().st_size > 10_000
    assert "D_saturation" not in content["results"]
    return content


def value(content: dict, name: str) -> float:
    return content["results"][name]["estimate"]["value"]


def test_a_folder_and_an_array_of_the_same_images_give_the_same_numbers(
    real: Path, home: Path, tmp_path: Path, capsys
):
    samples = squares(200, first=200)[::2]  # small squares only
    np.savez(tmp_path / "half.npz", samples)
    evaluate("--images", tmp_path / "half.npz", "--against", real, "--samples", 80)
    printed = capsys.readouterr().out
    for text in ("against     400 images of the folder", "images      100 images of numpy in"):
        assert text in printed
    for text in ("diagnosis", "coverage", "modes_held"):
        assert text in printed
    array = read_report(home / "evaluation" / "half")
    assert array["source"] == str(tmp_path / "half.npz")
    assert array["mode_names"] == ["large", "small"]
    assert value(array, "modes_held") == 1
    assert value(array, "coverage") < array["results"]["coverage"]["reference"]
    assert sorted(path.name for path in home.iterdir()) == ["classifiers", "evaluation", "shards"]
    assert len(list((home / "shards").iterdir())) == 1  # the samples' are deleted
    # All samples are compared, in another order.
    folder = write_folder(tmp_path / "half", samples[:80])
    np.save(tmp_path / "half.npy", samples[:80])
    reports = []
    for path in (folder, tmp_path / "half.npy"):
        evaluate("--images", path, "--against", real, "--out", tmp_path / "out")
        reports.append(read_report(tmp_path / "out"))
    for name in ("coverage", "recall", "precision", "frechet", "modes_held"):
        assert value(reports[0], name) == pytest.approx(value(reports[1], name), rel=1e-4), name


def test_real_images_score_as_other_real_images(real: Path, home: Path, tmp_path: Path):
    write_shards(Squares(700), tmp_path / "shards", processes=1)
    folder = write_folder(tmp_path / "others", squares(300, first=400))
    evaluate("--images", folder, "--against", tmp_path / "shards", "--out", tmp_path)
    content = read_report(tmp_path)
    assert content["samples"] == 175
    assert content["diagnosis"]["kinds"] == []
    for name in ("coverage", "recall", "precision"):
        assert value(content, name) > 0.8


def test_samples_of_other_sizes_are_resized(real: Path, home: Path, tmp_path: Path, capsys):
    large = squares(100).repeat(2, axis=1).repeat(2, axis=2)
    np.save(tmp_path / "large.npy", large)
    evaluate("--images", tmp_path / "large.npy", "--against", real)
    assert "samples of 32x32 are resized to 16x16" in capsys.readouterr().out
    mixed = write_folder(tmp_path / "mixed", large[:50])
    write_folder(tmp_path / "mixed" / "others", squares(50))
    with pytest.raises(UserError, match=r"--images: 100 images .* of several sizes; .* --size 64"):
        evaluate("--images", mixed, "--against", real)
    evaluate("--images", mixed, "--against", real, "--size", 8)
    assert "resized" not in capsys.readouterr().out


def test_references_without_classes_are_compared_by_pixels(home: Path, tmp_path: Path, capsys):
    np.save(tmp_path / "real.npy", squares(170))
    np.save(tmp_path / "samples.npy", squares(90))
    evaluate("--images", tmp_path / "samples.npy", "--against", tmp_path / "real.npy")
    assert "no modes are counted" in capsys.readouterr().out
    content = read_report(home / "evaluation" / "samples")
    assert (content["samples"], content["mode_names"]) == (85, [])


def test_images_that_cannot_be_compared_are_rejected(real: Path, home: Path, tmp_path: Path):
    np.save(tmp_path / "few.npy", squares(79))
    np.save(tmp_path / "gray.npy", squares(100)[..., :1])
    np.save(tmp_path / "wide.npy", squares(100)[:, :12])
    np.save(tmp_path / "good.npy", squares(100))
    few = write_folder(tmp_path / "few", squares(200), ("small", "large"))
    for images, against, match in (
        ("nowhere", real, r"^--images: .*nowhere: no such folder"),
        ("nowhere.npz", real, r"^--images: .*nowhere.npz: no such file"),
        ("good.npy", tmp_path / "nowhere", r"^--against: .*nowhere: no such folder"),
        ("few.npy", real, "--images: 79 images of numpy in .* are too few; use at least 80"),
        ("gray.npy", real, "samples of 16x16x1 with references of 16x16x3: the channels differ"),
        ("good.npy", tmp_path / "wide.npy", "crop the references to squares with --size 64"),
        (
            "good.npy",
            tmp_path / "good.npy",
            "100 reference images are too few; use at least 160, as half",
        ),
        ("good.npy", few, "200 reference images are too few; use at least 320, as the classifier"),
    ):
        with pytest.raises(UserError, match=match) as error:
            evaluate("--images", tmp_path / images, "--against", against)
        assert "\n" not in str(error.value)
    assert list(home.iterdir()) == []  # nothing was converted


def test_the_name_of_samples_has_no_password_and_no_parent_folder(tmp_path, monkeypatch):
    (tmp_path / "x" / "y").mkdir(parents=True)
    (tmp_path / "x" / "half.npz").touch()
    monkeypatch.chdir(tmp_path / "x" / "y")
    for path, name in {
        "..": "x",
        ".": "y",
        "/": "samples",
        "../half.npz": "half",
        "http://user:secret@host:1": "host:1",
        "http://user:secret@host:1/": "host:1",
        "http://user:sec/ret@host:1?key=secret": "host:1",
        "http://user:secret@": "samples",
        "http://user:secret@host/a/..": "samples",
        "s3://bucket/set?key=secret": "set",
    }.items():
        assert evaluate_command._name_of(path) == name, path


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["faces", "--images", "x", "--against", "y"], "--images=x takes the place of RUN=faces"),
        (["--images", "x"], "--images=x needs the real images to compare with: --against FOLDER"),
        (["faces", "--size", "64"], "--size=64 is an option of --images"),
        (["faces", "--features", "inception", "--weights", "w"], "--features=inception is an"),
        (["faces", "--features", "inception"], "--features=inception is an option of --images"),
        (["--against", "x"], "--against=x needs what to compare with it: RUN, or --images FOLDER"),
        (["--images", "x", "--against", "y", "--features", "inception"], "give --weights FILE"),
        (["--images", "x", "--against", "y", "--features", "clip"], "=clip needs .*--weights FILE"),
        (["--images", "x", "--against", "y", "--data_root", "z"], "--data_root=z is .* of RUN"),
        (["--register", "x"], "--register=x needs RUN"),
        (["faces", "--register", "a/b"], "--register=a/b must consist of letters"),
        (["--images", "x", "--against", "y", "--register", "z"], "--register=z is .* of RUN"),
        (["--images", "x", "--against", "y", "--size", "4"], "--size=4 must be 0 or at least 8"),
    ],
)
def test_options_that_do_not_fit_are_rejected(options: list[str], match: str):
    with pytest.raises(UserError, match=match):
        evaluate(*options)
