"""Resuming: a killed run continues bit for bit as if it had not been interrupted."""

import math
from dataclasses import replace

import pytest
import torch

from ganray.errors import UserError
from ganray.training import journal, loop
from ganray.training.checkpoints import CheckpointWriter
from ganray.training.launch import launch
from ganray.training.state import read_state
from tests.conftest import augmented_config, regularized_config, tiny_config


def states_equal(a, b):
    """Return whether two states are bitwise equal, including the optimizers."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(states_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(states_equal, a, b))
    return a == b


class Killed(Exception):
    """Simulates SIGKILL between two steps."""


class KilledBeforeSecondCheckpoint(CheckpointWriter):
    written = 0

    def save(self, *, latest, coverage=0.0):
        self.written += latest
        if self.written == 2:
            raise Killed
        return super().save(latest=latest, coverage=coverage)


def unrolled_config(home):
    """Config whose run is killed between two updates of G, with unrolling and two G steps."""
    config = regularized_config(home, G_every=4, G_steps=2, batch_size=12, kimg=0.18)
    return replace(config, loss=replace(config.loss, unroll=2))


@pytest.mark.parametrize("make", [tiny_config, unrolled_config, augmented_config])
def test_resumed_equals_uninterrupted_bit_for_bit(squares, tmp_path, monkeypatch, make):
    uninterrupted = launch(make(tmp_path / "a"), squares)
    config = make(tmp_path / "b")
    with monkeypatch.context() as patch:
        patch.setattr("ganray.training.loop.CheckpointWriter", KilledBeforeSecondCheckpoint)
        with pytest.raises(Killed):
            launch(config, squares)
    assert [p.name for p in config.run_folder().glob("checkpoint_*")] == ["checkpoint_0000000010"]
    resumed = launch(config, squares)
    assert states_equal(read_state(uninterrupted), read_state(resumed))
    for metric in ("loss/D", "loss/G"):
        a, b = (journal.history(tmp_path / home / "runs" / config.name, metric) for home in "ab")
        points = [60, 120, 180, 240][: config.train.steps() // 5]
        assert a[0].tolist() == b[0].tolist() == points  # without duplicates
        assert a[1].tolist() == b[1].tolist()


def test_a_finished_run_ends_immediately_and_can_be_extended(squares, tmp_path):
    config = tiny_config(tmp_path)
    first = launch(config, squares)
    stamp = (first / "state.pt").stat().st_mtime_ns
    assert launch(config, squares) == first
    assert (first / "state.pt").stat().st_mtime_ns == stamp
    longer = replace(config, train=replace(config.train, kimg=0.36))
    last = launch(longer, squares)
    assert read_state(last)["step"] == 30
    uninterrupted = launch(tiny_config(tmp_path / "long", kimg=0.36), squares)
    assert states_equal(read_state(uninterrupted), read_state(last))


def test_without_averaging_G_ema_is_G(squares, tmp_path):
    state = read_state(launch(tiny_config(tmp_path, ema_kimg=0), squares))
    assert states_equal(state["G_ema"], state["G"])
    state = read_state(launch(tiny_config(tmp_path, name="averaged"), squares))
    assert not states_equal(state["G_ema"], state["G"])


def test_another_config_under_the_same_name_is_rejected(squares, tmp_path):
    config = tiny_config(tmp_path)
    launch(config, squares)
    other = replace(config, latent=replace(config.latent, size=9))
    with pytest.raises(UserError, match=r"latent.size=9 \(was 8\); use another --name"):
        launch(other, squares)


def test_only_the_last_checkpoints_are_kept(squares, tmp_path):
    config = tiny_config(tmp_path, checkpoint_every=0.012, keep_checkpoints=3)
    last = launch(config, squares)
    names = sorted(p.name for p in config.run_folder().glob("checkpoint_*"))
    assert names == [f"checkpoint_{step:010d}" for step in (18, 19, 20)]
    assert last.name == names[-1]


def test_every_nth_kimg_is_kept_forever(squares, tmp_path):
    config = tiny_config(tmp_path, checkpoint_every=0.06, keep_checkpoints=1, keep_every=0.084)
    launch(config, squares)
    names = sorted(p.name for p in config.run_folder().glob("checkpoint_*"))
    assert names == [f"checkpoint_{step:010d}" for step in (7, 14, 20)]


def test_a_checkpoint_with_code_is_rejected(squares, tmp_path):
    folder = launch(tiny_config(tmp_path), squares)
    assert set(read_state(folder)) == {
        *("step", "rollbacks", "image_shape", "classes", "augment_p"),
        *("G", "D", "G_ema", "G_optimizer", "D_optimizer"),
    }  # fmt: skip
    torch.save({"step": Killed()}, folder / "state.pt")
    (folder / "digests.json").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        read_state(folder)


def test_a_diverged_run_stops_with_advice(squares, tmp_path):
    config = tiny_config(tmp_path)
    unstable = replace(config, optimizer=replace(config.optimizer, name="sgd", lr_D=1e30))
    with pytest.raises(
        UserError, match=r"D\.[\w.]+ is not finite at .* diverged; try a lower optimizer.lr_D"
    ):
        launch(unstable, squares)


def test_a_rollback_continues_from_the_last_checkpoint_with_other_batches(
    squares, tmp_path, monkeypatch, capsys
):
    config = tiny_config(tmp_path, on_nan="rollback")
    expected = read_state(launch(tiny_config(tmp_path / "stable"), squares))
    rank_latents = loop.rank_latents

    def fail_at_step_15(state, *args):
        z = rank_latents(state, *args)
        return z * math.nan if state.step == 15 and not state.rollbacks else z

    monkeypatch.setattr(loop, "rank_latents", fail_at_step_15)
    state = read_state(launch(config, squares))
    assert state["step"] == 20
    assert state["rollbacks"] == 1
    assert not states_equal(state["G"], expected["G"])
    assert all(weight.isfinite().all() for weight in state["G"].values())
    output = capsys.readouterr().out
    assert "at step 20: training diverged" in output
    assert "back to the last checkpoint, with other batches and latents (1 of at most 3" in output
    steps, _ = journal.history(config.run_folder(), "loss/D")
    assert steps.tolist() == [60, 120, 180, 240]


def test_rollbacks_are_bounded(squares, tmp_path, capsys):
    config = tiny_config(tmp_path, on_nan="rollback")
    unstable = replace(config, optimizer=replace(config.optimizer, name="sgd", lr_D=1e30))
    with pytest.raises(UserError, match="training diverged"):
        launch(unstable, squares)
    assert capsys.readouterr().out.count("back to the last checkpoint") == 3
