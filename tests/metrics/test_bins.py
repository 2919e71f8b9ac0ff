"""Bins against scikit-learn, the z-test by hand, the divergence against scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import chi2_contingency
from sklearn.cluster import KMeans

from ganray.metrics.bins import Bins, bin_scores, z_scores


def clusters(modes, n, rng_seed=0):
    """Annotations around the first `modes` of ten centres."""
    rng = np.random.default_rng(rng_seed)
    centres = 6 * np.random.default_rng(99).normal(size=(10, 8))
    rows = centres[rng.integers(modes, size=n)] + rng.normal(size=(n, 8))
    return torch.from_numpy(rows)


@pytest.fixture(scope="module")
def bins():
    return Bins.fit(clusters(10, 3000), bins=30)


def test_z_by_hand():
    # Shares .5 and .3, pooled .4 of 100 + 100: error sqrt(.4 * .6 * .02).
    z = z_scores([50, 50], [30, 70])
    np.testing.assert_allclose(z, [-0.2 / math.sqrt(0.0048), 0.2 / math.sqrt(0.0048)], rtol=1e-12)


def test_z_squared_is_the_chi_square_of_the_bin():
    real, fake = np.array([40, 60, 25, 75]), np.array([31, 20, 9, 5])
    for i, z in enumerate(z_scores(real, fake)):
        table = [[real[i], real.sum() - real[i]], [fake[i], fake.sum() - fake[i]]]
        assert z**2 == pytest.approx(chi2_contingency(table, correction=False).statistic, rel=1e-9)


def test_bins_that_neither_or_only_one_fills():
    np.testing.assert_array_equal(z_scores([10, 0, 0], [10, 0, 0]), [0, 0, 0])
    z = z_scores([500, 500, 0], [1000, 0, 0])
    assert z[0] > 20
    assert z[1] < -20
    assert z[2] == 0


def test_many_resamples_at_once_equal_one_by_one():
    rng = np.random.default_rng(0)
    real, fakes = rng.multinomial(900, np.ones(9) / 9), rng.multinomial(400, np.ones(9) / 9, 5)
    np.testing.assert_array_equal(z_scores(real, fakes), [z_scores(real, row) for row in fakes])


def test_js_is_scipys_distance_squared():
    real, fake = [10, 20, 70, 0], [5, 0, 40, 5]
    assert bin_scores(real, fake).js == pytest.approx(jensenshannon(real, fake) ** 2, abs=1e-12)
    assert bin_scores([1, 0], [0, 1]).js == pytest.approx(math.log(2))
    assert bin_scores(real, real).js == 0


def test_the_threshold_decides_and_is_stated():
    real, fake = [500, 500], [465, 535]  # |z| = 1.57
    strict, loose = bin_scores(real, fake, z_threshold=1.5), bin_scores(real, fake)
    assert (strict.different, strict.share, strict.z_threshold) == (2, 1.0, 1.5)
    assert (loose.different, loose.share, loose.z_threshold) == (0, 0.0, 3.0)
    assert (loose.bins, loose.reals, loose.fakes) == (2, 1000, 1000)
    assert bin_scores(real, fake, z_threshold=1.959964).different_by_chance == pytest.approx(0.1)


def test_a_perfect_generator_scores_what_chance_predicts():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(50, 20))
    drawn = [
        bin_scores(
            rng.multinomial(20_000, shares), rng.multinomial(5_000, shares), z_threshold=1.96
        )
        for _ in range(200)
    ]
    assert np.mean([s.js for s in drawn]) == pytest.approx(drawn[0].js_by_chance, rel=0.05)
    # 200 means of 50 bins at 5 %: 2.5 +- .11
    assert np.mean([s.different for s in drawn]) == pytest.approx(2.5, abs=0.4)


def test_bins_are_those_of_scikit_learn(bins):
    real, fake = clusters(10, 3000), clusters(10, 500, 1)
    means = KMeans(30, n_init=1, max_iter=100, random_state=0).fit(real.numpy())
    np.testing.assert_allclose(bins.centres, means.cluster_centers_)
    np.testing.assert_array_equal(bins.counts, np.bincount(means.labels_, minlength=30))
    np.testing.assert_array_equal(
        bins.count(fake), np.bincount(means.predict(fake.numpy()), minlength=30)
    )


def test_the_seed_makes_the_bins(bins):
    again, other = Bins.fit(clusters(10, 3000), 30), Bins.fit(clusters(10, 3000), 30, rng_seed=1)
    assert torch.equal(again.centres, bins.centres)
    assert not torch.equal(other.centres, bins.centres)


def test_counts_add_up_whatever_the_order_and_the_batches(bins):
    fake = clusters(10, 500, 1)
    whole = bins.count(fake)
    assert whole.sum() == 500
    np.testing.assert_array_equal(sum(bins.count(part) for part in fake.split(7)), whole)
    np.testing.assert_array_equal(bins.count(fake.flip(0)), whole)
    np.testing.assert_array_equal(bins.count(fake[:0]), np.zeros(30))


def test_a_collapse_fills_the_wrong_bins(bins):
    healthy = bin_scores(bins.counts, bins.count(clusters(10, 1000, 1)))
    lost_one = bin_scores(bins.counts, bins.count(clusters(9, 1000, 1)))
    collapsed = bin_scores(bins.counts, bins.count(clusters(1, 1000, 1)))
    assert healthy.different <= 1
    assert healthy.js < 3 * healthy.js_by_chance
    assert lost_one.different >= 2
    assert collapsed.share > 0.9
    assert collapsed.js > 0.4
    # What was lost is below, what is repeated above.
    z = z_scores(bins.counts, bins.count(clusters(1, 1000, 1)))
    assert (z < -3).sum() > (z > 3).sum() > 0


def test_there_are_no_more_bins_than_different_reals(capsys):
    rows = clusters(10, 3)
    bins = Bins.fit(rows[torch.arange(60) % 3], bins=5)
    assert "bins: 3 instead of 5, as too few of 60 reals differ" in capsys.readouterr().out
    assert bins.counts.tolist() == [20, 20, 20]
    torch.testing.assert_close(bins.centres.sort(0).values, rows.sort(0).values)
    fakes = bins.count(rows[torch.arange(60) % 2])
    assert sorted(fakes) == [0, 30, 30]
    scores = bin_scores(bins.counts, fakes)
    # |z| = 1.90 for 30 beside 20 of 60, and 4.90 for none.
    assert (scores.bins, scores.different) == (3, 1)


def test_refuses_features_that_cannot_fill_the_bins():
    with pytest.raises(ValueError, match="bins=1; must be at least 2"):
        Bins.fit(clusters(10, 50), bins=1)
    with pytest.raises(ValueError, match="features: 20 rows; must be at least 30"):
        Bins.fit(clusters(10, 20), bins=30)


def test_refuses_counts_that_do_not_fit(bins):
    with pytest.raises(ValueError, match="features: 3 columns beside 8"):
        bins.count(torch.zeros(4, 3))
    for real, fake in [([1, 2], [1, 2, 3]), ([1, 2], [0, 0]), ([0, 0], [1, 2]), ([[1, 2]], [1, 2])]:
        with pytest.raises(ValueError, match=r"counts: real .* in the same bins"):
            bin_scores(real, fake)
    with pytest.raises(ValueError, match="z_threshold=-1; must not be negative"):
        bin_scores([1, 2], [1, 2], z_threshold=-1)
