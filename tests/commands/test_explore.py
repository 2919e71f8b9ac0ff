"""jobs/explore.py as a user calls it, and what its pictures hold."""

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
from ganray.training.state import TrainState
from tests.conftest import tiny_config

ROOT = Path(__file__).parents[2]
main = runpy.run_path(str(ROOT / "jobs" / "explore.py"))["main"]
NORMAL = LatentConfig("normal", 100)
NAMES = ["z1", "z2", "z1 + z2", "z1 - z2", "z1 * z2"]
PNGS = ["arithmetic.png", "interpolation.png", "neighbours.png", "samples.png"]
CPU = torch.device("cpu")
QUICK = ["--pairs", "2", "--steps", "3", "--fps", "4", "--seconds", "1"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GANRAY_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "home"


def painter(level, classes=0, latent=NORMAL) -> TrainedGenerator:
    """A generator whose images are grey all over, by `level` of its input, in [0, 1]."""
    config = Config(name="grey", latent=latent, network=NetworkConfig(kind="mlp"))
    return TrainedGenerator(
        lambda x: level(x)[:, None, None, None].expand(-1, 1, 96, 96),
        classes,
        config,
        "made up",
        None,
        None,
    )


@pytest.fixture
def drawn(monkeypatch):
    """The rows of a picture in place of the picture: their grey in [0, 1], captions and notes."""
    monkeypatch.setattr(explore, "labelled_rows", lambda groups, title: groups)

    def draw(picture, found, **options):
        groups = picture(found, ExploreConfig(**options))
        return [[(r.images[:, 0, 0, 0] / 255, r.caption, r.notes) for r in g] for g in groups]

    return draw


def cells(frame: np.ndarray) -> np.ndarray:
    """The grey of each image of an animation's frame, in [0, 1]."""
    return frame[64::100, 64::100, 0] / 255


def test_a_run_by_name_leaves_its_pictures_on_disk_and_in_mlflow(known, capsys):
    main(["tiny", "--home", str(known.config.home), *QUICK])
    folder = known.config.run_folder() / "explore"
    assert sorted(path.name for path in folder.iterdir()) == [*PNGS, "walk.gif"]
    for name in PNGS:
        Image.open(folder / name).verify()
    found, latent = load_generator.load_generator("tiny", known.config.home), known.config.latent
    z = latents.sample(latent, 8, rng_seed=0, stream="explore/samples", step=0, device=CPU)
    shown = np.asarray(Image.open(folder / "samples.png"))[52:148, 16 : 16 + 8 * 100]
    for i, image in enumerate(enlarge(found.images(z))):  # 16 pixels six times as large
        assert (shown[:, 100 * i : 100 * i + 96] == image).all()
    with Image.open(folder / "walk.gif") as gif:
        assert gif.info["loop"] == 0
        assert 1 <= gif.n_frames <= 4  # a GIF shows equal frames as one, for longer
    client = MlflowClient(tracking_uri=f"sqlite:///{known.config.home}/mlflow.db")
    logged = [file.path for file in client.list_artifacts(known.run_id, "explore")]
    assert sorted(logged) == [f"explore/{name}" for name in [*PNGS, "walk.gif"]]
    out = capsys.readouterr().out
    assert f"generator   checkpoint {known.checkpoint}; takes normal latents of size 8" in out
    assert f"pictures    {folder}: samples.png," in out
    assert f"artifacts   explore/ of MLflow run {known.run_id}" in out


def test_a_model_and_a_folder_of_ones_own(known, tmp_path, capsys):
    words = [known.model_uri, "--home", str(known.config.home), "--out", str(tmp_path / "mine")]
    main([*words, *QUICK, "--animation", "none"])
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == PNGS
    assert f"MLflow run {known.run_id}" in capsys.readouterr().out


def test_a_checkpoint_that_mlflow_does_not_know(home, known, tmp_path, capsys):
    shutil.copytree(known.checkpoint, tmp_path / "given")
    store = f"sqlite:///{known.config.home}/mlflow.db"
    path = tmp_path / "given" / "config.json"
    path.write_text(path.read_text().replace('"name": "tiny"', '"name": "stray"'))
    main([str(tmp_path / "given"), *QUICK, "--animation", "none", "--tracking-uri", store])
    assert sorted(path.name for path in (home / "explore" / "stray" / "given").iterdir()) == PNGS
    assert "MLflow      has no run 'stray'; the pictures stay on disk" in capsys.readouterr().out


def test_without_mlflow_the_pictures_are_kept(known, tmp_path, capsys):
    words = ["tiny", "--home", str(known.config.home), "--out", str(tmp_path / "mine"), *QUICK]
    main([*words, "--animation", "none", "--tracking-uri", "http://127.0.0.1:9"])
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == PNGS
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "not in MLflow" in x]
    assert "the pictures are on disk but not in MLflow: MLflow at http://127.0.0.1:9: " in line


def test_lerp_leaves_the_shell_and_slerp_does_not_as_the_picture_says(drawn):
    norms = painter(lambda x: x.norm(dim=1) / 20)
    pairs = drawn(explore.interpolation, norms, pairs=20, steps=13)
    assert [caption for _, caption, _ in pairs[0]] == ["lerp", "slerp"]
    lerp, slerp = np.array([[grey for grey, *_ in pair] for pair in pairs]).swapaxes(0, 1) * 20
    assert lerp[:, 6].mean() == pytest.approx(7.07, abs=0.2)
    assert slerp[:, 6].mean() == pytest.approx(10, abs=0.2)
    assert (lerp[:, [0, -1]] == slerp[:, [0, -1]]).all()  # both begin and end alike
    for norm, note in zip(lerp[0], pairs[0][0][2], strict=True):
        assert float(note) == pytest.approx(norm, abs=0.1)


def test_sums_differences_and_products_raw_and_on_the_shell(drawn):
    first = painter(lambda x: (x[:, 0] / 16 + 0.5).clamp(0, 1))
    for (raw, caption, notes), _ in drawn(explore.arithmetic, first, pairs=3):
        z1, z2, *results = (raw - 0.5) * 16
        assert results == pytest.approx([z1 + z2, z1 - z2, z1 * z2], abs=0.3)
        assert caption == "raw"
        assert [note.split("  ")[0] for note in notes] == NAMES
    norms = painter(lambda x: x.norm(dim=1) / 20)
    for (raw, *_), (scaled, caption, _) in drawn(explore.arithmetic, norms, pairs=3):
        assert raw[2:4] * 20 == pytest.approx([14.1, 14.1], abs=2)
        assert scaled * 20 == pytest.approx([10] * 5, abs=0.1)
        assert caption == "on the shell"


def test_neighbours_start_at_one_latent_and_keep_its_length(drawn):
    norms = painter(lambda x: x.norm(dim=1) / 20)
    (rows,) = drawn(explore.neighbourhood, norms, pairs=3, steps=4, degrees=30)
    assert np.ptp([grey for grey, *_ in rows]) <= 1 / 255
    assert rows[0][2] == ["0°", "10°", "20°", "30°"]
    first = painter(lambda x: (x[:, 0] / 8 + 0.5).clamp(0, 1))
    (rows,) = drawn(explore.neighbourhood, first, pairs=3, steps=4)
    starts, ends = (np.array([grey[i] for grey, *_ in rows]) for i in (0, -1))
    assert np.ptp(starts) == 0 < np.ptp(ends)


@pytest.mark.parametrize(("label", "turns"), [(None, [0, 1, 2, 0, 1, 2, 0, 1]), (2, [2] * 8)])
def test_rows_take_turns_through_the_labels_unless_one_is_asked_for(drawn, label, turns):
    told = painter(lambda x: x[:, 100:].argmax(dim=1) / 5, classes=3)
    for picture in (explore.samples, explore.neighbourhood):
        (rows,) = drawn(picture, told, label=label, pairs=8)
        assert [round(grey.mean() * 5) for grey, *_ in rows] == turns
        assert [caption for _, caption, _ in rows] == [f"label {turn}" for turn in turns]
    for picture in (explore.interpolation, explore.arithmetic):
        groups = drawn(picture, told, label=label, pairs=8)
        assert [round(group[1][0].mean() * 5) for group in groups] == turns
        assert groups[0][0][1].endswith(f"\nlabel {turns[0]}")


def test_the_animation_takes_turns_too():
    told = painter(lambda x: x[:, 100:].argmax(dim=1) / 20, classes=10)
    frame = explore.walk(told, ExploreConfig(fps=1, seconds=2))[1]
    assert (cells(frame) * 20).round().flatten().tolist() == [*range(10), *range(6)]


def test_a_sample_row_for_each_class_where_there_are_more(drawn):
    told = painter(lambda x: x[:, 100:].argmax(dim=1) / 20, classes=12)
    (rows,) = drawn(explore.samples, told)
    assert [round(grey[7] * 20) for grey, *_ in rows] == list(range(12))


def test_the_walk_closes_without_a_jump(tmp_path):
    smooth = painter(lambda x: (x[:, 0] / 8 + 0.5).clamp(0, 1))
    (path,) = explore.write_walk(smooth, ExploreConfig(fps=10, seconds=4), tmp_path)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.info["duration"], gif.info["loop"]) == (40, 100, 0)
        frames = []
        for i in range(40):
            gif.seek(i)
            frames.append(cells(np.asarray(gif.convert("RGB"))))
    strides = abs(np.roll(frames, -1, axis=0) - frames).max(axis=(1, 2))
    assert strides[-1] <= strides[:-1].max()
    assert 0 < strides.max() < 0.2


def test_a_latent_of_one_number_can_be_explored(drawn):
    one = painter(lambda x: x[:, 0].abs().clamp(0, 1), latent=LatentConfig("uniform", 1))
    for (lerp, *_), (slerp, *_) in drawn(explore.interpolation, one):
        assert (lerp == slerp).all()
    for (_, *_), (scaled, *_) in drawn(explore.arithmetic, one):
        assert scaled == pytest.approx([1 / np.sqrt(3)] * 5, abs=0.01)
    for grey, *_ in drawn(explore.neighbourhood, one, degrees=60)[0]:
        assert grey[-1] == pytest.approx(grey[0] / 2, abs=0.01)


def test_equal_seeds_give_equal_pictures_and_more_pairs_change_none(drawn):
    first = painter(lambda x: (x[:, 0] / 8 + 0.5).clamp(0, 1))
    few, many, other = (
        np.array([pair[0][0] for pair in drawn(explore.interpolation, first, **options)])
        for options in ({"pairs": 2}, {"pairs": 4}, {"pairs": 2, "rng_seed": 1})
    )
    assert (many[:2] == few).all()
    assert (other != few).any()


def test_a_label_that_the_generator_does_not_know(known, tmp_path):
    with pytest.raises(ValueError, match=r"--label=1: .* without labels .*; leave out --label"):
        main(["tiny", "--home", str(known.config.home), "--label", "1"])
    config = tiny_config(tmp_path)
    config = replace(config, network=replace(config.network, conditional=True))
    TrainState(config, (16, 16, 3), CPU, 2).save(tmp_path / "two")
    with pytest.raises(ValueError, match=r"--label=2 must lie in \[0, 2\)"):
        main([str(tmp_path / "two"), "--label", "2"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "run"),
        (["oranges"], "RUN='oranges' must be"),
        (["x", "--steps", "1"], "--steps=1 must be at least 2"),
        (["x", "--pairs", "0"], "--pairs=0 must be positive"),
        (["x", "--degrees", "0"], "--degrees=0.0 must lie in (0, 180]"),
        (["x", "--fps", "0"], "--fps=0 must lie in [1, 50]"),
        (["x", "--seconds", "61"], "--seconds=61.0 must lie in (0, 60] at 10 fps"),
        (["x", "--label", "-1"], "--label=-1 must not be negative"),
        (["x", "--rng-seed", "-1"], "--rng-seed=-1 must not be negative"),
        (["x", "--animation", "avi"], "animation"),
        (["x", "--stebs", "3"], "--stebs is not an option; did you mean --steps"),
    ],
)
def test_bad_input_is_one_clear_line(words, message, home):
    with pytest.raises(ValueError, match=r".") as error:
        main(words)
    assert message in " ".join(str(error.value).split())
    assert not home.exists()


def test_mp4_without_an_encoder_ends_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ValueError, match=r"--animation=mp4 needs an encoder: pip install"):
        main(["oranges", "--animation", "mp4"])


def test_an_mp4_instead_of_a_gif(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    grey = painter(lambda x: (x[:, 0] / 8 + 0.5).clamp(0, 0.99))
    options = ExploreConfig(animation="mp4", fps=4, seconds=1)
    (path,) = explore.write_walk(grey, options, tmp_path)
    assert path.name == "walk.mp4"
    assert path.read_bytes()[4:8] == b"ftyp"


def test_help_shows_examples_and_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for word in ("explore.py faces", "models:/generator/1", "--tracking_uri", "--animation"):
        assert word in text
