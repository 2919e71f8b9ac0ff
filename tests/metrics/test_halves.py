"""Each replicate is the metric itself of that half: checked one by one."""

import numpy as np
import pytest
import torch

from ganray.metrics import intervals
from ganray.metrics.diversity import effective_rank, normalize_rows, vendi_from_moments, vendi_score
from ganray.metrics.frechet import Moments, kid
from ganray.metrics.precision_recall import Manifold, manifold_scores

HALVES = 5


def cloud(count, rng_seed, copies=0):
    rows = torch.randn(count, 6, generator=torch.Generator().manual_seed(rng_seed))
    rows[:copies] = rows[copies : 2 * copies]
    return rows


@pytest.mark.parametrize("copies", [0, 30])
def test_manifold_scores_of_each_half(copies):
    real, fake = Manifold.fit(cloud(150, 0)), 0.8 * cloud(201, 1, copies)
    found = intervals.half_sample_manifold(real, fake, HALVES, rng_seed=7)
    chosen = intervals._random_halves(201, HALVES, 7)
    assert (chosen.sum(1) == 100).all()
    for i, half in enumerate(chosen):
        scores = manifold_scores(real, Manifold.fit(fake[half]))
        for name, values in found.items():
            assert values[i] == pytest.approx(getattr(scores, name), abs=1e-12), name
    assert found["recall"].std() > 0


def test_one_image_has_no_scatter():
    real, fake = Manifold.fit(cloud(50, 0)), torch.ones(40, 6)
    found = intervals.half_sample_manifold(real, fake, HALVES, rng_seed=0)
    assert all(np.ptp(values) < 1e-12 for values in found.values())
    assert found["recall"][0] == 0


def test_moments_and_kid_of_each_half():
    real, fake = cloud(90, 0), cloud(123, 1)
    ranks = intervals.half_sample_moments(effective_rank, fake, HALVES, rng_seed=3)
    vendis = intervals.half_sample_moments(
        vendi_from_moments, normalize_rows(fake), HALVES, rng_seed=3
    )
    kids = intervals.half_sample_kid(real, fake, HALVES, rng_seed=3)
    parts = intervals._parts(len(fake), 3)
    assert sorted(torch.cat(parts).tolist()) == list(range(123))
    for i, chosen in enumerate(intervals._random_halves(len(parts), HALVES, 3)):
        rows = fake[torch.cat([p for p, taken in zip(parts, chosen, strict=True) if taken])]
        assert ranks[i] == pytest.approx(effective_rank(Moments.of(rows)))
        assert vendis[i] == pytest.approx(vendi_score(rows))
    # kid's halves have one draw more, the whole, in front.
    for i, chosen in enumerate(intervals._random_halves(len(parts), HALVES + 1, 3)[1:]):
        rows = fake[torch.cat([p for p, taken in zip(parts, chosen, strict=True) if taken])]
        assert kids[i] == pytest.approx(kid(real, rows), abs=1e-12)


def test_halves_scatter_as_new_samples_do():
    """The point of it: halves around the whole as the whole around the truth."""
    real, sets = Manifold.fit(cloud(200, 0)), [0.6 * cloud(200, 100 + i) for i in range(40)]
    whole = [manifold_scores(real, Manifold.fit(fakes)).coverage for fakes in sets]
    spread = [
        intervals.half_sample_manifold(real, fakes, 60, rng_seed=0)["coverage"].std()
        for fakes in sets[:5]
    ]
    assert np.mean(spread) == pytest.approx(np.std(whole), rel=0.35)
