"""Fine-tuning: a new run starts from the networks of another run."""

import shutil
from dataclasses import replace

import pytest
import torch

from ganray.config.schema import NetworkConfig
from ganray.errors import UserError
from ganray.training import loop
from ganray.training.checkpoints import locate_initial_weights
from ganray.training.launch import launch
from ganray.training.state import TrainState, export_generator, read_state
from tests.conftest import tiny_config
from tests.training.test_resume import states_equal


def fine_tuned(home, init_from="tiny", **train):
    return replace(tiny_config(home, name="tuned", **train), init_from=str(init_from))


@pytest.mark.parametrize("named_by", ["name", "run folder", "checkpoint"])
def test_a_run_starts_from_the_networks_of_another(squares, tmp_path, monkeypatch, named_by):
    checkpoint = launch(tiny_config(tmp_path), squares)
    names = {"name": "tiny", "run folder": checkpoint.parent, "checkpoint": checkpoint}
    config = locate_initial_weights(fine_tuned(tmp_path, names[named_by]))
    assert config.init_from == str(checkpoint)
    started = {}
    build_loader = loop.build_loader

    def record(config, images, sampler, device, step):
        (state,) = states
        started.update(step=step, D=len(state.D_optimizer.state))
        started["G"] = {k: v.clone() for k, v in state.G.state_dict().items()}
        started["G_ema"] = {k: v.clone() for k, v in state.G_ema.state_dict().items()}
        return build_loader(config, images, sampler, device, step)

    states = []
    monkeypatch.setattr(loop, "build_loader", record)
    build_state = loop.build_state
    monkeypatch.setattr(loop, "build_state", lambda *a: states.append(build_state(*a)) or states[0])
    launch(config, squares)
    saved = read_state(checkpoint)
    assert started["step"] == started["D"] == 0
    for name in ("G", "G_ema"):
        assert all(torch.equal(started[name][key], value) for key, value in saved[name].items())


def test_a_resumed_run_does_not_need_the_other_one_any_more(squares, tmp_path):
    source = launch(tiny_config(tmp_path), squares)
    config = locate_initial_weights(fine_tuned(tmp_path, kimg=0.12))
    launch(config, squares)
    shutil.rmtree(source.parent)
    last = launch(replace(config, train=replace(config.train, kimg=0.24)), squares)
    assert read_state(last)["step"] == 20


@pytest.mark.parametrize("ema_kimg", [(0, 0.05), (0.05, 0)])
def test_runs_may_differ_in_whether_they_average(squares, tmp_path, ema_kimg):
    checkpoint = launch(tiny_config(tmp_path, ema_kimg=ema_kimg[0]), squares)
    config = fine_tuned(tmp_path, checkpoint, ema_kimg=ema_kimg[1])
    state = TrainState(config, (16, 16, 3), torch.device("cpu"))
    state.load_weights(checkpoint)
    saved = read_state(checkpoint)
    assert states_equal(dict(state.G.state_dict()), dict(saved["G"]))
    assert states_equal(dict(state.D.state_dict()), dict(saved["D"]))


def test_a_generator_alone_is_refused(squares, tmp_path):
    checkpoint = launch(tiny_config(tmp_path), squares)
    (tmp_path / "exported").mkdir()
    folder = export_generator(checkpoint, tmp_path / "exported")
    state = TrainState(fine_tuned(tmp_path), (16, 16, 3), torch.device("cpu"))
    with pytest.raises(UserError, match="holds a generator only"):
        state.load_weights(folder)


def test_networks_of_another_size_are_refused_with_the_first_difference(squares, tmp_path):
    checkpoint = launch(tiny_config(tmp_path), squares)
    wide = replace(fine_tuned(tmp_path, checkpoint), network=NetworkConfig(width_G=8, width_D=4))
    state = TrainState(wide, (16, 16, 3), torch.device("cpu"))
    message = r"the weight G.1.weight is \(8, 8, 4, 4\) there and \(8, 16, 4, 4\) here"
    with pytest.raises(UserError, match=message):
        state.load_weights(checkpoint)


def test_an_unknown_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="init_from=nowhere must be a run in"):
        locate_initial_weights(fine_tuned(tmp_path, "nowhere"))
    config = tiny_config(tmp_path)
    assert locate_initial_weights(config) is config
