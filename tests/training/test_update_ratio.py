"""Unequal numbers of D and G updates, and what G_ema averages then."""

import torch

from ganray.gan import ema
from ganray.training.launch import launch
from ganray.training.state import read_state
from tests.conftest import tiny_config


def num_updates(optimizer):
    return {int(state["step"]) for state in optimizer["state"].values()}


def test_G_is_updated_every_G_every_steps_and_G_ema_at_every_step(squares, tmp_path):
    config = tiny_config(tmp_path, kimg=0.12, checkpoint_every=0.06, G_every=5, G_steps=3)
    last = launch(config, squares)
    before, after = (read_state(p) for p in (last.parent / "checkpoint_0000000005", last))
    assert (num_updates(before["D_optimizer"]), num_updates(before["G_optimizer"])) == (
        {5},
        {3},
    )
    assert (num_updates(after["D_optimizer"]), num_updates(after["G_optimizer"])) == ({10}, {6})
    averaged = list(before["G_ema"].values())
    for step in range(6, 11):
        latest = list((after if step == 10 else before)["G"].values())
        ema.update(averaged, latest, batch_size=12, half_life=50, images_seen=12 * step)
    assert all(map(torch.equal, averaged, after["G_ema"].values()))


def test_G_is_unchanged_before_its_first_update(squares, tmp_path):
    config = tiny_config(tmp_path, kimg=0.06, G_every=6)
    state = read_state(launch(config, squares))
    assert not state["G_optimizer"]["state"]
    assert all(torch.equal(value, state["G_ema"][name]) for name, value in state["G"].items())
