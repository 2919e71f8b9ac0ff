from pathlib import Path

import numpy as np
import pytest
import torch

from ganray.data.reader import ShardedDataset
from tests.data.conftest import SHARD_1, flip, gathered


def test_a_good_set_is_read_as_ever(shards_folder: Path):
    reader = ShardedDataset(shards_folder, verify="first-touch", on_damage="skip")
    assert torch.equal(gathered(reader), gathered(ShardedDataset(shards_folder)))
    assert reader.replaced == 0


def test_a_flipped_bit_is_named_when_its_block_is_first_read(folder: Path):
    flip(folder / SHARD_1, row=65)
    reader = ShardedDataset(folder, verify="first-touch")
    gathered(reader, [0, 70, 133])  # rows 0-63 of that shard are sound
    with pytest.raises(ValueError, match=r"shard-00001\.h5: rows 64-69 are damaged; delete it"):
        gathered(reader, [134])
    assert len(gathered(ShardedDataset(folder), [134])) == 1  # without the check it goes unnoticed


@pytest.mark.parametrize("side_by_side", [True, False])
def test_others_stand_in_for_damaged_rows(folder: Path, capsys, side_by_side: bool):
    flip(folder / SHARD_1, row=3)  # its block is images 70-133
    reader = ShardedDataset(folder, on_damage="skip", side_by_side=side_by_side)
    images, sound = gathered(reader), gathered(ShardedDataset(folder))
    assert torch.equal(images[:70], sound[:70])
    assert torch.equal(images[134:], sound[134:])
    # The image a block further on: for 70 + k it is 134 + k, and past the end it begins anew.
    expected = [i + 64 if i + 64 < 150 else i + 64 - 150 for i in range(70, 134)]
    assert torch.equal(images[70:134], sound[expected])
    assert reader.replaced == 64
    assert reader.annotations(np.array([70])).ids == reader.annotations(np.array([134])).ids
    said = capsys.readouterr().err
    assert said.count("skipped") == 1
    assert "shard-00001.h5: rows 0-63 are damaged" in said


def test_the_stand_in_does_not_depend_on_what_was_read_before(folder: Path):
    flip(folder / SHARD_1, row=3)
    forwards, backwards = (ShardedDataset(folder, on_damage="skip") for _ in range(2))
    one = [gathered(forwards, [i])[0] for i in range(150)]
    other = [gathered(backwards, [i])[0] for i in reversed(range(150))]
    assert all(torch.equal(a, b) for a, b in zip(one, reversed(other), strict=True))


@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_a_lost_shard_is_stood_in_for(folder: Path, capsys, how: str):
    path = folder / SHARD_1
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=SHARD_1):
        ShardedDataset(folder, verify="first-touch")
    reader = ShardedDataset(folder, on_damage="skip")
    assert SHARD_1 in capsys.readouterr().err
    images = gathered(reader)
    assert reader.replaced == 70
    assert set(reader.annotations(np.arange(150)).ids) == {*range(1, 71), *range(141, 151)}
    assert images.shape == (150, 64, 64, 3)


def test_a_set_without_a_sound_image_is_refused(folder: Path):
    for shard, rows in (("shard-00000.h5", (0, 64)), (SHARD_1, (0, 64)), ("shard-00002.h5", (0,))):
        for row in rows:
            flip(folder / shard, row=row)
    with pytest.raises(ValueError, match="no image is sound"):
        gathered(ShardedDataset(folder, on_damage="skip"), [0])
