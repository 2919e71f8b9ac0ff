"""jobs/explore.py --project: the image, its picture and its latent."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ganray.commands import main, project_image
from ganray.commands.load_generator import load_generator
from ganray.gan import latents, projection
from ganray.training.state import TrainState, save_content
from tests.conftest import tiny_config

CPU = torch.device("cpu")


def test_a_sample_is_projected_to_its_latent(trained_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(projection, "STEPS", 40)
    config = trained_run.config
    generator = load_generator("tiny", config.home)
    z = latents.sample(config.latent, 1, rng_seed=5, stream="x", step=0, device=CPU)
    Image.fromarray(generator.images(z)[0]).save(tmp_path / "sample.png")
    argv = ["tiny", "--home", str(config.home), "--out", str(tmp_path / "out")]
    main.explore([*argv, "--project", str(tmp_path / "sample.png"), "--pairs", "2", "--steps", "4"])
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["projection.npy", "projection.png"]
    found = torch.from_numpy(np.load(tmp_path / "out" / "projection.npy"))
    assert found.shape == (8,)
    assert found.dtype == torch.float32
    out = capsys.readouterr().out
    assert "sample.png -> z on" in out
    (line,) = [line for line in out.splitlines() if line.startswith("projection")]
    distance, nearest = float(line.split()[2]), float(line.split()[-1])
    assert distance < 0.5 * nearest
    difference = generator.images(found[None]).astype(float) - generator.images(z)
    assert abs(difference).mean() < nearest
    assert f"files       {tmp_path}/out: projection.png, projection.npy" in out
    assert f"artifacts   explore/ of MLflow run {trained_run.run_id}" in out


def test_the_picture_shows_the_image_its_projection_and_walks(trained_run, tmp_path, monkeypatch):
    drawn = []

    def labeled_rows(groups, title):
        drawn.append((groups, title))
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(project_image, "labeled_rows", labeled_rows)
    monkeypatch.setattr(projection, "STEPS", 3)
    Image.new("RGB", (40, 20), (200, 0, 0)).save(tmp_path / "red.png")
    argv = ["tiny", "--home", str(trained_run.config.home), "--out", str(tmp_path / "out")]
    main.explore([*argv, "--project", str(tmp_path / "red.png"), "--pairs", "2", "--steps", "4"])
    (((row,), walks), title) = drawn[0]
    assert "tiny: projection of red.png" in title
    assert "the nearest of 24 random samples" in title
    assert row.images.shape == (3, 16, 16, 3)
    assert (row.images[0] == [200, 0, 0]).all()
    label, found, nearest = row.notes
    assert label == "image"
    assert float(found.removeprefix("G(z)  ")) <= float(nearest.removeprefix("random  ")) + 1
    assert [walk.caption for walk in walks] == ["to random\nlatent 1", "to random\nlatent 2"]
    for walk in walks:
        assert (walk.images[0] == row.images[1]).all()
        assert walk.notes[0] == found.removeprefix("G(z)  ")
        assert len(walk.images) == len(walk.notes) == 4


@pytest.mark.parametrize(
    ("size", "shape", "mode"),
    [
        ((50, 30), (16, 16, 3), "RGB"),
        ((30, 50), (16, 16, 1), "RGBA"),
        ((178, 218), (28, 22, 3), "L"),
    ],
)
def test_images_of_any_size_and_mode_are_fitted(tmp_path, size, shape, mode):
    Image.new(mode, size).save(tmp_path / "x.png")
    image = project_image._read(tmp_path / "x.png", shape, "white")
    assert image.shape == shape
    assert (image == (255 if mode == "RGBA" else 0)).all()  # transparent, or black


def test_an_image_that_cannot_be_read(trained_run, tmp_path):
    argv = ["tiny", "--home", str(trained_run.config.home), "--out", str(tmp_path / "out")]
    (tmp_path / "bad.png").write_text("no image")
    Image.new("RGB", (8, 8)).save(tmp_path / "eps.png", "EPS")  # Pillow runs Ghostscript on these
    unknown = "its content is of no known format"
    for name, reason in {"bad": unknown, "eps": unknown, "no": "No such file"}.items():
        with pytest.raises(ValueError, match=rf"--project=.*png: cannot be read .*{reason}"):
            main.explore([*argv, "--project", str(tmp_path / f"{name}.png")])
    assert not (tmp_path / "out").exists()


def test_a_conditional_generator_needs_the_class(tmp_path, monkeypatch):
    monkeypatch.setattr(projection, "STEPS", 3)
    config = tiny_config(tmp_path)
    config = replace(config, network=replace(config.network, conditional=True))
    state = TrainState(config, (16, 16, 3), CPU, 2)
    save_content(state.content(), config, tmp_path / "two")
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png")
    argv = [str(tmp_path / "two"), "--project", str(tmp_path / "x.png"), "--out", str(tmp_path)]
    with pytest.raises(ValueError, match=r"--project needs the class .* --label, in \[0, 2\)"):
        main.explore(argv)
    main.explore([*argv, "--label", "1"])
    assert np.load(tmp_path / "projection.npy").shape == (8,)
