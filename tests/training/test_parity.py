"""The same numbers under every launcher and on any number of ranks."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ganray.training import journal
from ganray.training.launch import launch
from ganray.training.state import read_state
from tests.conftest import augmented_config, regularized_config, tiny_config

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def one_rank(squares, tmp_path_factory):
    """Runs on one process: even batch, odd batch, conditional, regularized and augmented."""
    home = tmp_path_factory.mktemp("one")
    torch.set_num_threads(1)
    launch(tiny_config(home, name="two"), squares)
    launch(tiny_config(home, name="elastic"), squares)
    launch(tiny_config(home, name="odd", batch_size=13), squares)
    launch(regularized_config(home), squares)
    launch(augmented_config(home), squares)
    labeled = tiny_config(home, name="labels")
    launch(replace(labeled, network=replace(labeled.network, conditional=True)), squares)
    return home


@pytest.fixture(scope="module")
def two_ranks(squares, tmp_path_factory):
    """The same runs under torchrun on two gloo ranks, the elastic one on 1, 2 and 1 again."""
    home = tmp_path_factory.mktemp("two")
    torch.set_num_threads(1)
    launch(tiny_config(home, name="elastic", kimg=0.06), squares)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(HERE / "two_ranks.py"), str(squares), str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    launch(tiny_config(home, name="elastic"), squares)
    return home


def facts(home, rank=0):
    return json.loads((home / f"facts-{rank}.json").read_text())


@pytest.mark.parametrize("name", ["two", "elastic", "odd", "labels", "regularized", "augmented"])
def test_two_ranks_train_like_one(one_rank, two_ranks, name):
    penalties = ["loss/gp"] if name == "regularized" else []
    for metric in ("loss/D", "loss/G", "loss/r1", "discriminator/real_prob", *penalties):
        one, two = (journal.history(home / "runs" / name, metric) for home in (one_rank, two_ranks))
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_allclose(one[1], two[1], rtol=2e-5)
    states = [
        read_state(sorted((home / "runs" / name).glob("checkpoint_*"))[-1])
        for home in (one_rank, two_ranks)
    ]
    assert states[0]["step"] == states[1]["step"]
    for network in ("G", "D", "G_ema"):
        for key, value in states[0][network].items():
            torch.testing.assert_close(states[1][network][key], value, rtol=1e-4, atol=2e-5)


def test_the_number_of_workers_is_a_metric(two_ranks):
    images, workers = journal.history(two_ranks / "runs" / "elastic", "system/workers")
    assert dict(zip(images, workers, strict=True)) == {60: 1, 120: 2, 180: 2, 240: 1}


def test_only_gradients_of_the_trained_network_are_reduced(two_ranks):
    reduced = facts(two_ranks)["reduced_bytes"]
    assert reduced["D_in_D_step"] == reduced["D_size"] > 0
    assert reduced["G_in_G_step"] == reduced["G_size"] > 0
    assert reduced["D_in_G_step"] == 0
    assert reduced["G_in_D_step"] == 0


def test_gradients_are_reduced_in_parts_while_the_backward_pass_goes_on(two_ranks):
    """Torch's buckets of 25 MiB would reduce all of D at the end of its backward pass."""
    assert facts(two_ranks)["D_bytes"] < 25 * 2**20
    assert facts(two_ranks)["buckets"] > 1


def test_gradients_may_be_reduced_in_bf16(two_ranks):
    """The first step's gradients are rounded to 8 bits, so the weights after it are close only."""
    fp32, bf16 = (
        read_state(sorted((two_ranks / "runs" / name).glob("checkpoint_*"))[-1])["D"]
        for name in ("two", "bf16")
    )
    for key, value in fp32.items():
        assert not torch.equal(bf16[key], value)
        torch.testing.assert_close(bf16[key], value, rtol=0, atol=2e-2)


def test_means_weight_all_images_equally(two_ranks):
    for rank in (0, 1):
        assert facts(two_ranks, rank)["x"] == pytest.approx(13 / 3)
        assert facts(two_ranks, rank)["rank0"] == "rank 0"


def test_a_slow_rank_is_seen_by_its_own_time(two_ranks):
    """A step takes both ranks equally long. D runs twice in its own update, on real and fake."""
    fast, slow = (facts(two_ranks, rank)["speed/D_compute_ms"] for rank in (0, 1))
    assert slow == 5 * fast > 0


def test_only_rank_0_writes(two_ranks):
    events = [event for event, _ in journal.read(two_ranks / "runs" / "two")]
    steps = [event["images"] for event in events if event["name"] == "metrics"]
    assert steps == [60, 120, 180, 240]
    assert len(list((two_ranks / "runs" / "two").glob("checkpoint_*"))) == 2


def test_nan_on_one_rank_sends_both_back_to_the_checkpoint(two_ranks):
    last = sorted((two_ranks / "runs" / "nan").glob("checkpoint_*"))[-1]
    state = read_state(last)
    assert (state["step"], state["rollbacks"]) == (20, 1)
