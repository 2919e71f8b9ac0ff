"""The discriminator check passes a D that separates images from noise and fails another."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ganray.config.schema import LossConfig, NetworkConfig, OptimizerConfig
from ganray.data.reader import ShardedDataset
from ganray.data.writer import write_shards
from ganray.errors import UserError
from ganray.training import journal
from ganray.training.discriminator_check import check_discriminator
from ganray.training.run_folder import RunFolder
from tests.conftest import Squares, regularized_config, tiny_config


def mlp_config(home, lr=1e-3, conditional=False, **train):
    return replace(
        tiny_config(home, **train),
        network=NetworkConfig(kind="mlp", width_G=16, width_D=16, conditional=conditional),
        loss=LossConfig(),
        optimizer=OptimizerConfig(lr_G=lr, lr_D=lr),
    )


@pytest.fixture(scope="module")
def many_squares(tmp_path_factory):
    """Enough squares for D to generalize to held-out ones."""
    folder = tmp_path_factory.mktemp("many") / "set"
    write_shards(Squares(400), folder, processes=1)
    return folder


def check(config, squares, reader=ShardedDataset):
    log = journal.Journal(RunFolder(config.run_folder()))
    return check_discriminator(config, reader(squares), log)


@pytest.mark.parametrize("conditional", [False, True])
def test_D_separates_squares_from_noise_and_training_stops(many_squares, tmp_path, conditional):
    config = mlp_config(tmp_path, kimg=12, conditional=conditional)
    result = check(config, many_squares)
    assert result.separates
    assert result.real_prob > 0.99
    assert result.noise_prob < 0.01
    assert result.images_seen < 12_000
    seen, probs = journal.history(config.run_folder(), "check/real_prob")
    assert seen[0] == 12
    assert seen[-1] == result.images_seen
    assert probs[-1] == pytest.approx(result.real_prob, abs=1e-6)
    figure = np.asarray(Image.open(result.figure).convert("RGB"))
    assert figure.shape == (480, 1320, 3)
    assert len(np.unique(figure.reshape(-1, 3), axis=0)) > 500  # it contains the noise


def test_a_D_that_hardly_learns_fails_the_check(squares, tmp_path):
    result = check(mlp_config(tmp_path, lr=1e-7, kimg=0.24), squares)
    assert not result.separates
    assert result.images_seen == 240
    assert "after 240 images" in str(result)


def test_a_packed_D_is_evaluated_on_packs(squares, tmp_path):
    result = check(regularized_config(tmp_path, kimg=0.08), squares)
    assert result.images_seen == 80
    assert 0 < result.noise_prob < result.real_prob < 1


@pytest.mark.parametrize(
    "data",
    [{}, {"residence": "device"}, {"shuffle": "blocks"}, {"crop": 8}, {"flip": True}],
    ids=lambda data: "-".join(map(str, data)) or "streamed",
)
def test_D_is_never_trained_on_held_out_images(squares, tmp_path, data):
    read = []

    class Recorder(ShardedDataset):
        def read_batch(self, ids, out):
            read.append(ids.tolist())
            super().read_batch(ids, out)

    config = mlp_config(tmp_path, lr=1e-7, kimg=0.36)  # four epochs of the training images
    config = replace(config, data=replace(config.data, **data))
    check(config, squares, Recorder)
    held_out = read[0] + read[1]  # one read per shard
    trained_on = {index for batch in read[2:] for index in batch}
    assert len(held_out) == 20
    assert sorted(held_out + list(trained_on)) == list(range(100))


def test_too_few_images_to_hold_out_are_rejected(tmp_path):
    write_shards(Squares(4), tmp_path / "set", processes=1)
    with pytest.raises(UserError, match=r"holds out 4 images in groups of 4, but there are 4 "):
        check(regularized_config(tmp_path), tmp_path / "set")


def test_an_overfitted_D_fails_on_held_out_images(squares, tmp_path):
    result = check(mlp_config(tmp_path, kimg=12), squares)  # 150 epochs of 80 images
    assert not result.separates
    _, training_probs = journal.history(tmp_path / "runs" / "tiny", "discriminator/real_prob")
    assert training_probs[-1] > 0.99 > result.real_prob
