"""jobs/shard.py as a user calls it."""

import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest

from ganray.data.reader import ShardedDataset

ROOT = Path(__file__).parents[2]
main = runpy.run_path(str(ROOT / "jobs" / "shard.py"))["main"]


def test_digits_are_converted_and_verified_and_damage_is_reported(tmp_path: Path, capsys):
    out = tmp_path / "digits"
    main(["digits", "--out", str(out), "--size", "16", "--split", "test", "--processes", "1"])
    assert "297 images of 16x16x1 (raw), 10 classes in 1 shard" in capsys.readouterr().out
    assert set(ShardedDataset(out).annotations(np.arange(297)).labels) == set(range(10))
    main(["verify", str(out)])
    assert "undamaged: 297 images" in capsys.readouterr().out
    shard = out / "shard-00000.h5"
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"shard-00000\.h5: is damaged"):
        main(["verify", str(out)])


def test_the_options_that_train_on_the_shards_are_quoted(tmp_path: Path, capsys):
    out = tmp_path / "a set"
    main(["digits", "--out", str(out), "--images", "20", "--processes", "1"])
    line = capsys.readouterr().out.splitlines()[-1]
    options = ["--data.root", str(out), "--data.size", "0"]
    assert shlex.split(line.removeprefix("train on them with ")) == options


def test_faces_are_drawn_and_stored_as_jpegs(tmp_path: Path, capsys):
    argv = ["faces", str(tmp_path / "faces"), "--out", str(tmp_path / "set"), "--faces", "5"]
    main([*argv, "--encoding", "jpeg", "--processes", "1"])
    assert "5 images of 218x178x3 (jpeg), 40 attributes in 1 shard" in capsys.readouterr().out
    main([*argv, "--encoding=jpeg"])  # done already
    with pytest.raises(ValueError, match="another recipe"):
        main([*argv, "--size", "32"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "source"),
        (["oranges"], "source=oranges is not one of celeba, mnist,"),
        (["celeba", "/nowhere"], "--out is missing"),
        (["celeba", "/nowhere", "--out", "x"], "/nowhere: no such folder"),
        (["digits", "--out", "/proc/x"], "/proc/x: cannot be written (No such file"),
        (["digits", "--out", "/proc"], "/proc: cannot be written ("),
        (["celeba", "--out", "x"], "celeba needs a path"),
        (["verify"], "verify needs a path"),
        (["faces", "--out", "x"], "faces needs a path"),
        (["digits", "--out", "x", "--size", "3"], "--size=3 must be 0 or at least 8"),
        (["digits", "--out", "x", "--images", "0"], "--images=0 must be positive"),
        (["digits", "--out", "x", "--processes", "-1"], "--processes=-1 must be positive"),
        (["digits", "--out", "x", "--faces", "0"], "--faces=0 must be positive"),
        (["digits", "--out", "x", "--rng_seed", "-1"], "--rng_seed=-1 must not be negative"),
        (["digits", "--out", "x", "--sice", "16"], "--sice is not an option; did you mean --size"),
        (["digits", "--out", "x", "--stacked", "9"], "only stacked-mnist has this option"),
        (["digits", "--out", "x", "--encoding", "jpeg"], "digits holds no JPEG files"),
    ],
)
def test_invalid_options_are_rejected_in_one_line(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r".") as error:
        main(argv)
    assert message in " ".join(str(error.value).split())
    assert not list(tmp_path.iterdir())


def test_help_names_every_source_and_option(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for name in ("celeba", "mnist", "folder", "source-text", "faces", "verify", "--processes"):
        assert name in text
