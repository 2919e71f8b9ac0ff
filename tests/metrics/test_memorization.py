"""Measures of memorization on clouds of points with known answers."""

import pytest
import torch

from ganray.metrics.memorization import TrainingNeighbours, copying_statistic, nearest_rows

T, H, N, DIMENSIONS = 1_000, 500, 1_000, 8


def cloud(count, rng_seed):
    return torch.randn(count, DIMENSIONS, generator=torch.Generator().manual_seed(rng_seed))


TRAINING, HELD_OUT, NEW = cloud(T, 0), cloud(H, 1), cloud(N, 2)
CONTROL = TrainingNeighbours.of(HELD_OUT, TRAINING, HELD_OUT, are_held_out=True)


def neighbours(samples):
    return TrainingNeighbours.of(samples, TRAINING, HELD_OUT)


def test_nearest_rows_are_those_of_all_distances():
    excluded = torch.arange(H)
    distances, rows = nearest_rows(HELD_OUT, HELD_OUT, excluded)
    expected = torch.cdist(HELD_OUT.double(), HELD_OUT.double()).fill_diagonal_(torch.inf).min(1)
    assert torch.equal(rows, expected.indices)
    torch.testing.assert_close(distances, expected.values**2)
    assert torch.equal(nearest_rows(TRAINING, TRAINING)[1], torch.arange(T))


def test_all_copies_are_memorized():
    copies = neighbours(TRAINING)
    assert torch.equal(copies.nearest, torch.arange(T))
    assert copies.memorized().value == 1
    assert copies.odds == 2
    assert copies.authenticity().value == 0
    assert copying_statistic(copies, CONTROL) < -20
    # The neighbour of the nearest training image is another one.
    assert (copies.neighbours != copies.nearest).all()
    assert (copies.spacing > 0).all()


def test_jittered_copies_are_memorized():
    jittered = neighbours(TRAINING + 0.1 * NEW)
    assert jittered.memorized().low > 0.9
    assert jittered.authenticity().high < 0.1


@pytest.mark.parametrize("samples", [NEW, 0.5 * NEW, NEW + 1], ids=["new", "narrow", "shifted"])
def test_new_samples_are_not_memorized_whatever_their_quality(samples):
    found, control = neighbours(samples).memorized(), CONTROL.memorized()
    assert found.value == pytest.approx(0, abs=0.15)
    assert found.low < max(0, control.high)


def test_the_share_of_copies_is_estimated():
    found = neighbours(torch.cat([TRAINING[:300], NEW[300:]])).memorized()
    assert found.low < 0.3 < found.high
    assert found.low > 0


def test_bad_samples_look_authentic_and_far_from_training_images():
    bad = neighbours(NEW * 3)
    assert bad.authenticity().value > 0.95
    assert copying_statistic(bad, CONTROL) > 20


def test_images_far_from_all_others_say_nothing():
    """Their nearest image is one of a few at the edge, which may all be training images."""
    far = neighbours(torch.full((N, DIMENSIONS), 100.0))
    assert far.nearest.unique().numel() == 1
    assert far.memorized().value == 0


def test_the_closest_samples_come_first():
    copies = torch.tensor([3, 7])
    samples = NEW[:10].clone()
    samples[copies] = TRAINING[:2]
    assert sorted(neighbours(samples).closest()[:2].tolist()) == [3, 7]
