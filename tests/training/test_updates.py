"""Updates as CUDA graphs, as far as a CPU can run them; checkpoints between devices."""

import time
from collections import OrderedDict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ganray.config.schema import OptimizerConfig
from ganray.errors import UserError
from ganray.gan import networks
from ganray.training import updates
from ganray.training.checkpoints import CheckpointWriter
from ganray.training.launch import launch
from ganray.training.state import read_state
from ganray.training.updates import CudaGraph
from tests.conftest import tiny_config
from tests.training.test_resume import states_equal

OPTIONS = {
    "plain": {},
    "conditional, two G steps": {"network": {"conditional": True}, "train": {"G_steps": 2}},
    "WGAN-GP": {"loss": {"name": "wgan", "gp_weight": 10.0}, "train": {"G_every": 3}},
    "lazy penalties": {"loss": {"r1_gamma": 1.0, "penalty_every": 4}},
    "augmentation": {"augment": {"policy": "ada", "target": 0.6, "adapt_kimg": 0.5}},
    "parts of the batch": {"train": {"microbatch": 5}, "augment": {"policy": "diffaugment"}},
}


class ReplayedOnCpu(CudaGraph):
    """A graph that instead of replaying kernels calls the updates again, on its own batch.

    Like a graph, it does not call the hooks of optimizers.
    """

    replays = 0

    def __init__(self, update, batch):
        self._batch, self._graph = batch.clone(), SimpleNamespace(replay=self._replay)
        self._update = update

    def _replay(self):
        ReplayedOnCpu.replays += 1
        state = self._update.__self__._state
        with pytest.MonkeyPatch.context() as patch:
            for optimizer in (state.D_optimizer, state.G_optimizer):
                patch.setattr(optimizer, "_optimizer_step_pre_hooks", OrderedDict())
            self._sums = self._update(self._batch)


def train(home, squares, options, monkeypatch, graph=None):
    config = tiny_config(home)
    for section, values in options.items():
        config = replace(config, **{section: replace(getattr(config, section), **values)})
    with monkeypatch.context() as patch:
        if graph:
            patch.setattr(updates, "uses_cuda_graphs", lambda state: True)
            patch.setattr(updates, "CudaGraph", graph)
        return read_state(launch(config, squares))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_replayed_steps_are_those_of_their_batch(options, squares, tmp_path, monkeypatch):
    monkeypatch.setattr(ReplayedOnCpu, "replays", 0)
    replayed = train(tmp_path / "replayed", squares, options, monkeypatch, ReplayedOnCpu)
    assert states_equal(replayed, train(tmp_path / "eager", squares, options, monkeypatch))
    # Three steps of each kind come before: with and without an update of G, or a penalty.
    kinds = 2 if {"G_every", "penalty_every"} & {k for o in options.values() for k in o} else 1
    assert ReplayedOnCpu.replays == replayed["step"] - 3 * kinds


def test_a_graph_is_captured_anew_when_scheduled_values_change(squares, tmp_path, monkeypatch):
    """10 steps of 12 images are 10 intervals; the graph of the 4th is the first."""
    captured = []

    class Recorded(ReplayedOnCpu):
        def __init__(self, update, batch):
            super().__init__(update, batch)
            captured.append(update.__self__._state.step)

    options = {"schedule": {"kimg": 0.12, "lr_factor": 0.1, "gamma_factor": 0.1}}
    replayed = train(tmp_path / "replayed", squares, options, monkeypatch, Recorded)
    assert states_equal(replayed, train(tmp_path / "eager", squares, options, monkeypatch))
    assert captured == [3, 4, 5, 6, 7, 8, 9, 10]


def test_no_step_is_replayed_while_a_checkpoint_is_copied(squares, tmp_path, monkeypatch):
    copy_tensors = CheckpointWriter._copy_tensors

    def copy_slowly(self, value, previous):
        if isinstance(value, dict):
            time.sleep(0.02)  # several steps, in all
        return copy_tensors(self, value, previous)

    monkeypatch.setattr(CheckpointWriter, "_copy_tensors", copy_slowly)
    for home, graph in ((tmp_path / "replayed", ReplayedOnCpu), (tmp_path / "eager", None)):
        train(home, squares, {}, monkeypatch, graph)
    replayed, eager = (
        read_state(tiny_config(tmp_path / name).run_folder() / "checkpoint_0000000010")
        for name in ("replayed", "eager")
    )
    assert states_equal(replayed, eager)


def test_steps_that_cannot_be_captured_are_one_line_with_the_way_out(
    squares, tmp_path, monkeypatch
):
    def fail(update, batch):
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nCompile with ...")
        except RuntimeError:
            raise RuntimeError("capture failed due to a previous error") from None

    with pytest.raises(UserError, match=r"\(operation not .* capturing\); .*cuda_graphs false"):
        train(tmp_path, squares, {}, monkeypatch, fail)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_checkpoint_resumes_in_another_memory_layout(name, squares, tmp_path, monkeypatch):
    """Fused optimizers pair weights and moments by their place in memory."""

    def train_with(layout, home):
        with monkeypatch.context() as patch:
            patch.setattr(networks, "memory_format", lambda *_: layout)
            config = replace(tiny_config(home), optimizer=OptimizerConfig(name, 1e-3, 1e-3))
            half = replace(config, train=replace(config.train, kimg=0.12))
            launch(half, squares)
            patch.undo()
            return read_state(launch(config, squares))

    other = train_with(torch.contiguous_format, tmp_path / "other")
    same = train_with(torch.channels_last, tmp_path / "same")
    for net in ("G", "D"):
        for key, weight in same[net].items():
            torch.testing.assert_close(other[net][key], weight, rtol=1e-4, atol=1e-6)
