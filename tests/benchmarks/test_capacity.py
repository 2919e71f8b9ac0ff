"""The capacity table: what is derived follows from what was measured."""

import pytest
import torch

from ganray.config.presets import CELEBA
from ganray.training.checkpoints import write_checkpoint
from ganray.training.state import TrainState
from tests.benchmarks import capacity

ROWS = {(row.card.name, row.gpus, row.batch): row for row in capacity.rows()}


def test_one_h200_is_what_was_measured():
    row = ROWS["H200", 1, 128]
    assert row.images_per_s == pytest.approx(12_075, rel=1e-3)
    assert row.hours(25_000) == pytest.approx(25e6 / 12_075 / 3600, rel=1e-3)
    assert [row for row in ROWS.values() if row.basis == "measured"] == [row]


def test_more_gpus_scale_less_than_linearly_and_not_with_the_batch_of_one():
    """DDP submits kernels one by one, which takes the host longer than the GPU."""
    one, eight = ROWS["H200", 1, 128], ROWS["H200", 8, 1024]
    assert one.images_per_s < eight.images_per_s < 8 * 128 / capacity.EAGER_S
    assert ROWS["H200", 8, 128].images_per_s < one.images_per_s
    assert (eight.nodes, ROWS["H200", 64, 8192].nodes, ROWS["L4", 64, 8192].nodes) == (1, 8, 64)


def test_no_card_is_expected_to_be_faster_than_its_data_sheet_says():
    assert ROWS["A100 80 GB", 1, 128].images_per_s == pytest.approx(12_075 * 156 / 495, rel=1e-3)
    assert ROWS["H100", 1, 128].images_per_s == pytest.approx(12_075 * 3.35 / 4.8, rel=1e-3)


def test_the_size_of_a_checkpoint_is_that_of_its_tensors(tmp_path):
    config = CELEBA["cpu32"]
    state = TrainState(config, (32, 32, 3), torch.device("cpu"))
    for optimizer, net in ((state.G_optimizer, state.G), (state.D_optimizer, state.D)):
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    write_checkpoint(state.content(), config, tmp_path / "checkpoint")
    size = (tmp_path / "checkpoint" / "state.pt").stat().st_size
    assert capacity.checkpoint_bytes(state.G, state.D) == pytest.approx(size, rel=0.05)
