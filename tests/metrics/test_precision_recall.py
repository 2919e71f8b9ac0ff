"""Precision, recall, density and coverage against torch-fidelity, prdc and small cases by hand."""

import contextlib
import io
from dataclasses import astuple

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from torch_fidelity.metric_prc import calculate_precision_recall_full

from ganray.metrics import matrices
from ganray.metrics.matrices import BLOCK_BYTES, blocks, squared_distances
from ganray.metrics.precision_recall import Manifold, ideal_coverage, manifold_scores


def normal(n, d, rng_seed=0, dtype=torch.float64):
    return torch.randn(n, d, dtype=dtype, generator=torch.Generator().manual_seed(rng_seed))


def scores(reference, samples, fit_k=5, **k):
    return manifold_scores(Manifold.fit(reference, fit_k), Manifold.fit(samples, fit_k), **k)


def by_prdc(reference, samples, k):
    with contextlib.redirect_stdout(io.StringIO()):  # prdc prints
        result = compute_prdc(reference.numpy(), samples.numpy(), k)
    return tuple(result[name] for name in ("precision", "recall", "density", "coverage"))


def by_torch_fidelity(reference, samples, k=3):
    return calculate_precision_recall_full(samples, reference, k)  # precision, recall


def clusters(modes, n, rng_seed=0):
    """Draw rows around the first `modes` of ten centers, like features of a classifier."""
    centers = 6 * normal(10, 16, 99)
    which = torch.randint(modes, (n,), generator=torch.Generator().manual_seed(rng_seed))
    return centers[which] + normal(n, 16, rng_seed + 1)


@pytest.mark.parametrize("d", [1, 2, 16, 128])
@pytest.mark.parametrize("scale", [0.5, 0.9, 1.0])
def test_scores_equal_torch_fidelity_and_prdc(d, scale):
    reference, samples = normal(300, d), scale * normal(260, d, 1) + 0.1
    result = scores(reference, samples)
    assert astuple(result)[:2] == pytest.approx(by_torch_fidelity(reference, samples), abs=1e-6)
    assert astuple(result)[:2] == pytest.approx(by_prdc(reference, samples, 3)[:2], abs=1e-12)
    assert astuple(result)[2:4] == pytest.approx(by_prdc(reference, samples, 5)[2:], abs=1e-12)


def test_scores_with_other_k_equal_the_peers():
    reference, samples = normal(200, 4), 0.8 * normal(240, 4, 1)
    result = scores(reference, samples, precision_recall_k=1, density_coverage_k=2)
    assert astuple(result)[:2] == pytest.approx(by_torch_fidelity(reference, samples, 1), abs=1e-6)
    assert astuple(result)[2:4] == pytest.approx(by_prdc(reference, samples, 2)[2:], abs=1e-12)


@pytest.mark.parametrize("at_origin", [True, False])
def test_closed_and_open_balls_differ_for_duplicates(at_origin):
    reference = normal(500, 8)
    reference[:100] = 0 if at_origin else reference[0]  # balls of radius 0
    result = scores(reference, reference)
    assert by_torch_fidelity(reference, reference) == (1.0, 1.0)
    assert by_prdc(reference, reference, 3)[:2] == (0.8, 0.8)
    assert astuple(result)[:2] == (1.0, 1.0)
    assert astuple(result)[2:4] == pytest.approx(by_prdc(reference, reference, 5)[2:], abs=1e-12)
    assert result.coverage == 0.8


def test_scores_on_a_line_by_hand():
    reference = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # distances to the nearest: 1, 1, 2, 4
    samples = torch.tensor([[2.0], [5.0], [20.0]])  # 3, 3, 15
    result = manifold_scores(
        Manifold.fit(reference, 1),
        Manifold.fit(samples, 1),
        precision_recall_k=1,
        density_coverage_k=1,
    )
    # 2 lies on the boundary of 1's ball and in 3's, 5 on the boundary of 3's and in 7's.
    assert result.precision == 2 / 3
    # All are within 3 of 2 or 5, or within 15 of 20.
    assert result.recall == 1.0
    # Boundaries do not count: 2 is in 3's ball, 5 in 7's.
    assert result.density == 2 / 3
    assert result.coverage == 2 / 4


def test_nearest_are_squared_and_ascending():
    manifold = Manifold.fit(torch.tensor([[0.0], [1.0], [3.0], [3.0]]), k=2)
    expected = torch.tensor([[1.0, 9.0], [1.0, 4.0], [0.0, 4.0], [0.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(manifold.nearest, expected)


def test_only_recall_and_coverage_detect_a_collapse():
    reference, good, collapsed = clusters(10, 600), clusters(10, 600, 5), clusters(1, 600, 5)
    diverse, few = scores(reference, good), scores(reference, collapsed)
    assert min(diverse.recall, diverse.coverage) > 0.8
    assert few.recall < 0.2
    assert few.coverage < 0.2
    assert few.precision > diverse.precision - 0.1
    assert few.density > 0.9


def test_one_repeated_image_has_the_best_precision_and_density():
    reference = normal(400, 16)
    result = scores(reference, torch.zeros(400, 16, dtype=torch.float64))
    assert result.precision == 1.0
    assert result.density > 10
    assert result.recall == 0.0
    result = scores(reference, reference[:1].expand(400, 16))
    assert (result.precision, result.recall) == (1.0, 1 / 400)
    assert result.density >= 1 / 5
    assert result.coverage < 0.1


@pytest.mark.parametrize(("references", "samples"), [(400, 400), (400, 100), (100, 400)])
def test_samples_of_the_reference_distribution_reach_the_ideal(references, samples):
    # The formula holds for any distribution; 60 draws, with an error of about .015 each.
    drawn = [
        scores(normal(references, 2, 2 * i), normal(samples, 2, 2 * i + 1)) for i in range(100, 160)
    ]
    coverage = np.mean([result.coverage for result in drawn])
    assert coverage == pytest.approx(ideal_coverage(references, samples), abs=0.01)
    assert np.mean([result.density for result in drawn]) == pytest.approx(1, abs=0.02)


def test_ideal_coverage_of_small_sets():
    assert ideal_coverage(2, 1, k=1) == 0.5  # the nearest is a reference or the sample
    assert ideal_coverage(10, 0, k=5) == 0.0
    assert ideal_coverage(10**6, 10**6, k=5) == pytest.approx(1 - 2**-5, abs=1e-6)


@pytest.mark.parametrize("block_rows", [1, 7])
def test_blocks_do_not_change_scores(block_rows, monkeypatch):
    reference, samples = clusters(10, 151), clusters(7, 130, 3)
    reference[:20], samples[:20] = reference[20:40], reference[:20]
    expected = scores(reference, samples)
    monkeypatch.setattr(matrices, "BLOCK_BYTES", 8 * 151 * block_rows)
    assert scores(reference, samples) == expected


def test_order_does_not_change_scores():
    reference, samples = clusters(10, 150), clusters(7, 130, 3)
    shuffled = (rows[torch.randperm(len(rows))] for rows in (reference, samples))
    assert scores(*shuffled) == scores(reference, samples)


@pytest.mark.parametrize("move", [100.0, -1e4])
def test_a_far_origin_does_not_change_scores(move):
    # With float32 products, as in torch-fidelity, this changes which images are neighbors.
    reference, samples = normal(300, 16, dtype=torch.float32), normal(300, 16, 1, torch.float32)
    reference, samples = reference + move, samples + move
    assert scores(reference, samples) == scores(reference.double(), samples.double())
    assert scores(reference, samples) == scores(reference - move, samples - move)


def test_near_duplicates_keep_their_distances():
    x = 1e3 + normal(50, 64)
    y = x + 1e-7 * normal(50, 64, 1)
    center = x.mean(0)
    expected = (x[:, None] - y).square().sum(2)
    actual = squared_distances(x - center, y - center)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=0)
    assert (squared_distances(x - center, x - center).diagonal() == 0).all()


@pytest.mark.parametrize("spread", [0.0, 1e-7, 1e-3, 1.0])
def test_distances_of_clustered_rows_equal_the_differences(spread):
    x = normal(3, 8)[torch.arange(60) % 3] + spread * normal(60, 8, 1)
    expected = (x[:, None] - x).square().sum(2)
    torch.testing.assert_close(squared_distances(x, x), expected, rtol=1e-8, atol=0)


def test_blocks_fit_the_bound_and_cover_all_rows_once():
    for rows, columns in [(50_000, 50_000), (7, 3), (0, 5), (5, 0), (3, BLOCK_BYTES)]:
        slices = blocks(rows, columns)
        covered = [i for part in slices for i in range(part.start, part.stop)]
        assert covered == list(range(rows))
        longest = max((part.stop - part.start for part in slices), default=0)
        assert 8 * longest * columns <= max(BLOCK_BYTES, 8 * columns)
    assert len(blocks(50_000, 50_000)) < 2_000


def test_an_error_names_value_and_rule():
    good = normal(10, 3)
    for bad in (good.half(), good[0], good[:, :0], good.long()):
        with pytest.raises(ValueError, match=r"features: .* must be float32 or float64 \(n, d\)"):
            Manifold.fit(bad)
    with pytest.raises(ValueError, match="features: 5 rows; must be at least 6"):
        Manifold.fit(good[:5], k=5)
    with pytest.raises(ValueError, match="k=0; must be at least 1"):
        Manifold.fit(good, k=0)
    with pytest.raises(ValueError, match="1 rows with inf or nan"):
        Manifold.fit(good.index_fill(0, torch.tensor([4]), torch.nan))
    with pytest.raises(ValueError, match="samples: 2 columns, but the other matrix has 3"):
        scores(normal(20, 3), normal(20, 2))
