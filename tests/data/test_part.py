"""A part of a set reads as the set does, and asks for no more than it needs."""

import numpy as np
import torch

from ganray.data.part import Part
from ganray.data.reader import ShardReader


def test_a_part_has_the_images_and_labels_of_its_ids(squares):
    whole, ids = ShardReader(squares), np.array([3, 4, 50, 99])
    part = Part(whole, ids)
    assert len(part) == 4
    found, expected = (torch.empty(2, 16, 16, 3, dtype=torch.uint8) for _ in range(2))
    part.gather(np.array([3, 1]), found)
    whole.gather(np.array([99, 4]), expected)
    assert torch.equal(found, expected)
    assert part.rows(np.array([3, 1])).labels.tolist() == [1, 0]
    assert part.class_names == ("small", "large")


def test_a_part_expects_what_its_images_lie_in(squares, monkeypatch):
    whole = ShardReader(squares)
    asked: list[range] = []
    monkeypatch.setattr(whole, "expect", asked.extend)
    Part(whole, np.array([3, 4, 50, 99])).expect([range(2, 4), range(0, 2)])
    assert asked == [range(50, 100), range(3, 5)]
