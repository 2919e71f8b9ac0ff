"""The discriminator check: passes a D that tells images from noise, fails one that cannot."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ganray.config.schema import LossConfig, NetworkConfig, OptimizerConfig
from ganray.data.reader import ShardedDataset
from ganray.data.writer import write_shards
from ganray.training import journal
from ganray.training.discriminator_check import check_discriminator
from tests.conftest import Squares, cured_config, tiny_config


def mlp(home, lr=1e-3, conditional=False, **train):
    return replace(
        tiny_config(home, **train),
        network=NetworkConfig(kind="mlp", width_G=16, width_D=16, conditional=conditional),
        loss=LossConfig(),
        optimizer=OptimizerConfig(lr_G=lr, lr_D=lr),
    )


@pytest.fixture(scope="module")
def enough(tmp_path_factory):
    """Squares enough that D is as sure of those that it has not learned."""
    folder = tmp_path_factory.mktemp("enough") / "set"
    write_shards(Squares(400), folder, processes=1)
    return folder


def check(config, squares, reader=ShardedDataset):
    with closing(journal.Journal(config.run_folder())) as log:
        return check_discriminator(config, reader(squares), log)


@pytest.mark.parametrize("conditional", [False, True])
def test_D_separates_squares_from_noise_and_stops_there(enough, tmp_path, conditional):
    config = mlp(tmp_path, kimg=12, conditional=conditional)
    verdict = check(config, enough)
    assert verdict.separates
    assert verdict.real_prob > 0.99
    assert verdict.noise_prob < 0.01
    assert verdict.images_seen < 12_000
    seen, probs = journal.history(config.run_folder(), "check/real_prob")
    assert seen[0] == 12
    assert seen[-1] == verdict.images_seen
    assert probs[-1] == pytest.approx(verdict.real_prob, abs=1e-6)
    picture = np.asarray(Image.open(verdict.figure).convert("RGB"))
    assert picture.shape == (480, 1320, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 500  # the noise is in it


def test_a_D_that_hardly_learns_fails(squares, tmp_path):
    verdict = check(mlp(tmp_path, lr=1e-7, kimg=0.24), squares)
    assert not verdict.separates
    assert verdict.images_seen == 240
    assert "after 240 images" in str(verdict)


def test_a_D_that_sees_packs_is_judged_by_packs(squares, tmp_path):
    verdict = check(cured_config(tmp_path, kimg=0.08), squares)
    assert verdict.images_seen == 80
    assert 0 < verdict.noise_prob < verdict.real_prob < 1


@pytest.mark.parametrize(
    "how",
    [{}, {"residence": "device"}, {"shuffle": "blocks"}, {"crop": 8}, {"flip": True}],
    ids=lambda how: "-".join(map(str, how)) or "streamed",
)
def test_D_never_learns_from_what_it_is_judged_by(squares, tmp_path, how):
    read = []

    class Recorder(ShardedDataset):
        def read_batch(self, ids, out):
            read.append(ids.tolist())
            super().read_batch(ids, out)

    config = mlp(tmp_path, lr=1e-7, kimg=0.36)  # four times through the others
    config = replace(config, data=replace(config.data, **how))
    check(config, squares, Recorder)
    held = read[0] + read[1]  # of a shard each
    learned = {id for batch in read[2:] for id in batch}
    assert len(held) == 20
    assert sorted(held + list(learned)) == list(range(100))


def test_too_few_images_to_hold_some_back_are_one_clear_line(tmp_path):
    write_shards(Squares(4), tmp_path / "set", processes=1)
    with pytest.raises(ValueError, match=r"holds out 4 images in groups of 4, but there are 4 "):
        check(cured_config(tmp_path), tmp_path / "set")


def test_a_D_that_only_remembers_is_not_right_about_what_was_held_back(squares, tmp_path):
    verdict = check(mlp(tmp_path, kimg=12), squares)  # 80 of them, 150 times each
    assert not verdict.separates
    _, learned = journal.history(tmp_path / "runs" / "tiny", "D/real_prob")
    assert learned[-1] > 0.99 > verdict.real_prob
