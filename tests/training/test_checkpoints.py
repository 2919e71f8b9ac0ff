"""Damaged checkpoints, journals and samples cost as little as possible."""

import json
import math
import os
import shutil
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from ganray.errors import UserError
from ganray.training import checkpoints, journal, run_figures
from ganray.training.launch import launch
from ganray.training.run_folder import RunFolder
from ganray.training.state import file_digest, read_state
from tests.conftest import tiny_config
from tests.training.test_resume import states_equal


def flip_bit(path):
    """Flip one bit in the middle of a file, which is a weight."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def randomize(path):
    path.write_bytes(os.urandom(path.stat().st_size))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("state.pt", damage) for damage in (flip_bit, cut, empty, randomize, os.unlink)),
        *(("config.json", damage) for damage in (cut, empty, randomize, os.unlink)),
        *(("digests.json", damage) for damage in (flip_bit, cut, empty, os.unlink)),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_run_resumes_from_the_one_before(
    squares, tmp_path, capsys, name, damage
):
    config = tiny_config(tmp_path)
    newest = launch(config, squares)
    expected = read_state(launch(tiny_config(tmp_path / "whole", kimg=0.36), squares))
    damage(newest / name)
    longer = replace(config, train=replace(config.train, kimg=0.36))
    with pytest.raises(UserError, match=rf"{newest}/.*(damaged|missing|cannot be read)"):
        launch(replace(longer, train=replace(longer.train, strict_resume=True)), squares)
    capsys.readouterr()
    last = launch(longer, squares)
    assert states_equal(read_state(last), expected)
    output = capsys.readouterr().out
    assert f"WARNING: {newest}/" in output
    assert "resuming from the earlier checkpoint" in output
    steps, _ = journal.history(config.run_folder(), "loss/D")
    assert steps.tolist() == [60, 120, 180, 240, 300, 360]


def test_a_damaged_checkpoint_is_not_kept_in_place_of_a_newer_one_of_an_earlier_step(
    squares, tmp_path
):
    """With `keep_checkpoints` 1 the run would have deleted every checkpoint that it wrote."""
    config = tiny_config(tmp_path)
    newest = launch(config, squares)
    flip_bit(newest / "state.pt")
    often = replace(config.train, checkpoint_every=0.036, keep_checkpoints=1)
    stops = replace(config, train=replace(often, kimg=0.18))  # 15 steps, of which 10 are done
    last = launch(stops, squares)
    assert checkpoints.list_checkpoints(config.run_folder()) == [last]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(squares, tmp_path):
    config = tiny_config(tmp_path)
    launch(config, squares)
    for folder in checkpoints.list_checkpoints(config.run_folder()):
        flip_bit(folder / "state.pt")
    with pytest.raises(UserError, match=r"all 2 checkpoints are damaged; the newest: .*0000000020"):
        launch(config, squares)


@pytest.fixture
def small_home(mount_disk):
    """A home of 800 KiB. A checkpoint has about 40 KiB."""
    return mount_disk("800k")


def test_a_full_disk_costs_only_the_new_checkpoint(squares, small_home):
    config = tiny_config(small_home, kimg=0.6, checkpoint_every=0.012, keep_checkpoints=50)
    with pytest.raises(UserError, match=r"cannot be written \(.*needs [\d,]+ bytes, and") as error:
        launch(config, squares)
    assert "\n" not in str(error.value)
    kept = checkpoints.list_checkpoints(config.run_folder())
    assert kept
    assert not list(config.run_folder().glob("*.part"))
    read_state(kept[-1])
    # After room is made the same command continues.
    fewer = replace(config, train=replace(config.train, keep_checkpoints=1))
    for folder in kept[:-1]:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    assert read_state(launch(fewer, squares))["step"] == 50


def folder_size(folder):
    """Return the room that a folder takes on a file system with pages of 4 KiB."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*"))


def test_a_checkpoint_that_does_not_fit_replaces_the_oldest(squares, small_home):
    schedule = {"kimg": 0.6, "checkpoint_every": 0.06, "keep_checkpoints": 3}
    probe = launch(tiny_config(small_home, name="probe", **schedule), squares)
    size = folder_size(probe)
    room = folder_size(probe.parent) + size // 2  # no room for a fourth checkpoint
    shutil.rmtree(probe.parent)
    disk = os.statvfs(small_home)
    (small_home / "ballast").write_bytes(bytes(disk.f_bavail * disk.f_frsize - room))
    config = tiny_config(small_home, **schedule)
    assert read_state(launch(config, squares))["step"] == 50
    assert len(checkpoints.list_checkpoints(config.run_folder())) == 3


def test_a_full_disk_leaves_no_half_of_a_line(mount_disk):
    """One page of 4 KiB is all there is beside the folder, and lines have 100 bytes."""
    disk = mount_disk("16k")
    log, step = journal.Journal(RunFolder(disk)), 0
    with suppress(UserError):
        for step in range(1000):
            log.metrics(step, {"loss/D": float(step)})
    assert step < 999
    for _ in range(100):
        journal.add_status(disk, "rank 0 failed", is_training=False)
    content = (disk / "journal.jsonl").read_bytes()
    assert content.endswith(b"}\n")
    steps, _ = journal.history(disk, "loss/D")
    assert steps.tolist() == list(range(len(steps)))
    assert len(list(journal.read(disk))) == len(content.splitlines())


def test_damaged_lines_of_a_journal_are_skipped_with_one_warning(tmp_path, ganray_log):
    log = journal.Journal(RunFolder(tmp_path))
    for step in (10, 20, 30):
        log.metrics(step, {"loss/D": float(step)})
    path = tmp_path / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    garbage = [b"\x00\xff\n", b"[]\n", b'{"name": 1}\n', b"[" * 10_000 + b"\n", b"{}\n"]
    path.write_bytes(b"".join([lines[0], *garbage, lines[2]]))
    for _ in range(2):
        steps, values = journal.history(tmp_path, "loss/D")
        assert steps.tolist() == [10, 30]
        assert values.tolist() == [10.0, 30.0]
    assert ganray_log.text.count("is damaged and skipped") == len(garbage)
    assert f"{path}: the line at byte {len(lines[0])}" in ganray_log.text


def test_a_damaged_sample_grid_is_left_out_of_the_figures(squares, tmp_path, capsys):
    config = tiny_config(tmp_path)
    launch(config, squares)
    folder = config.run_folder()
    first, *_, newest = sorted((folder / "samples").glob("*.png"))
    cut(newest)
    assert run_figures.draw_epochs(folder, (16, 16, 3)) == folder / "epochs.png"
    assert run_figures.last_samples(folder).read_bytes() == first.read_bytes()
    assert f"{newest}: damaged" in capsys.readouterr().out
    empty(first)
    assert run_figures.draw_epochs(folder, (16, 16, 3)) is None
    assert run_figures.last_samples(folder) is None


def test_weights_that_are_not_finite_are_named_and_never_saved(squares, tmp_path):
    """No log line is due before the checkpoint, so that the losses are not checked yet."""
    config = tiny_config(tmp_path, log_every=0.24, checkpoint_every=0.06)
    stable = launch(replace(config, train=replace(config.train, kimg=0.12)), squares)
    state = torch.load(stable / "state.pt", weights_only=True)
    next(iter(state["D"].values())).fill_(math.nan)
    torch.save(state, stable / "state.pt")
    (stable / "digests.json").write_text(json.dumps({"state.pt": file_digest(stable / "state.pt")}))
    with pytest.raises(UserError, match=r"D\.[\w.]+ is not finite at step 20: training diverged"):
        launch(config, squares)
    assert checkpoints.list_checkpoints(config.run_folder())[-1] == stable


def test_a_slow_run_saves_a_checkpoint_with_a_log_line(squares, tmp_path):
    config = tiny_config(tmp_path, checkpoint_every=99, checkpoint_minutes=1e-9, keep_checkpoints=9)
    last = launch(config, squares)
    steps = [int(p.name.split("_")[1]) for p in checkpoints.list_checkpoints(config.run_folder())]
    assert steps == [5, 10, 15, 20]
    expected = launch(tiny_config(tmp_path / "other"), squares)
    assert states_equal(read_state(last), read_state(expected))


def test_an_error_of_the_device_is_no_full_disk(squares, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(checkpoints, "save_content", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        launch(tiny_config(tmp_path), squares)
