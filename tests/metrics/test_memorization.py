"""Measures of memorization on clouds of points with known answers."""

import pytest
import torch

from ganray.metrics.memorization import (
    TrainingNeighbors,
    TrainingSpacing,
    copying_statistic,
    nearest_rows,
)

T, H, N, DIMENSIONS = 1_000, 500, 1_000, 8


def cloud(count, rng_seed):
    return torch.randn(count, DIMENSIONS, generator=torch.Generator().manual_seed(rng_seed))


TRAINING, HELD_OUT, NEW = cloud(T, 0), cloud(H, 1), cloud(N, 2)
CONTROL = TrainingNeighbors.of(HELD_OUT, TRAINING, HELD_OUT, torch.arange(H))
RADIUS = CONTROL.radius()


def neighbors(samples):
    return TrainingNeighbors.of(samples, TRAINING, HELD_OUT)


def authenticity(found):
    return TrainingSpacing.of(found.nearest, TRAINING).authenticity(found)


def test_nearest_rows_are_those_of_all_distances():
    excluded = torch.arange(H)
    distances, rows = nearest_rows(HELD_OUT, HELD_OUT, excluded)
    expected = torch.cdist(HELD_OUT.double(), HELD_OUT.double()).fill_diagonal_(torch.inf).min(1)
    assert torch.equal(rows, expected.indices)
    torch.testing.assert_close(distances, expected.values**2)
    distances, rows = nearest_rows(TRAINING, TRAINING)
    assert torch.equal(rows, torch.arange(T))
    assert (distances == 0).all()


def test_a_held_out_image_is_compared_as_a_sample_is():
    """The search that leaves out row i equals a search among the others."""
    for i in (0, 77, H - 1):
        rest = torch.cat([HELD_OUT[:i], HELD_OUT[i + 1 :]])
        expected = TrainingNeighbors.of(HELD_OUT[i : i + 1], TRAINING, rest)
        assert CONTROL.distances[i] == expected.distances[0]
        assert CONTROL.held_out_distances[i] == expected.held_out_distances[0]
        assert CONTROL.odds == expected.odds
    assert CONTROL.memorized(RADIUS).low < 0 < CONTROL.memorized(RADIUS).high


def test_held_out_images_that_are_training_images_are_seen():
    both = TRAINING[:H] + 0.01 * HELD_OUT
    control = TrainingNeighbors.of(both, TRAINING, both, torch.arange(H))
    assert control.memorized(RADIUS).low > 0.9


def test_all_copies_are_memorized():
    copies = neighbors(TRAINING)
    assert torch.equal(copies.nearest, torch.arange(T))
    assert copies.memorized(RADIUS).value == 1
    assert copies.odds == 2
    assert authenticity(copies).value == 0
    assert copying_statistic(copies, CONTROL) < -20
    # The neighbor of the nearest training image is another one.
    spacing = TrainingSpacing.of(copies.nearest, TRAINING)
    assert (spacing.neighbors != copies.nearest).all()
    assert (spacing.distances > 0).all()


def test_copies_of_repeated_training_images_are_memorized():
    twice = torch.cat([TRAINING, TRAINING + 0.01 * NEW])
    found = TrainingNeighbors.of(TRAINING + 0.02 * NEW.flip(0), twice, HELD_OUT)
    assert found.memorized(RADIUS).low > 0.9


def test_jittered_copies_are_memorized():
    jittered = neighbors(TRAINING + 0.1 * NEW)
    assert jittered.memorized(RADIUS).low > 0.9
    assert authenticity(jittered).high < 0.1


@pytest.mark.parametrize("samples", [NEW, 0.5 * NEW, NEW + 1], ids=["new", "narrow", "shifted"])
def test_new_samples_are_not_memorized_whatever_their_quality(samples):
    found, control = neighbors(samples).memorized(RADIUS), CONTROL.memorized(RADIUS)
    assert found.value == pytest.approx(0, abs=0.15)
    assert found.low < max(0, control.high)


def test_the_share_of_copies_is_estimated():
    found = neighbors(torch.cat([TRAINING[:300], NEW[300:]])).memorized(RADIUS)
    assert found.low < 0.3 < found.high
    assert found.low > 0


def test_bad_samples_look_authentic_and_far_from_training_images():
    bad = neighbors(NEW * 3)
    assert authenticity(bad).value > 0.95
    assert copying_statistic(bad, CONTROL) > 20


def test_images_far_from_all_others_say_nothing():
    """Their nearest image is one of a few at the edge, which may all be training images."""
    far = neighbors(torch.full((N, DIMENSIONS), 100.0))
    assert far.nearest.unique().numel() == 1
    assert far.memorized(RADIUS).value == 0


def test_the_closest_samples_come_first():
    copies = torch.tensor([3, 7])
    samples = NEW[:10].clone()
    samples[copies] = TRAINING[:2]
    found = neighbors(samples)
    closest = TrainingSpacing.of(found.nearest, TRAINING).closest(found)
    assert sorted(closest[:2].tolist()) == [3, 7]
