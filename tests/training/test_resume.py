"""Kill anything: what goes on is what would have been, bit for bit."""

from dataclasses import replace

import pytest
import torch

from ganray.training import journal
from ganray.training.context import LocalContext
from ganray.training.launch import launch
from ganray.training.state import read_state
from tests.conftest import cured_config, tiny_config


def states_equal(a, b):
    """Equal to the last bit, optimizer state included."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(states_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(states_equal, a, b))
    return a == b


class Killed(Exception):
    """Stands for SIGKILL between two steps."""


class DyingContext(LocalContext):
    """Dies in the report after `alive` reports were kept."""

    alive = 1

    def report(self, metrics, step, checkpoint):
        if self.alive == 0:
            raise Killed
        self.alive -= 1
        super().report(metrics, step, checkpoint)


def unrolled_config(home):
    """Killed between two turns of G, which makes two steps a turn and looks two ahead."""
    config = cured_config(home, G_every=4, G_steps=2, batch_size=12, kimg=0.18)
    return replace(config, loss=replace(config.loss, unroll=2))


@pytest.mark.parametrize("make", [tiny_config, unrolled_config])
def test_resumed_equals_uninterrupted_bit_for_bit(squares, tmp_path, monkeypatch, make):
    whole = launch(make(tmp_path / "a"), squares)
    config = make(tmp_path / "b")
    with monkeypatch.context() as patch:
        patch.setattr("ganray.training.launch.LocalContext", DyingContext)
        with pytest.raises(Killed):
            launch(config, squares)
    assert [p.name for p in config.run_folder().glob("checkpoint_*")] == ["checkpoint_0000000010"]
    resumed = launch(config, squares)
    assert states_equal(read_state(whole), read_state(resumed))
    for metric in ("D/loss", "G/loss"):
        a, b = (journal.history(tmp_path / home / "runs" / config.name, metric) for home in "ab")
        points = [60, 120, 180, 240][: config.train.steps() // 5]
        assert a[0].tolist() == b[0].tolist() == points  # no point twice
        assert a[1].tolist() == b[1].tolist()


def test_a_finished_run_ends_at_once_and_can_be_extended(squares, tmp_path):
    config = tiny_config(tmp_path)
    first = launch(config, squares)
    stamp = (first / "state.pt").stat().st_mtime_ns
    assert launch(config, squares) == first
    assert (first / "state.pt").stat().st_mtime_ns == stamp
    longer = replace(config, train=replace(config.train, kimg=0.36))
    last = launch(longer, squares)
    assert read_state(last)["step"] == 30
    whole = launch(tiny_config(tmp_path / "whole", kimg=0.36), squares)
    assert states_equal(read_state(whole), read_state(last))


def test_without_averaging_the_samples_are_Gs_own(squares, tmp_path):
    state = read_state(launch(tiny_config(tmp_path, ema_kimg=0), squares))
    assert states_equal(state["G_ema"], state["G"])
    state = read_state(launch(tiny_config(tmp_path, name="averaged"), squares))
    assert not states_equal(state["G_ema"], state["G"])


def test_other_settings_under_the_same_name_are_refused(squares, tmp_path):
    config = tiny_config(tmp_path)
    launch(config, squares)
    other = replace(config, latent=replace(config.latent, size=9))
    with pytest.raises(ValueError, match=r"latent.size=9 \(was 8\); use another --name"):
        launch(other, squares)


def test_the_last_checkpoints_are_kept(squares, tmp_path):
    config = tiny_config(tmp_path, checkpoint_every=0.012, keep_checkpoints=3)
    last = launch(config, squares)
    names = sorted(p.name for p in config.run_folder().glob("checkpoint_*"))
    assert names == [f"checkpoint_{step:010d}" for step in (18, 19, 20)]
    assert last.name == names[-1]


def test_a_checkpoint_holds_no_code(squares, tmp_path):
    """weights_only=True is how it is read; a pickle that runs code is refused in one line."""
    folder = launch(tiny_config(tmp_path), squares)
    assert set(read_state(folder)) == {
        "step", "image_shape", "classes", "G", "D", "G_ema", "G_optimizer", "D_optimizer",
    }  # fmt: skip
    torch.save({"step": Killed()}, folder / "state.pt")
    with pytest.raises(ValueError, match="cannot be read"):
        read_state(folder)


def test_a_diverged_run_stops_with_advice(squares, tmp_path):
    config = tiny_config(tmp_path)
    wild = replace(config, optimizer=replace(config.optimizer, name="sgd", lr_D=1e30))
    with pytest.raises(ValueError, match=r"diverged; try a lower optimizer.lr_D"):
        launch(wild, squares)
