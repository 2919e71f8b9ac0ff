"""Updates as CUDA graphs, as far as a CPU can run them: batches, kinds of steps, giving up."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from ganray.training import updates
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
}


class ReplayedOnCpu(CudaGraph):
    """A graph that instead of replaying kernels calls the updates again, on its own batch."""

    replays = 0

    def __init__(self, update, batch):
        self._batch, self._graph = batch.clone(), SimpleNamespace(replay=self._replay)
        self._update = update

    def _replay(self):
        ReplayedOnCpu.replays += 1
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


def test_training_goes_on_without_a_graph_that_cannot_be_captured(
    squares, tmp_path, monkeypatch, capsys
):
    def fail_in_the_update_of_G(update, batch):
        update.__self__._state.D.requires_grad_(False)
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with ...")

    graph = train(tmp_path / "graph", squares, {}, monkeypatch, fail_in_the_update_of_G)
    output = capsys.readouterr().out
    assert output.count("cannot be captured as a CUDA graph") == 1
    assert "stream is capturing" in output
    assert "Compile with" not in output
    assert states_equal(graph, train(tmp_path / "eager", squares, {}, monkeypatch))
