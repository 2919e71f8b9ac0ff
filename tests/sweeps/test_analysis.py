"""Ranking, paired differences and explained variance match textbooks and SciPy."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from ganray.metrics.intervals import Estimate, replicate_interval
from ganray.sweeps.analysis import HIGHER, RESIDUAL, _jackknife, anova, compare, ranking
from ganray.sweeps.axes import Axis, Level
from ganray.sweeps.design import make_plan
from ganray.sweeps.family import count_comparisons, paired_intervals
from ganray.sweeps.results import Results, RunResult

SECTIONS = "latent.size", "optimizer.name", "data.size"


def results_of(status="finished", **metrics):
    """A sweep with these metrics (axis 1, ..., seeds); nan is a run that has not started."""
    shape = next(iter(metrics.values())).shape
    axes = [
        Axis(name, tuple(Level("abcdefghijklmn"[k] + str(i), {name: k}) for k in range(size)))
        for i, (name, size) in enumerate(zip(SECTIONS, shape[:-1], strict=False))
    ]
    plan = make_plan("s", axes, shape[-1])
    by_trial = {}
    for trial in plan.trials:
        place = [a.labels.index(label) for a, label in zip(axes, trial.levels, strict=True)]
        at = (*place, trial.rng_seed)
        values = {m: float(v[at]) for m, v in metrics.items() if np.isfinite(v[at])}
        if values:
            by_trial[trial.name] = RunResult(status, values)
    return Results(plan, by_trial)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def ends(estimate):
    return [estimate.value, estimate.low, estimate.high]


def test_settings_are_ranked_by_mean_rank_and_a_low_kl_is_good():
    recall = np.array([[0.2], [0.4], [0.4]])
    kl = np.array([[0.1], [0.2], [0.3]])
    rows = ranking(results_of(recall=recall, kl_corrected=kl))
    # recall: 3, 1.5, 1.5 (a tie); KL: 1, 2, 3
    assert [(row.levels, row.rank) for row in rows] == [
        (("b0",), 1.75),
        (("a0",), 2.0),
        (("c0",), 2.25),
    ]
    assert "coverage" not in rows[0].means
    assert (rows[0].n, rows[0].diverged) == (1, 0)


def test_means_are_over_seeds_and_intervals_are_clipped_to_the_range_of_the_metric():
    rows = ranking(results_of(coverage=np.array([[0.0, 0.1, 0.2]]), vendi_share=noise(1, 3) * 9))
    plain = replicate_interval([0.0, 0.1, 0.2])
    assert plain.low < 0
    assert rows[0].means["coverage"] == Estimate(plain.value, 0.0, plain.high, 3)
    assert rows[0].means["vendi_share"].high > 1
    one = ranking(results_of(coverage=np.array([[0.5]])))[0]
    assert one.means["coverage"] == Estimate(0.5, 0.0, 1.0, 1)


def test_half_life_is_averaged_over_collapsed_runs_only():
    lives = np.array([[40.0, math.nan, 60.0, math.nan]])
    row = ranking(results_of(half_life_kimg=lives, recall=np.full((1, 4), 0.5)))[0]
    assert (row.means["half_life_kimg"].value, row.means["half_life_kimg"].n) == (50, 2)
    assert row.n == 4


def test_diverged_runs_count_and_failed_runs_do_not():
    results = results_of(recall=np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]]))
    by_trial = dict(results.by_trial)
    by_trial["s.a0-s0"] = RunResult("diverged", {"recall": 0.0})
    by_trial |= {f"s.b0-s{i}": RunResult("failed", {"recall": 0.9}) for i in range(2)}
    first, second = ranking(Results(results.plan, by_trial))
    assert (first.levels, first.n, first.failed, first.diverged) == (("b0",), 1, 2, 0)
    assert (second.levels, second.n, second.failed, second.diverged) == (("a0",), 3, 0, 1)


def test_settings_are_compared_with_the_best_within_seeds():
    shared = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    behind = shared - 0.05 - 0.001 * np.arange(5)
    rows = ranking(results_of(coverage=np.array([shared, behind])))
    assert [row.ties_best for row in rows] == [True, False]
    shuffled = np.array([shared, behind[[4, 2, 0, 1, 3]]])
    assert [row.ties_best for row in ranking(results_of(coverage=shuffled))] == [True, True]


def test_two_seeds_and_settings_without_shared_seeds_show_no_difference():
    assert all(r.ties_best for r in ranking(results_of(coverage=np.array([[1.0, 1], [0, 0]]))))
    apart = np.full((2, 6), math.nan)
    apart[0, :3], apart[1, 3:] = [0.8, 0.81, 0.82], [0.2, 0.21, 0.22]
    assert [r.ties_best for r in ranking(results_of(coverage=apart))] == [True, True]


def test_equal_mean_ranks_are_ordered_by_coverage():
    recall, coverage = np.array([[0.3], [0.2]]), np.array([[0.4], [0.5]])
    rows = ranking(results_of(recall=recall, coverage=coverage))
    assert [(row.levels, row.rank) for row in rows] == [(("b0",), 1.5), (("a0",), 1.5)]


def test_settings_that_collapse_by_chance_do_not_differ():
    """Of 14 equal settings one may collapse in all seeds and one in none, by Student's t apart."""
    found = 0
    for i in range(20):
        collapsed = np.random.default_rng(i).integers(0, 2, (14, 3))
        values = collapsed + 0.05 * noise(14, 3, seed=i)
        pairs = [stats.ttest_rel(*pair).pvalue for pair in itertools.combinations(values, 2)]
        found += min(pairs) * len(pairs) < 0.05
        results = results_of(coverage=values)
        assert not any(d.significant for d in compare(results, [(0, None)]))
        assert all(row.ties_best for row in ranking(results))
    assert found >= 3


def test_setting_that_is_better_in_one_metric_and_worse_in_none_ties_with_the_best():
    # First by two ranks of three; the other is far ahead in the third.
    near = np.array([[0.5, 0.51, 0.52], [0.49, 0.52, 0.5]])
    kl = np.array([[2.0, 2.1, 2.2], [0.1, 0.2, 0.3]])
    rows = ranking(results_of(recall=near, coverage=near, kl_corrected=kl))
    assert rows[0].levels == ("a0",)
    assert rows[1].ties_best


def test_setting_without_ranked_metrics_is_last_and_does_not_tie():
    coverage = np.array([[np.nan] * 3, [0.4, 0.5, 0.6]])
    pace = np.full((2, 3), 9.0)  # not ranked by
    rows = ranking(results_of(coverage=coverage, images_per_s=pace))
    assert [(row.levels, row.ties_best) for row in rows] == [(("b0",), True), (("a0",), False)]


def test_difference_of_two_levels_has_a_paired_t_interval_over_seeds():
    values = noise(2, 6)
    (d,) = compare(results_of(coverage=values), [(0, None)])
    assert (d.a, d.b, d.level) == ("a0", "b0", 0.96)
    oracle = stats.ttest_rel(*values).confidence_interval(0.96)
    mean = (values[0] - values[1]).mean()
    np.testing.assert_allclose(ends(d.value), [mean, oracle.low, oracle.high])
    np.testing.assert_allclose(ends(d.swapped().value), [-mean, -oracle.high, -oracle.low])
    assert d.significant == (oracle.low > 0 or oracle.high < 0)


def test_variance_of_a_difference_is_at_least_the_mean_one_with_box_degrees_of_freedom():
    values = noise(4, 5) * np.array([[0.1], [1], [1], [3]])
    gaps = np.array([a - b for a, b in itertools.combinations(values, 2)])
    centering = np.eye(4) - 1 / 4
    eigenvalues = np.linalg.eigvalsh(centering @ np.cov(values) @ centering)
    df = 4 * eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    own = gaps.var(1, ddof=1)
    assert own.min() < own.mean() < own.max()
    half = stats.t.ppf(0.95, df) * np.sqrt(np.maximum(own, own.mean()) / 5)
    mean, found, seeds = paired_intervals(gaps, 0.9)
    np.testing.assert_allclose(mean, gaps.mean(1))
    np.testing.assert_allclose(found, half)
    assert seeds.tolist() == [5] * 6


def test_all_axes_levels_and_metrics_are_one_family():
    values = noise(2, 3, 4)
    together = compare(results_of(coverage=values, recall=values), [(0, None), (1, None)])
    assert len(together) == count_comparisons([2, 3]) == 8
    assert {d.level for d in together} == {1 - 0.04 / 8}
    alone = compare(results_of(coverage=values), [(0, None)])
    assert alone[0].value.high < together[0].value.high


def test_levels_of_other_axes_are_not_replicates():
    gaps = noise(5)
    values = np.stack([np.tile(gaps, (8, 1)), np.zeros((8, 5))])  # 8 settings with the same noise
    (difference,) = compare(results_of(recall=values), [(0, None)])
    np.testing.assert_allclose(
        ends(difference.value), ends(replicate_interval(list(gaps), level=0.96))
    )


def test_only_runs_that_both_levels_have_are_compared():
    values = np.full((2, 2, 4), math.nan)
    values[0, 0] = [1, 2, 3, 4]
    values[1, 0] = [0, 0, 0, math.nan]  # the sweep was interrupted
    values[0, 1] = 100  # this setting has no counterpart
    results = results_of(recall=values)
    (difference,) = compare(results, [(0, None)])
    expected = replicate_interval([1.0, 2.0, 3.0], level=0.96)
    np.testing.assert_allclose(ends(difference.value), ends(expected))
    assert difference.value.n == 3
    assert not difference.significant
    only = np.full((2, 2, 3), math.nan)
    only[0, 0] = only[1, 1] = 1.0
    assert compare(results_of(recall=only), [(0, None)]) == []


def test_gap_of_one_seed_has_an_unbounded_interval():
    values = np.array([[0.1, 0.2, 0.3], [0.4, 0.6, 0.9], [0.5, math.nan, math.nan]])
    ab, ac, _ = compare(results_of(recall=values), [(0, None)])
    assert math.isfinite(ab.value.low)
    assert (ac.value.low, ac.value.n) == (-math.inf, 1)


def test_levels_can_be_compared_at_each_level_of_another_axis():
    values = noise(2, 3, 4)
    results = compare(results_of(recall=values), [(0, 1)], alpha=0.05)
    assert [d.at for d in results] == ["a1", "b1", "c1"]
    for i, d in enumerate(results):
        gap = replicate_interval(list(values[0, i] - values[1, i]), level=1 - 0.05 / 3)
        np.testing.assert_allclose(ends(d.value), ends(gap))


def test_rounding_errors_are_not_significant():
    values = np.stack([[[0.1] * 4, [0.2] * 4, [0.3] * 4], [[0.3] * 4, [0.1] * 4, [0.2] * 4]])
    (difference,) = compare(results_of(recall=values), [(0, None)])
    assert not difference.significant


# Crampton 1947, as R's ToothGrowth: growth by supplement and dose, 10 animals each.
TEETH = """
4.2 11.5 7.3 5.8 6.4 10 11.2 11.2 5.2 7 16.5 16.5 15.2 17.3 22.5 17.3 13.6 14.5 18.8 15.5
23.6 18.5 33.9 25.5 26.4 32.5 26.7 21.5 23.3 29.5 15.2 21.5 17.6 9.7 14.5 10 8.2 9.4 16.5 9.7
19.7 23.3 23.6 26.4 20 25.2 25.8 21.2 14.5 27.3 25.5 26.4 22.4 24.5 24.8 30.9 26.4 27.3 29.4 23
"""


def test_two_way_anova_matches_r():
    effects = anova(results_of(recall=np.array(TEETH.split(), float).reshape(2, 3, 10)), "recall")
    supplement, dose = SECTIONS[:2]
    assert [e.factors for e in effects] == [(supplement,), (dose,), (supplement, dose), RESIDUAL]
    squares = [205.35, 2426.434, 108.319, 712.106]  # as R's aov prints them
    np.testing.assert_allclose([e.eta2 for e in effects], np.array(squares) / sum(squares), 1e-5)
    assert sum(e.share.value for e in effects) == pytest.approx(1)


def test_one_way_anova_matches_scipy():
    values = noise(3, 5)
    axis, residual = anova(results_of(recall=values), "recall")
    between = stats.f_oneway(*values).statistic * 2
    assert axis.eta2 == pytest.approx(between / (between + 12))
    assert residual.eta2 == pytest.approx(12 / (between + 12))


def test_type_ii_squares_match_nested_least_squares():
    values = noise(2, 3, 2, 4)
    values[0, 1, 0] = math.nan
    values[1, 2, 1, 2:] = math.nan
    places = np.argwhere(np.isfinite(values))
    y = values[np.isfinite(values)]
    a, b, c = ((places[:, [i]] == np.arange(1, values.shape[i])) * 1.0 for i in range(3))
    ab, ac, bc = (
        np.stack([x[:, i] * z[:, j] for i in range(x.shape[1]) for j in range(z.shape[1])], 1)
        for x, z in ((a, b), (a, c), (b, c))
    )

    def left(*columns):
        x = np.hstack([np.ones((len(y), 1)), *columns])
        return ((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2).sum()

    cells = [cell[np.isfinite(cell)] for cell in values.reshape(-1, 4)]
    shared = sum(((cell - cell.mean()) ** 2).sum() for cell in cells if cell.size)
    squares = [
        left(b, c, bc) - left(a, b, c, bc),
        left(a, c, ac) - left(a, b, c, ac),
        left(a, b, ab) - left(a, b, c, ab),
        left(a, b, c, ac, bc) - left(a, b, c, ab, ac, bc),
        left(a, b, c, ab, bc) - left(a, b, c, ab, ac, bc),
        left(a, b, c, ab, ac) - left(a, b, c, ab, ac, bc),
        left(a, b, c, ab, ac, bc) - shared,
        shared,
    ]
    effects = anova(results_of(recall=values), "recall")
    np.testing.assert_allclose([e.eta2 for e in effects], np.array(squares) / left(), atol=1e-12)
    assert effects[-2].factors == HIGHER


def test_jackknife_of_a_mean_is_its_t_interval_and_weighs_seeds_by_their_runs():
    groups = np.array([0.2, 0.4, 0.5, 0.9])
    rest = (groups.sum() - groups) / 3
    (same,) = _jackknife(groups.mean(keepdims=True), rest[:, None], np.full(4, 6))
    np.testing.assert_allclose(ends(same), ends(replicate_interval(list(groups))))
    sizes = np.array([6, 6, 6, 1])
    total = (sizes * groups).sum()
    rest = (total - sizes * groups) / (19 - sizes)
    (uneven,) = _jackknife(np.array([total / 19]), rest[:, None], sizes)
    assert uneven.value == pytest.approx(total / 19)


def test_intervals_of_shares_cover_the_truth_for_collapsed_settings():
    means = np.array([[0.1, 0.3, 0.2], [0.2, 0.4, 0.3], [0.0, 0.5, 0.4], [0.0, 0.6, 0.5]])
    spread = np.array([[0.08, 0.2, 0.08], [0.08] * 3, [0, 0.08, 0.08], [0, 0.08, 0.08]])
    a, b = (means.mean(i, keepdims=True) - means.mean() for i in (1, 0))
    parts = [a, b, means - means.mean() - a - b, spread]
    truth = np.array([(part**2).mean() for part in parts])
    truth /= truth.sum()
    held = np.zeros((60, 4))
    for i in range(60):
        values = means[..., None] + spread[..., None] * noise(4, 3, 5, seed=i)
        shares = [e.share for e in anova(results_of(recall=values), "recall")]
        held[i] = [s.low <= t <= s.high for s, t in zip(shares, truth, strict=True)]
    assert (held.mean(0) >= 0.8).all(), held.mean(0)
    assert held.mean() >= 0.88


def test_noise_has_no_effect():
    results = [anova(results_of(recall=noise(3, 3, 5, seed=i)), "recall") for i in range(25)]
    assert np.mean([e.share.low > 0 for effects in results for e in effects[:3]]) < 0.05
    assert np.mean([e.eta2 for effects in results for e in effects[2:3]]) > 0.05  # which is biased
    assert np.mean([e.share.value for effects in results for e in effects[2:3]]) < 0.04


@pytest.mark.parametrize(
    ("values", "factors"),
    [
        (np.full((2, 2, 3), 0.5), []),
        (np.full((2, 2, 3), math.nan), []),
        (noise(1, 2, 3), [("optimizer.name",), RESIDUAL]),
        (noise(2, 3), [("latent.size",), RESIDUAL]),
        (noise(1, 4), [RESIDUAL]),
        (noise(2, 2, 2), []),  # of two seeds nothing is said
    ],
)
def test_no_variance_no_levels_or_two_seeds_have_no_effect(values, factors):
    results = results_of(recall=values)
    assert [e.factors for e in anova(results, "recall")] == factors
    assert len(ranking(results)) == np.isfinite(values).any(-1).sum()
