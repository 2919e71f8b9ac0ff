"""jobs/explore.py as a user calls it, and the contents of its pictures."""

import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from ganray.commands import explore, load_generator
from ganray.commands.load_generator import TrainedGenerator
from ganray.config.commands import ExploreConfig
from ganray.config.schema import Config, LatentConfig, NetworkConfig
from ganray.figures import enlarge
from ganray.gan import latents
from ganray.training.state import TrainState, save_content
from tests.conftest import tiny_config

ROOT = Path(__file__).parents[2]
main = runpy.run_path(str(ROOT / "jobs" / "explore.py"))["main"]
NORMAL = LatentConfig("normal", 100)
NAMES = ["z1", "z2", "z1 + z2", "z1 - z2", "z1 * z2"]
PNGS = ["arithmetic.png", "interpolation.png", "neighbors.png", "samples.png"]
CPU = torch.device("cpu")
QUICK = ["--pairs", "2", "--steps", "3", "--fps", "4", "--seconds", "1"]


pytestmark = pytest.mark.usefixtures("home")


def gray_generator(level, classes=0, latent=NORMAL) -> TrainedGenerator:
    """Return a generator of uniformly gray images; `level` maps its inputs to grays in [0, 1]."""
    config = Config(name="gray", latent=latent, network=NetworkConfig(kind="mlp"))

    def generate(x):
        return level(x)[:, None, None, None].expand(-1, 1, 96, 96)

    return TrainedGenerator(generate, classes, config, "test", None, None)


def label_generator(classes: int) -> TrainedGenerator:
    """Return a conditional generator of images whose gray is the label / 20."""
    return gray_generator(lambda x: x[:, 100:].argmax(dim=1) / 20, classes)


NORMS = gray_generator(lambda x: x.norm(dim=1) / 20)
FIRST_COORDINATES = gray_generator(lambda x: (x[:, 0] / 8 + 0.5).clamp(0, 0.999))


@pytest.fixture
def draw(monkeypatch):
    """Function that returns the rows of a picture as grays in [0, 1], captions and notes."""
    monkeypatch.setattr(explore, "labeled_rows", lambda groups, title: groups)

    def draw(picture, generator, **options):
        groups = picture(generator, ExploreConfig(**options))
        return [[(r.images[:, 0, 0, 0] / 255, r.caption, r.notes) for r in g] for g in groups]

    return draw


def grays(frame: np.ndarray) -> np.ndarray:
    """Return the gray of each image of an animation's frame, in [0, 1]."""
    return frame[64::100, 64::100, 0] / 255


def test_pictures_of_a_run_are_on_disk_and_in_mlflow(trained_run, capsys):
    config = trained_run.config
    main(["tiny", "--home", str(config.home), *QUICK])
    folder = config.run_folder() / "explore"
    assert sorted(path.name for path in folder.iterdir()) == [*PNGS, "walk.gif"]
    for name in PNGS:
        Image.open(folder / name).verify()
    generator = load_generator.load_generator("tiny", config.home)
    z = latents.sample(config.latent, 8, rng_seed=0, stream="explore/samples", step=0, device=CPU)
    picture = np.asarray(Image.open(folder / "samples.png"))[52:148, 16 : 16 + 8 * 100]
    for i, image in enumerate(enlarge(generator.images(z))):  # 16 pixels six times as large
        assert (picture[:, 100 * i : 100 * i + 96] == image).all()
    with Image.open(folder / "walk.gif") as gif:
        assert gif.info["loop"] == 0
        assert 1 <= gif.n_frames <= 4  # a GIF shows equal frames as one, for longer
    client = MlflowClient(tracking_uri=f"sqlite:///{config.home}/mlflow.db")
    logged = [file.path for file in client.list_artifacts(trained_run.run_id, "explore")]
    assert {f"explore/{name}" for name in [*PNGS, "walk.gif"]} <= set(logged)
    out = capsys.readouterr().out
    assert f"generator   checkpoint {trained_run.checkpoint}; takes normal latents of size 8" in out
    assert f"pictures    {folder}: samples.png," in out
    assert f"artifacts   explore/ of MLflow run {trained_run.run_id}" in out
    assert f"runs/{trained_run.run_id}?workflowType=machine_learning" in out


def test_logged_model_and_another_output_folder(trained_run, tmp_path, capsys):
    argv = [trained_run.model_uri, "--home", str(trained_run.config.home)]
    main([*argv, "--out", str(tmp_path / "out"), *QUICK, "--animation", "none"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == PNGS
    assert f"MLflow run {trained_run.run_id}" in capsys.readouterr().out


def test_checkpoint_without_an_mlflow_run(home, trained_run, tmp_path, capsys):
    shutil.copytree(trained_run.checkpoint, tmp_path / "copy")
    store = f"sqlite:///{trained_run.config.home}/mlflow.db"
    path = tmp_path / "copy" / "config.json"
    path.write_text(path.read_text().replace('"name": "tiny"', '"name": "stray"'))
    main([str(tmp_path / "copy"), *QUICK, "--animation", "none", "--tracking_uri", store])
    assert sorted(path.name for path in (home / "explore" / "stray" / "copy").iterdir()) == PNGS
    assert "MLflow      has no run 'stray'; the pictures stay on disk" in capsys.readouterr().out


def test_pictures_are_kept_if_mlflow_is_unreachable(trained_run, tmp_path, capsys):
    argv = ["tiny", "--home", str(trained_run.config.home), "--out", str(tmp_path / "out"), *QUICK]
    main([*argv, "--animation", "none", "--tracking_uri", "http://127.0.0.1:9"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == PNGS
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "not in MLflow" in x]
    assert "the pictures are on disk but not in MLflow: MLflow at http://127.0.0.1:9: " in line


def test_lerp_leaves_the_shell_and_slerp_stays_on_it(draw):
    pairs = draw(explore.interpolation, NORMS, pairs=20, steps=13)
    assert [caption for _, caption, _ in pairs[0]] == ["straight\n(lerp)", "great circle\n(slerp)"]
    lerp, slerp = np.array([[gray for gray, *_ in pair] for pair in pairs]).swapaxes(0, 1) * 20
    assert lerp[:, 6].mean() == pytest.approx(7.07, abs=0.2)
    assert slerp[:, 6].mean() == pytest.approx(10, abs=0.2)
    assert (lerp[:, [0, -1]] == slerp[:, [0, -1]]).all()  # both have the same ends
    for norm, note in zip(lerp[0], pairs[0][0][2], strict=True):
        assert float(note) == pytest.approx(norm, abs=0.1)


def test_sums_differences_and_products_as_computed_and_on_the_shell(draw):
    first = gray_generator(lambda x: (x[:, 0] / 16 + 0.5).clamp(0, 1))
    for (raw, caption, notes), _ in draw(explore.arithmetic, first, pairs=3):
        z1, z2, *results = (raw - 0.5) * 16
        assert results == pytest.approx([z1 + z2, z1 - z2, z1 * z2], abs=0.3)
        assert caption == "as computed"
        assert [note.split("  ")[0] for note in notes] == NAMES
    for (raw, *_), (scaled, caption, _) in draw(explore.arithmetic, NORMS, pairs=3):
        assert raw[2:4] * 20 == pytest.approx([14.1, 14.1], abs=2)
        assert scaled * 20 == pytest.approx([10] * 5, abs=0.1)
        assert caption == "scaled to\n|z| = 10.0"


def test_neighbors_start_at_one_latent_and_keep_its_norm(draw):
    (rows,) = draw(explore.neighborhood, NORMS, pairs=3, steps=4, degrees=30)
    assert np.ptp([gray for gray, *_ in rows]) <= 1 / 255
    assert rows[0][2] == ["0°", "10°", "20°", "30°"]
    (rows,) = draw(explore.neighborhood, FIRST_COORDINATES, pairs=3, steps=4)
    starts, ends = (np.array([gray[i] for gray, *_ in rows]) for i in (0, -1))
    assert np.ptp(starts) == 0 < np.ptp(ends)


@pytest.mark.parametrize(("label", "labels"), [(None, [0, 1, 2, 0, 1, 2, 0, 1]), (2, [2] * 8)])
def test_rows_cycle_through_the_labels_unless_one_is_chosen(draw, label, labels):
    generator = label_generator(3)
    for picture in (explore.samples, explore.neighborhood):
        (rows,) = draw(picture, generator, label=label, pairs=8)
        assert [round(gray.mean() * 20) for gray, *_ in rows] == labels
        assert [caption for _, caption, _ in rows] == [f"label {i}" for i in labels]
    for picture in (explore.interpolation, explore.arithmetic):
        groups = draw(picture, generator, label=label, pairs=8)
        assert [round(group[1][0].mean() * 20) for group in groups] == labels
        assert groups[0][0][1].endswith(f"\nlabel {labels[0]}")


def test_samples_have_a_row_for_each_class(draw):
    (rows,) = draw(explore.samples, label_generator(12))
    assert [round(gray[7] * 20) for gray, *_ in rows] == list(range(12))


def test_the_animation_cycles_through_the_labels():
    frame = explore.walk(label_generator(10), ExploreConfig(fps=1, seconds=2))[1]
    assert (grays(frame) * 20).round().flatten().tolist() == [*range(10), *range(6)]


def test_the_walk_closes_without_a_jump(tmp_path):
    (path,) = explore.write_walk(FIRST_COORDINATES, ExploreConfig(fps=10, seconds=4), tmp_path)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.info["duration"], gif.info["loop"]) == (40, 100, 0)
        frames = []
        for i in range(40):
            gif.seek(i)
            frames.append(grays(np.asarray(gif.convert("RGB"))))
    strides = abs(np.roll(frames, -1, axis=0) - frames).max(axis=(1, 2))
    assert strides[-1] <= strides[:-1].max()
    assert 0 < strides.max() < 0.2


def test_a_latent_of_one_number_can_be_explored(draw):
    uniform = LatentConfig("uniform", 1)
    generator = gray_generator(lambda x: x[:, 0].abs().clamp(0, 1), latent=uniform)
    for (lerp, *_), (slerp, *_) in draw(explore.interpolation, generator):
        assert (lerp == slerp).all()
    for (_, *_), (scaled, *_) in draw(explore.arithmetic, generator):
        assert scaled == pytest.approx([1 / np.sqrt(3)] * 5, abs=0.01)
    for gray, *_ in draw(explore.neighborhood, generator, degrees=60)[0]:
        assert gray[-1] == pytest.approx(gray[0] / 2, abs=0.01)


def test_more_pairs_do_not_change_the_first_ones(draw):
    few, many, other = (
        np.array([pair[0][0] for pair in draw(explore.interpolation, FIRST_COORDINATES, **options)])
        for options in ({"pairs": 2}, {"pairs": 4}, {"pairs": 2, "rng_seed": 1})
    )
    assert (many[:2] == few).all()
    assert (other != few).any()


def test_pictures_of_truncated_latents(draw, monkeypatch):
    for picture in (explore.samples, explore.interpolation, explore.neighborhood):
        for full, half in zip(draw(picture, NORMS), draw(picture, NORMS, psi=0.5), strict=True):
            for (gray, *_), (truncated, *_) in zip(full, half, strict=True):
                assert truncated == pytest.approx(gray / 2, abs=0.005)
    (raw, *_), (scaled, caption, _) = draw(explore.arithmetic, NORMS, psi=0.5)[0]
    assert raw[0] * 20 == pytest.approx(5, abs=1)
    assert scaled * 20 == pytest.approx([5] * 5, abs=0.1)
    assert caption == "scaled to\n|z| = 5.00"
    titles = []
    monkeypatch.setattr(explore, "labeled_rows", lambda groups, title: titles.append(title))
    for psi in (1, 0.5):
        explore.samples(NORMS, ExploreConfig(psi=psi))
    assert titles == ["gray: random samples", "gray: random samples; truncated with psi = 0.5"]


def test_the_animation_of_truncated_latents():
    frame = explore.walk(NORMS, ExploreConfig(psi=0.5, fps=1, seconds=2))[0]
    assert (grays(frame) * 20).mean() == pytest.approx(5, abs=0.5)


def test_a_truncation_without_effect_is_said(trained_run, tmp_path, capsys):
    argv = ["tiny", "--home", str(trained_run.config.home), "--out", str(tmp_path), *QUICK]
    main([*argv, "--animation", "none", "--psi", "0.5"])
    out = capsys.readouterr().out
    assert "truncation  psi = 0.5 changes pixels by 0.0 of 255 levels on average" in out
    assert "--psi=0.5 has no visible effect" in out  # a dcgan


def test_a_label_that_the_generator_does_not_have_is_rejected(trained_run, tmp_path):
    with pytest.raises(ValueError, match=r"--label=1: .* without labels .*; leave out --label"):
        main(["tiny", "--home", str(trained_run.config.home), "--label", "1"])
    config = tiny_config(tmp_path)
    config = replace(config, network=replace(config.network, conditional=True))
    state = TrainState(config, (16, 16, 3), CPU, 2)
    save_content(state.content(), config, tmp_path / "two")
    with pytest.raises(ValueError, match=r"--label=2 must lie in \[0, 2\)"):
        main([str(tmp_path / "two"), "--label", "2"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["oranges"], "RUN='oranges' must be"),
        (["x", "--steps", "1"], "--steps=1 must be at least 2"),
        (["x", "--pairs", "0"], "--pairs=0 must be positive"),
        (["x", "--degrees", "0"], "--degrees=0.0 must lie in (0, 180]"),
        (["x", "--fps", "0"], "--fps=0 must lie in [1, 50]"),
        (["x", "--seconds", "61"], "--seconds=61.0 must lie in (0, 60] at 10 fps"),
        (["x", "--label", "-1"], "--label=-1 must not be negative"),
        (["x", "--psi", "1.5"], "--psi=1.5 must lie in [0, 1]"),
        (["x", "--count", "0"], "--count=0 must be positive"),
        (["x", "--count", "9", "--export", "onnx"], "--count and --export cannot be combined"),
        (["x", "--psi", "0.5", "--project", "y"], "--psi=0.5 has no effect on --project"),
        (["x", "--rng_seed", "-1"], "--rng_seed=-1 must not be negative"),
        (["x", "--animation", "avi"], "animation"),
        (["x", "--stebs", "3"], "--stebs is not an option; did you mean --steps"),
    ],
)
def test_invalid_options_are_rejected_in_one_line(argv, message, home):
    with pytest.raises(ValueError, match=r".") as error:
        main(argv)
    assert message in " ".join(str(error.value).split())
    assert not home.exists()


def test_mp4_without_an_encoder_is_rejected_before_a_run_is_loaded(monkeypatch, home):
    (home / "runs" / "oranges").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ValueError, match=r"--animation=mp4 needs an encoder: pip install"):
        main(["oranges", "--animation", "mp4"])


def test_mp4_instead_of_a_gif(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    options = ExploreConfig(animation="mp4", fps=4, seconds=1)
    (path,) = explore.write_walk(FIRST_COORDINATES, options, tmp_path)
    assert path.name == "walk.mp4"
    assert path.read_bytes()[4:8] == b"ftyp"


def test_help_shows_examples_and_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for name in ("explore.py faces", "models:/generator/1", "--tracking_uri", "--animation"):
        assert name in text
