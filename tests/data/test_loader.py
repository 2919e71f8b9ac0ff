import gc
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from ganray.data import loader as loader_module
from ganray.data.loader import Loader
from ganray.data.reader import ShardedDataset
from ganray.data.sampler import DeterministicSampler
from ganray.data.transforms import to_float

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def reader(shards_folder: Path) -> ShardedDataset:
    return ShardedDataset(shards_folder)


def make_loader(reader: ShardedDataset, **options) -> Loader:
    defaults = {"batch_size": 16, "rank": 0, "world_size": 1, "device": "cpu"}
    return Loader(reader, DeterministicSampler(150, rng_seed=5), **(defaults | options))


def batches(reader: ShardedDataset, count: int, **options) -> list[torch.Tensor]:
    with make_loader(reader, **options) as loader:
        return [next(loader).to("cpu", copy=True) for _ in range(count)]


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ganray-loader"]


@pytest.mark.parametrize("device", DEVICES)
def test_batches_are_those_of_the_order(reader: ShardedDataset, device: str):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    images = torch.empty(150, 64, 64, 3, dtype=torch.uint8)
    reader.read_batch(np.arange(150), images)
    # 150 batches of 16 are 16 epochs, and every buffer of the ring: each holds 8 batches
    for step, batch in enumerate(batches(reader, 150, device=device)):
        assert torch.equal(batch, images[DeterministicSampler(150, 5).indices(16 * step, 16)])


def test_starting_at_a_step_is_skipping_to_it(reader: ShardedDataset):
    skipped = batches(reader, 8)[5:]
    for batch, expected in zip(batches(reader, 3, start_step=5), skipped, strict=True):
        assert torch.equal(batch, expected)


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_the_ranks_batches_join_to_the_batch_of_one_rank(reader: ShardedDataset, world_size: int):
    ranks = [batches(reader, 4, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, expected in enumerate(batches(reader, 4)):
        assert torch.equal(torch.cat([rank[step] for rank in ranks]), expected)


def test_a_batch_is_unchanged_until_the_next_one(reader: ShardedDataset):
    with make_loader(reader, prefetch=1) as loader:
        for _ in range(18):  # more than two buffers of 8
            batch = next(loader)
            before = batch.clone()
            threading.Event().wait(0.005)  # time for the thread to fill every buffer it may
            assert torch.equal(batch, before)


def test_memory_is_reused(reader: ShardedDataset):
    with make_loader(reader, prefetch=2) as loader:
        assert len({next(loader).data_ptr() for _ in range(200)}) == 3 * 8


def test_an_error_in_the_thread_comes_out_of_next(reader: ShardedDataset, monkeypatch):
    monkeypatch.setattr(reader, "read_batch", lambda ids, out: 1 / 0)
    loader = make_loader(reader)
    with pytest.raises(ZeroDivisionError):
        next(loader)
    assert not loader_threads()
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)


def test_no_thread_outlives_its_loader(reader: ShardedDataset):
    with make_loader(reader) as loader:
        next(loader)
        assert len(loader_threads()) == 1
    assert not loader_threads()
    loader.close()

    forgotten = make_loader(reader)
    next(forgotten)
    del forgotten
    gc.collect()
    assert not loader_threads()


def test_a_program_may_end_without_closing_its_loader(shards_folder: Path):
    code = f"""
from ganray.data import loader as loader_module
from ganray.data.loader import Loader
from ganray.data.sampler import DeterministicSampler
from ganray.data.reader import ShardedDataset
reader = ShardedDataset({str(shards_folder)!r})
loader = Loader(reader, DeterministicSampler(150, 0), batch_size=99)
for _ in range(20):
    next(loader)
"""
    root = Path(loader_module.__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 2, "world_size": 3}, "batch_size=2 leaves some of 3 ranks"),
        ({"rank": 1}, "rank=1 is not in a world of 1"),
        ({"prefetch": 0}, "prefetch=0"),
        ({"start_step": -1}, "start_step=-1"),
    ],
)
def test_wrong_numbers_are_rejected(reader: ShardedDataset, options, message: str):
    with pytest.raises(ValueError, match=message):
        make_loader(reader, **options)
    assert not loader_threads()


@pytest.mark.parametrize("low", [-1.0, 0.0])
def test_to_float_reaches_exactly_from_low_to_one(low: float):
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    expected = torch.tensor([low, low + 0.2 * (1 - low), 1.0])
    scaled = to_float(images, low).flatten()
    assert scaled[0] == low
    assert scaled[2] == 1
    torch.testing.assert_close(scaled, expected)


def test_to_float_moves_channels_first_and_leaves_the_memory_channels_last():
    images = torch.randint(0, 256, (2, 5, 4, 3), dtype=torch.uint8)
    scaled = to_float(images)
    assert scaled.shape == (2, 3, 5, 4)
    assert scaled.dtype == torch.float32
    assert scaled.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(scaled, images.float().permute(0, 3, 1, 2) / 127.5 - 1)
    assert images.dtype == torch.uint8
