"""The summary states what the intervals support, and nothing else."""

import dataclasses
import math

import numpy as np
import pytest

from ganray.metrics.intervals import Estimate
from ganray.sweeps.analysis import Effect, anova, compare, ranking
from ganray.sweeps.axes import Axis, Level
from ganray.sweeps.report import pairwise_differences
from ganray.sweeps.results import Results, RunResult
from ganray.sweeps.summary import summarize
from tests.sweeps.test_analysis import noise, results_of


def summary_of(results, censored=False):
    if censored:
        return summarize(results, ranking(results), [], [], censored=True)
    effects = anova(results, "coverage")
    return summarize(results, ranking(results), pairwise_differences(results, effects), effects)


def sweep_of(means, seeds=5, spread=0.01):
    """A sweep with these mean coverages and recalls (axis 1, ...) and a little noise."""
    means = np.array(means)
    values = means[..., None] + spread * noise(*means.shape, seeds)
    return results_of(coverage=values, recall=values)


def relabel(results, *labels):
    """Rename the levels of the first axis."""
    first = results.plan.axes[0]
    names = dict(zip(first.labels, labels, strict=True))
    axis = Axis(first.name, tuple(Level(names[v.label], v.overrides) for v in first.levels))
    trials = tuple(
        dataclasses.replace(t, levels=(names[t.levels[0]], *t.levels[1:]))
        for t in results.plan.trials
    )
    axes = (axis, *results.plan.axes[1:])
    return Results(dataclasses.replace(results.plan, axes=axes, trials=trials), results.by_trial)


def rename_axes(results, *names):
    pairs = zip(results.plan.axes, names, strict=True)
    own = {"data.source+data.size", "data.crop"}
    axes = [dataclasses.replace(a, name=n, own_reference=n in own) for a, n in pairs]
    return Results(dataclasses.replace(results.plan, axes=tuple(axes)), results.by_trial)


def test_runs_are_counted_by_status():
    sweep = sweep_of([0.2, 0.4], seeds=4)
    by_trial = {**sweep.by_trial, "s.a0-s0": RunResult("failed", {})}
    by_trial["s.b0-s1"] = RunResult("diverged", {"coverage": 0.0})
    del by_trial["s.a0-s3"]
    text = summary_of(Results(sweep.plan, by_trial))
    assert text.startswith("8 runs: 5 finished, 1 diverged, 1 failed, 1 waiting. ")


def test_significant_differences_are_counted_and_the_largest_are_named():
    sweep = sweep_of([[0.2, 0.2], [0.5, 0.5], [0.9, 0.9]])
    ab, ac, bc = (d.swapped().value.brief() for d in compare(sweep, [(0, None), (1, None)])[:3])
    text = summary_of(sweep)
    assert (
        f"Significant differences between levels of size: 3 of 3 pairs in coverage (c0 exceeds a0"
        f" by {ac}; c0 exceeds b0 by {bc}; b0 exceeds a0 by {ab}), 3 of 3 pairs in recall."
    ) in text
    assert (
        "between levels of optimizer: none of 1 pair in coverage, none of 1 pair in recall" in text
    )
    many = summary_of(sweep_of([0.1, 0.2, 0.3, 0.4, 0.5, 0.9]))
    assert "15 of 15 pairs in coverage (the largest: f0 exceeds a0 by" in many
    assert many.count("exceeds") == 3


def test_summary_states_its_rate_of_false_claims_where_it_may_claim():
    rate = "would name a difference or a worse setting with a probability of about 5 % at most"
    assert rate in summary_of(sweep_of([0.5, 0.5]))
    assert rate not in summary_of(sweep_of([0.5, 0.5], seeds=2))
    assert "with 3 seeds 6 %" in summary_of(sweep_of([0.5, 0.5], seeds=3))
    assert "with 3 seeds" not in summary_of(sweep_of([0.5, 0.5], seeds=4))


def test_recall_is_counted_separately():
    coverage = 0.5 + 0.1 * noise(2, 5)
    recall = np.array([0.2, 0.6])[:, None] + 0.01 * noise(2, 5, seed=1)
    text = summary_of(results_of(coverage=coverage, recall=recall))
    assert "none of 1 pair in coverage, 1 of 1 pair in recall." in text
    assert "recall" not in summary_of(results_of(coverage=coverage))


def test_reference_images_are_named_if_runs_train_on_different_images():
    sweep = sweep_of([[0.2, 0.2], [0.5, 0.5]])
    shared = "share their reference images, whichever images they train on."
    assert "reference" not in summary_of(sweep)
    text = summary_of(rename_axes(sweep, "data.images", "data.flip+latent.size"))
    assert f"All runs {shared}" in text
    assert "of its own" not in text
    text = summary_of(rename_axes(sweep, "data.source+data.size", "data.images"))
    assert "Each level of source size has reference images and a classifier of its own" in text
    assert f"All runs with the same source size {shared}" in text
    assert shared not in summary_of(rename_axes(sweep, "data.crop", "latent.size"))


def test_levels_that_are_numbers_or_switches_carry_the_name_of_their_axis():
    assert "normal exceeds size 10 by" in summary_of(relabel(sweep_of([0.2, 0.6]), "10", "normal"))
    sweep = relabel(sweep_of([[0.2, 0.2], [0.5, 0.5]]), "false", "true")
    assert "flip true exceeds flip false" in summary_of(rename_axes(sweep, "data.flip", "rate"))


def test_shares_of_the_variance_are_sorted():
    text = summary_of(sweep_of([[0.1, 0.15], [0.8, 0.85]]))
    shares = text.partition("Share of the variance of coverage: ")[2]
    assert shares.startswith("size 9")
    assert shares.index("size") < shares.index("optimizer") < shares.index("the seed")


def test_interactions_are_named_and_compared_at_each_level():
    sweep = sweep_of([[0.2, 0.8], [0.8, 0.2]])
    assert "The effect of size depends on optimizer (100 % [" in summary_of(sweep)
    pairs = pairwise_differences(sweep, anova(sweep, "coverage"))
    at = {d.at: d.value.value for d in pairs if d.at and d.metric == "coverage"}
    assert at["a1"] == pytest.approx(-0.6, abs=0.05)
    assert at["b1"] == pytest.approx(0.6, abs=0.05)
    assert "depends on" not in summary_of(sweep_of([[0.2, 0.4], [0.6, 0.8]]))


def test_the_best_setting_is_named_only_if_all_others_are_significantly_worse():
    text = summary_of(sweep_of([0.1, 0.5, 0.9]))
    assert "The best setting by mean rank is c0, with coverage 0.891 [" in text
    assert text.endswith("; all 2 others are significantly worse.")
    assert summary_of(sweep_of([0.1, 0.9])).endswith("; the other setting is significantly worse.")
    text = summary_of(sweep_of([0.5, 0.5, 0.1]))
    assert "No single setting is best: 2 do not differ significantly (" in text
    assert text.endswith("]), and the other is worse.")
    assert "best setting" not in text
    text = summary_of(sweep_of([0.5] * 5))
    assert "best: 5 do not differ significantly (" in text
    assert text.endswith("; and 2 more).")


def test_levels_that_differ_do_not_contradict_settings_that_do_not():
    """With all runs collapsed, sizes differ over all optimizers, but no two settings do."""
    why = "Levels can differ where single settings do not"
    coverage = 0.01 * np.array([[1.0, 1.1], [1.4, 1.5]])[..., None] + 0.0005 * noise(2, 2, 3)
    kl = 2 + noise(2, 2, 3, seed=1)
    text = summary_of(results_of(coverage=coverage, kl_corrected=kl))
    assert "b0 exceeds a0 by" in text
    assert "No single setting is best: 4 do not differ significantly" in text
    assert why in text
    assert why not in summary_of(sweep_of([[0.2, 0.2], [0.9, 0.9]]))


def test_a_share_whose_interval_is_everything_is_not_stated():
    def shares(size, optimizer):
        effects = [Effect(("latent.size",), 0.5, size), Effect(("optimizer.name",), 0.1, optimizer)]
        sweep = sweep_of([[0.2, 0.2], [0.9, 0.9]], seeds=3)
        return summarize(sweep, ranking(sweep), [], effects)

    wide, narrow = Estimate(0.5, 0, 1, 3), Estimate(0.1, 0.05, 0.15, 3)
    text = shares(wide, narrow)
    assert "Share of the variance of coverage: optimizer 10 % [5, 15]." in text
    assert "The share of size is not determined with 3 seeds." in text
    text = shares(wide, wide)
    assert "The shares of the variance of coverage are not determined with 3 seeds." in text
    assert "%" not in text.partition("shares of the variance")[2]


@pytest.mark.parametrize(("seeds", "words"), [(1, "1 seed"), (2, "2 seeds")])
def test_few_seeds_support_no_difference(seeds, words):
    text = summary_of(sweep_of([[0.1, 0.2], [0.8, 0.9]], seeds))
    assert f"With {words} no difference is significant; use 3 or more." in text
    assert "exceeds" not in text


def test_censored_runs_have_no_effects():
    text = summary_of(sweep_of([0.1, 0.9]), censored=True)
    assert (
        "the effects of the axes cannot be estimated. The best setting by mean rank is b0" in text
    )
    assert text.endswith("it was selected by its results, so expect less of a new run.")
    assert "exceeds" not in text


def test_sweeps_without_results_or_variance():
    nothing = results_of(coverage=np.full((2, 3), math.nan))
    no_coverage = "No run has a coverage yet, so nothing can be concluded."
    assert summary_of(nothing) == f"6 runs: 6 waiting. {no_coverage}"
    constant = summary_of(results_of(coverage=np.full((2, 3), 0.5)))
    assert "Coverage is the same in all runs." in constant
