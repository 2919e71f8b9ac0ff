"""A part of a set reads as the set does, and asks for no more than it needs."""

import numpy as np
import torch

from ganray.data.reader import ShardedDataset
from ganray.data.subset import Subset


def test_a_part_has_the_images_and_labels_of_its_ids(squares):
    whole, ids = ShardedDataset(squares), np.array([3, 4, 50, 99])
    part = Subset(whole, ids)
    assert len(part) == 4
    found, expected = (torch.empty(2, 16, 16, 3, dtype=torch.uint8) for _ in range(2))
    part.read_batch(np.array([3, 1]), found)
    whole.read_batch(np.array([99, 4]), expected)
    assert torch.equal(found, expected)
    assert part.annotations(np.array([3, 1])).labels.tolist() == [1, 0]
    assert part.class_names == ("small", "large")


def test_a_part_expects_what_its_images_lie_in(squares, monkeypatch):
    whole = ShardedDataset(squares)
    asked: list[range] = []
    monkeypatch.setattr(whole, "prefetch", asked.extend)
    Subset(whole, np.array([3, 4, 50, 99])).prefetch([range(2, 4), range(0, 2)])
    assert asked == [range(50, 100), range(3, 5)]
