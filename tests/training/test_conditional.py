"""Conditional training: every image keeps its label through sampling and checkpoints."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ganray.data.prepare import DatasetPlan
from ganray.data.reader import ShardedDataset
from ganray.evaluation.datasets import RunDatasets
from ganray.training import loop
from ganray.training.launch import launch
from ganray.training.plan import Workers, plan_rows
from ganray.training.state import TrainState, generator_from_checkpoint, read_state
from tests.conftest import tiny_config


@pytest.fixture
def conditional(tmp_path):
    config = tiny_config(tmp_path)
    return replace(config, network=replace(config.network, conditional=True))


@pytest.mark.parametrize("shuffle", ["full", "blocks"])
def test_the_labels_of_a_step_belong_to_its_images(conditional, squares, shuffle):
    config = replace(conditional, data=replace(conditional.data, shuffle=shuffle, block_rows=4))
    images = ShardedDataset(squares)
    state = TrainState(config, images.image_shape, torch.device("cpu"), classes=2)
    sampler = loop.build_sampler(config.data, images, config.train.rng_seed)
    with loop.build_loader(config, images, sampler, state.device, 0) as batches:
        for _ in range(12):  # more than one epoch
            batch = next(batches).numpy()
            (labels,) = loop.rank_labels(state, images, sampler)
            # Class 1 has large squares: 81 bright pixels instead of 16.
            large = (batch[..., 0] > 100).sum((1, 2)) == 81
            np.testing.assert_array_equal(labels.argmax(1).numpy(), large)
            state.step += 1


def test_a_checkpoint_stores_the_number_of_classes(conditional, squares):
    folder = launch(conditional, squares)
    assert read_state(folder)["classes"] == 2
    G = generator_from_checkpoint(folder)
    assert G(torch.randn(3, conditional.latent.size + 2)).shape == (3, 3, 16, 16)


def test_the_sample_grid_has_a_column_for_each_class(conditional):
    state = TrainState(conditional, (16, 16, 3), torch.device("cpu"), classes=2)
    assert state.columns == 2
    assert state.generate_grid().shape == (16, 16, 16, 3)
    assert TrainState(conditional, (16, 16, 3), torch.device("cpu"), classes=1000).columns == 8


def test_images_without_labels_are_rejected_by_the_plan(conditional):
    def plan(classes):
        images = DatasetPlan("squares", 9, (16, 16, 3), (16, 16, 3), "/s", 9, classes)
        return plan_rows(RunDatasets(conditional, images, images), Workers(1, False, 1))

    with pytest.raises(ValueError, match=r"network.conditional=true needs class labels"):
        plan(classes=0)
    assert "and one of 2 labels" in plan(classes=2)["networks"]
