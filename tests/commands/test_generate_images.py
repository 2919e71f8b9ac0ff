"""jobs/explore.py --count: many images in folders that other tools and ganray itself read."""

import errno
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ganray.commands import generate_images, main
from ganray.commands.load_generator import TrainedGenerator
from ganray.config.commands import ExploreConfig
from ganray.config.schema import Config, LatentConfig, NetworkConfig
from ganray.data.sources.image_folder import ImageFolder
from ganray.gan import latents
from ganray.training.state import TrainState, save_content
from tests.conftest import tiny_config

CPU = torch.device("cpu")
LATENT = LatentConfig("normal", 3)


def gray_generator(classes: int = 0) -> TrainedGenerator:
    """Return a generator of 8x8 images, gray by the first coordinate and the class."""
    config = Config(name="gray", latent=LATENT, network=NetworkConfig(kind="mlp"))

    def generate(x):
        label = x[:, 3:].argmax(dim=1) if classes else 0
        level = (label + x[:, 0].sigmoid()) / 10
        return level[:, None, None, None].expand(-1, 1, 8, 8)

    return TrainedGenerator(generate, classes, config, "test", None, None)


def write(folder, count, generator=None, **options):
    """Write images and return the gray of each, in [0, 255]."""
    generator = generator or gray_generator()
    generate_images.generate_images(generator, ExploreConfig(**options), count, folder)
    paths = sorted(folder.glob("*/*.png"))
    assert [path.relative_to(folder).as_posix() for path in paths] == [
        f"{i // 1000:05d}/img{i:08d}.png" for i in range(count)
    ]
    return np.array([np.asarray(Image.open(path))[0, 0] for path in paths])


def test_images_follow_from_the_seed_and_a_larger_count_adds_to_the_first(tmp_path):
    images = write(tmp_path / "many", 2050)
    assert len(set(images.tolist())) > 10
    z = latents.sample(LATENT, 1000, rng_seed=0, stream="explore/images", step=2, device=CPU)
    expected = z[:50, 0].sigmoid().numpy() * 25.5
    assert images[2000:] == pytest.approx(expected, abs=0.51)
    assert (write(tmp_path / "few", 1001) == images[:1001]).all()
    assert (write(tmp_path / "other", 100, rng_seed=1) != images[:100]).any()
    assert (write(tmp_path / "mean", 10, psi=0) == 13).all()  # sigmoid(0) / 10


def test_classes_cycle_and_the_folder_is_a_source_with_labels(tmp_path):
    images = write(tmp_path / "cycled", 1010, gray_generator(3))
    assert (images // 25.5 == np.arange(1010) % 3).all()
    source = ImageFolder.open(tmp_path / "cycled")
    assert source.class_names == ("0", "1", "2")
    for index in range(0, 1010, 101):
        gray = np.asarray(source.read(index))[0, 0, 0]
        assert gray // 25.5 == source.labels[index]


def test_images_of_one_class(tmp_path):
    images = write(tmp_path / "twos", 20, gray_generator(3), label=2)
    assert (images // 25.5 == 2).all()
    pairs = json.loads((tmp_path / "twos" / "dataset.json").read_text())["labels"]
    assert pairs[0] == ["00000/img00000000.png", 2]
    assert {label for _, label in pairs} == {2}


def test_images_without_labels_are_a_source_without_classes(tmp_path):
    write(tmp_path / "images", 1001)
    assert not (tmp_path / "images" / "dataset.json").exists()
    assert ImageFolder.open(tmp_path / "images").class_names == ()


def test_a_full_disk_leaves_no_images(tmp_path, monkeypatch):
    def fail(image, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(generate_images, "_save", fail)
    with pytest.raises(ValueError, match=r"images: cannot be written \(No space left on device"):
        write(tmp_path / "images", 10)
    assert list(tmp_path.iterdir()) == []


def test_folders_of_others_are_left_alone(tmp_path):
    (tmp_path / "images.part").mkdir()
    (tmp_path / "images.part" / "notes.txt").write_text("mine")
    write(tmp_path / "images", 3)
    assert (tmp_path / "images.part" / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "images.part"]
    assert (tmp_path / "images").stat().st_mode == (tmp_path / "images.part").stat().st_mode


def test_the_job_writes_images_and_no_picture(trained_run, tmp_path, capsys):
    argv = ["tiny", "--home", str(trained_run.config.home), "--out", str(tmp_path / "out")]
    main.explore([*argv, "--count", "5"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["images"]
    assert Image.open(tmp_path / "out/images/00000/img00000004.png").size == (16, 16)
    out = capsys.readouterr().out
    assert "tiny -> PNG on" in out
    assert "100%  5.00/5.00 images" in out
    assert f"images      5 in {tmp_path}/out/images, not in MLflow" in out
    with pytest.raises(ValueError, match=r"images: exists; delete it, or .* --out"):
        main.explore([*argv, "--count", "5"])


def test_a_conditional_checkpoint(tmp_path, capsys):
    config = tiny_config(tmp_path)
    config = replace(config, network=replace(config.network, conditional=True))
    state = TrainState(config, (16, 16, 3), CPU, 2)
    save_content(state.content(), config, tmp_path / "two")
    main.explore([str(tmp_path / "two"), "--count", "3", "--out", str(tmp_path / "out")])
    pairs = json.loads((tmp_path / "out/images/dataset.json").read_text())["labels"]
    assert [label for _, label in pairs] == [0, 1, 0]
    assert f"images      3 and dataset.json in {tmp_path}/out/images" in capsys.readouterr().out
