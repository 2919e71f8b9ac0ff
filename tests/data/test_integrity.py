from pathlib import Path

import pytest
import torch

from ganray.data.reader import ShardedDataset
from ganray.errors import UserError
from tests.data.conftest import SHARD_1, flip, gathered


def test_an_intact_set_is_read_as_without_verification(shards_folder: Path):
    reader = ShardedDataset(shards_folder, verify="first-touch")
    for _ in range(2):
        assert torch.equal(gathered(reader), gathered(ShardedDataset(shards_folder)))


@pytest.mark.parametrize("side_by_side", [True, False])
def test_a_flipped_bit_is_named_when_its_block_is_first_read(folder: Path, side_by_side: bool):
    flip(folder / SHARD_1, row=65)
    reader = ShardedDataset(folder, verify="first-touch", side_by_side=side_by_side)
    gathered(reader, [0, 70, 133])  # rows 0-63 of that shard are intact
    for _ in range(2):
        with pytest.raises(UserError, match=r"shard-00001\.h5: rows 64-69 are damaged; delete it"):
            gathered(reader, [134])
    assert len(gathered(ShardedDataset(folder), [134])) == 1  # unnoticed without verification


@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_a_missing_or_truncated_shard_is_named(folder: Path, how: str):
    path = folder / SHARD_1
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-5000])
    for verify in ("sizes", "first-touch"):
        with pytest.raises(UserError, match=SHARD_1):
            ShardedDataset(folder, verify=verify)
