from contextlib import closing
from pathlib import Path

import pytest
import torch

from ganray.data import in_memory
from ganray.data.in_memory import InMemoryDataset
from ganray.data.loader import Loader
from ganray.data.reader import ShardedDataset
from ganray.data.sampler import DeterministicSampler

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ORDERS = [DeterministicSampler(150, 5), DeterministicSampler(150, 5, block=16, window=2)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 3)])
def test_it_gives_what_streaming_gives(
    shards_folder: Path,
    order: DeterministicSampler,
    rank: int,
    world_size: int,
    device: str,
    monkeypatch,
):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    monkeypatch.setattr(in_memory, "_CHUNK_BYTES", 20 * 64 * 64 * 3)  # eight chunks
    reader = ShardedDataset(shards_folder)
    share = {"batch_size": 16, "rank": rank, "world_size": world_size, "start_step": 3}
    with (
        Loader(reader, order, device=device, **share) as stream,
        closing(InMemoryDataset(reader, order, device=device, **share)) as kept,
    ):
        for _ in range(150):  # more than one load of ids
            assert torch.equal(next(stream), next(kept))


def test_a_set_that_does_not_fit_is_rejected(shards_folder: Path, monkeypatch):
    monkeypatch.setattr(in_memory, "_free_bytes", lambda device: 1_900_000)
    with pytest.raises(ValueError, match=r"150 images need 0\.0 GB, but cpu has 0\.0 GB free; use"):
        InMemoryDataset(
            ShardedDataset(shards_folder),
            ORDERS[0],
            batch_size=16,
            rank=0,
            world_size=1,
            device="cpu",
        )
