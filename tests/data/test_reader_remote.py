"""A reader whose shards stand elsewhere: it begins with the first, and keeps to its room."""

import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from ganray.data.format import Manifest
from ganray.data.integrity import open_shard
from ganray.data.loader import Loader
from ganray.data.reader import ShardedDataset
from ganray.data.remote import RemoteShards
from ganray.data.sampler import DeterministicSampler
from ganray.data.writer import write_shards
from tests.conftest import Squares
from tests.data.conftest import gathered

ROWS = 64
COUNT = 10 * ROWS - 13


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten shards of 64 images of 16x16x3; the last is short. Not to be changed."""
    folder = tmp_path_factory.mktemp("far") / "set"
    write_shards(Squares(COUNT), folder, rows_per_shard=ROWS, processes=1)
    return folder


def remote(far: Path, cache: Path, shards: int | None = None) -> RemoteShards:
    size = max(shard.bytes for shard in Manifest.read(far).shards)
    return RemoteShards(f"file://{far}", cache, limit_bytes=shards and shards * size)


def standing(shards: RemoteShards) -> set[str]:
    return {path.name for path in shards.folder.glob("*.h5")}


@pytest.mark.parametrize("side_by_side", [True, False])
def test_it_reads_what_a_local_reader_reads(far: Path, tmp_path: Path, side_by_side: bool):
    with remote(far, tmp_path) as shards:
        reader = ShardedDataset(shards, side_by_side=side_by_side)
        assert not standing(shards)
        ids = np.random.default_rng(0).integers(0, COUNT, 200).tolist()
        assert torch.equal(gathered(reader, ids), gathered(ShardedDataset(far), ids))
        np.testing.assert_array_equal(reader.annotations(np.array(ids)).ids, ids)


def test_only_the_shards_of_a_batch_are_fetched(far: Path, tmp_path: Path):
    with remote(far, tmp_path) as shards:
        gathered(ShardedDataset(shards), [0, 5, 3 * ROWS])
        assert standing(shards) == {"shard-00000.h5", "shard-00003.h5"}


def test_training_starts_on_the_first_shards(far: Path, tmp_path: Path):
    """The far shards but those of the first window are missing at first, and come in time."""
    order = DeterministicSampler(COUNT, 1, block=ROWS, window=2)
    blocks = list(order.blocks_from(0))
    late = tmp_path / "late"
    shutil.copytree(far, late)
    hidden = [late / f"shard-{block:05d}.h5" for block in blocks[2:]]
    for path in hidden:
        path.rename(path.with_suffix(".hidden"))
    with remote(late, tmp_path / "cache") as shards:
        reader = ShardedDataset(shards)
        ids = order.indices(0, 2 * ROWS)
        out = torch.empty(len(ids), 16, 16, 3, dtype=torch.uint8)
        reader.read_batch(ids, out)
        assert torch.equal(out, gathered(ShardedDataset(far), ids.tolist()))
        for path in hidden:
            path.with_suffix(".hidden").rename(path)
        assert len(gathered(reader)) == COUNT


@pytest.mark.parametrize("limit", [4, None])  # a batch may reach over two windows of two shards
def test_three_epochs_of_a_loader_in_a_small_cache(far: Path, tmp_path: Path, limit: int | None):
    order = DeterministicSampler(COUNT, 1, block=ROWS, window=2)
    local = gathered(ShardedDataset(far))
    most = 0
    with remote(far, tmp_path, limit) as shards:
        share = {"batch_size": 8, "rank": 0, "world_size": 1, "device": "cpu"}
        with Loader(ShardedDataset(shards), order, prefetch=1, **share) as loader:
            for step in range(3 * COUNT // 8):
                assert torch.equal(next(loader), local[order.rank_indices(step, 8, 0, 1)])
                most = max(most, len(standing(shards)))
    assert most == (limit or 10)


def test_a_batch_that_needs_more_shards_than_fit_says_so(far: Path, tmp_path: Path):
    with remote(far, tmp_path, 3) as shards, pytest.raises(ValueError, match=r"data\.cache_gb"):
        gathered(ShardedDataset(shards))


def test_annotations_of_all_images_need_little_room_in_the_cache(far: Path, tmp_path: Path):
    ids = np.random.default_rng(0).permutation(COUNT)
    with remote(far, tmp_path, 3) as shards:
        np.testing.assert_array_equal(ShardedDataset(shards).annotations(ids).ids, ids)
        assert len(standing(shards)) == 3


def test_a_pickled_reader_fetches_for_itself(far: Path, tmp_path: Path):
    with remote(far, tmp_path) as shards:
        copy = pickle.loads(pickle.dumps(ShardedDataset(shards)))
        assert torch.equal(gathered(copy, [3]), gathered(ShardedDataset(far), [3]))
        assert copy.remote is not shards
        copy.remote.close()


def test_damage_after_arrival_is_noticed(far: Path, tmp_path: Path):
    with remote(far, tmp_path) as shards:
        path = shards.fetch(0)
        data = bytearray(path.read_bytes())
        data[open_shard(shards.manifest.shard_specs(shards.folder)[0]).start + 20_000] ^= 1
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"shard-00000\.h5: rows \d+-\d+ are damaged"):
            gathered(ShardedDataset(shards, verify="first-touch"), list(range(ROWS)))


def test_two_loaders_of_a_node_share_the_cache(far: Path, tmp_path: Path):
    order = DeterministicSampler(COUNT, 1, block=ROWS, window=2)
    local, errors = gathered(ShardedDataset(far)), []

    def work(rank: int) -> None:
        share = {"batch_size": 8, "rank": rank, "world_size": 2, "device": "cpu"}
        with (
            remote(far, tmp_path) as shards,
            Loader(ShardedDataset(shards), order, **share) as loader,
        ):
            for step in range(COUNT // 8):
                expected = local[order.rank_indices(step, 8, rank, 2)]
                if not torch.equal(next(loader), expected):
                    errors.append((rank, step))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
