"""A study in words: what its intervals support is said, and nothing else."""

import dataclasses
import math

import numpy as np
import pytest

from ganray.metrics.intervals import Estimate
from ganray.sweeps.analysis import Row, compare, ranking
from ganray.sweeps.axes import Axis, Level
from ganray.sweeps.results import Results, RunResult
from ganray.sweeps.summary import markdown, summary, table
from tests.sweeps.test_analysis import noise, results_of


def said(found, **how):
    return summary(found, ranking(found), **how)


def study(means, seeds=5, spread=0.01):
    """Runs of these means (axis 1, ...) in coverage and recall; each has a little luck."""
    means = np.array(means)
    values = means[..., None] + spread * noise(*means.shape, seeds)
    return results_of(coverage=values, recall=values)


def renamed(found, *labels):
    """With labels of the first axis that are words."""
    names = dict(zip(found.plan.axes[0].labels, labels, strict=True))
    first = found.plan.axes[0]
    axis = Axis(first.name, tuple(Level(names[v.label], v.overrides) for v in first.levels))
    trials = tuple(
        dataclasses.replace(t, levels=(names[t.levels[0]], *t.levels[1:]))
        for t in found.plan.trials
    )
    axes = (axis, *found.plan.axes[1:])
    return Results(dataclasses.replace(found.plan, axes=axes, trials=trials), found.by_trial)


def test_runs_are_counted_by_how_they_ended():
    found = study([0.2, 0.4], seeds=4)
    outcomes = {**found.by_trial, "s.a0-s0": RunResult("failed", {})}
    outcomes["s.b0-s1"] = RunResult("diverged", {"coverage": 0.0})
    del outcomes["s.a0-s3"]
    text = said(Results(found.plan, outcomes))
    assert text.startswith("8 runs: 5 finished, 1 diverged, 1 failed, 1 waiting. ")


def test_a_level_that_is_ahead_of_all_others_is_said_to_be_by_how_much():
    found = study([[0.2, 0.2], [0.5, 0.5], [0.9, 0.9]])
    near, far = compare(found, "coverage", 0)[2].turned(), compare(found, "coverage", 0)[1].turned()
    assert (near.a, near.b, far.b) == ("c0", "b0", "a0")
    assert (
        f"Over all levels of optimizer, c0 covers {near.value.brief()} more of the data than b0"
        f" and {far.value.brief()} more than a0. The same holds by recall."
    ) in said(found)


def of_axes(found, *names):
    """With other names for its axes."""
    pairs = zip(found.plan.axes, names, strict=True)
    shows = {"data.source+data.size", "data.crop"}
    axes = [dataclasses.replace(a, name=n, own_reference=n in shows) for a, n in pairs]
    return Results(dataclasses.replace(found.plan, axes=tuple(axes)), found.by_trial)


def test_who_judges_is_said_where_runs_learn_other_images():
    found = study([[0.2, 0.2], [0.5, 0.5]])
    same = "are compared with the same images, whichever they learn."
    assert "its own images" not in said(found)
    assert same not in said(found)
    text = said(of_axes(found, "data.images", "data.flip+latent.size"))
    assert f"All runs {same}" in text
    assert "its own images" not in text
    text = said(of_axes(found, "data.source+data.size", "data.images"))
    assert "Runs of each level of source size are compared with its own images" in text
    assert f"All runs of one source size {same}" in text
    assert same not in said(of_axes(found, "data.crop", "latent.size"))


def test_yes_no_and_all_say_of_what():
    found = of_axes(renamed(study([[0.2, 0.2], [0.5, 0.5]]), "false", "true"), "data.flip", "rate")
    assert "flip true covers" in said(found)
    assert "more of the data than flip false" in said(found)


def test_levels_that_cannot_be_told_apart_are_named_as_such():
    text = said(study([[0.5, 0.5], [0.5, 0.5], [0.1, 0.1]]))
    assert "and is not told from" in text
    assert "Over all levels of size, no level of optimizer is told from another" in text


def test_recall_is_told_apart_where_it_says_something_else():
    coverage = 0.5 + 0.1 * noise(2, 5)
    recall = np.array([0.2, 0.6])[:, None] + 0.01 * noise(2, 5, seed=1)
    text = said(results_of(coverage=coverage, recall=recall))
    assert "Over all runs, no level of size is told from another by coverage. By recall, b0" in text
    text = said(results_of(coverage=coverage, recall=coverage))
    assert "no level of size is told from another by coverage or recall." in text


def test_a_number_says_what_it_is_the_number_of():
    text = said(renamed(study([0.2, 0.6]), "10", "normal"))
    assert "normal covers" in text
    assert "Brackets hold 95 % intervals over seeds" in text
    assert "more of the data than size 10." in text


def test_many_levels_are_counted_not_listed():
    text = said(study([0.1, 0.2, 0.3, 0.4, 0.5, 0.9]))
    assert "more than c0 and yet more than 2 others." in text


def test_an_axis_explains_more_than_any_other_only_if_the_intervals_say_so():
    text = said(study([[0.1, 0.15], [0.8, 0.85]]))
    assert "Of the variance of coverage, size explains" in text
    assert ", more than any other axis; chance between seeds explains" in text
    text = said(study([[0.1, 0.45], [0.45, 0.8]], spread=0.05))
    assert "may explain as much" in text
    assert "more than any other axis" not in text
    noisy = said(study([[0.5, 0.5], [0.5, 0.5]]))
    assert "No axis is shown to explain any of the variance of coverage" in noisy


def test_an_effect_that_depends_on_another_axis_is_told_level_by_level():
    text = said(study([[0.2, 0.8], [0.8, 0.2]]))
    assert "The effect of size on coverage depends on optimizer (100 % [" in text
    assert "with a1, b0 covers more than a0; with b1, a0 covers more than b0." in text
    assert "depends on" not in said(study([[0.2, 0.4], [0.6, 0.8]]))


def test_the_best_setting_and_what_cannot_be_told_from_it():
    text = said(study([0.1, 0.5, 0.9]))
    assert "c0 is first, with coverage 0.891 [" in text
    assert text.endswith("; each other setting is worse by one of these at least.")
    text = said(study([0.5, 0.5, 0.5]))
    assert text.endswith("; no other setting can be told from it.")
    text = said(study([0.1, 0.9, 0.9]))
    assert text.endswith(" cannot be told from it, the rest is worse by one of these.")


@pytest.mark.parametrize(("seeds", "words"), [(1, "1 seed"), (2, "2 seeds")])
def test_few_seeds_conclude_nothing(seeds, words):
    text = said(study([[0.1, 0.2], [0.8, 0.9]], seeds))
    assert text.endswith(
        f"With {words} nothing can be concluded on what differs: it takes 3 or more."
    )
    assert "covers" not in text


def test_runs_that_were_chosen_by_their_results_give_no_effects():
    text = said(study([0.1, 0.9]), censored=True)
    assert "none are given. First of what was tried is b0, with coverage 0.9;" in text
    assert "covers" not in text
    assert "variance" not in text


def test_a_study_without_results_or_variance_says_so():
    nothing = results_of(coverage=np.full((2, 3), math.nan))
    no_coverage = "No run has a coverage yet, so nothing can be concluded."
    assert said(nothing) == f"6 runs: 6 waiting. {no_coverage}"
    assert said(nothing, censored=True).endswith("none are given.")
    assert "Coverage is the same in all runs." in said(results_of(coverage=np.full((2, 3), 0.5)))


AXES = tuple(
    Axis(name, tuple(Level(label, {}) for label in labels))
    for name, labels in {
        "latent.distribution+latent.scaling": ("uniform centred", "normal"),
        "optimizer": ("adam-0.5", "sgd"),
    }.items()
)


def row(rank=1.0, tied=True, diverged=0, **means):
    estimates = {
        "coverage": Estimate(0.612, 0.58, 0.643, 5),
        "recall": Estimate(0.4, 0.35, 0.45, 5),
        "vendi_share": Estimate(0.71, 0.6, 0.8, 5),
        "kl_corrected": Estimate(0.31, 0.2, 0.4, 5),
        "modes_held": Estimate(8.2, 7, 9, 5),
        "half_life_kimg": Estimate(1234.0, 0, 3000, 2),
        "images_per_s": Estimate(5432.1, 5000, 6000, 5),
    }
    return Row(("uniform centred", "sgd"), estimates | means, 5, diverged, 0, rank, tied)


def test_a_table_is_as_wide_as_it_may_be_and_gives_up_the_least_first():
    rows = [row(), row(2.5, diverged=2), row(3.0, tied=False)]
    for width in (200, 160, 140, 120, 100, 70):
        lines = table(rows, AXES, width).splitlines()
        assert max(map(len, lines)) <= width
        assert len(lines) == 5
        assert lines[2].startswith("=2.5")
        assert "5, 2 diverged" in lines[2]
        assert not lines[3].startswith("=")
        assert "0.61" in lines[1]
    wide = table(rows, AXES, 200)
    assert "0.31 [0.20, 0.40]" in wide
    assert "1,234 (2)" in wide
    typical = table([row(), row(2.0)], AXES, 120)
    assert "0.61 [0.58, 0.64]" in typical
    assert typical.splitlines()[0].endswith("images/s")
    assert typical.splitlines()[1].endswith(" 5,432")
    assert "0.61 [" not in table(rows, AXES, 70)


def test_columns_are_aligned():
    lines = table([row(), row(10.0, tied=False, coverage=Estimate(0, 0, 1, 1))], AXES, 200)
    head, first, second = lines.splitlines()
    for title in ("optimizer", "distribution"):
        at = head.index(title)
        assert first[at - 1] == second[at - 1] == " "
        assert first[at] != " "
    assert len(head) == len(first) == len(second)


def test_long_tables_say_how_many_are_left_out():
    rows = [row(float(i), tied=i == 1) for i in range(1, 31)]
    assert table(rows, AXES).splitlines()[-1] == "... and 10 more"
    assert len(table(rows, AXES, limit=3).splitlines()) == 5
    assert markdown(rows, AXES).endswith("\n\n... and 10 more")


def test_markdown_has_every_column_and_unknown_values_are_dashes():
    known = row()
    means = {name: e for name, e in known.means.items() if name != "half_life_kimg"}
    head, rule, line = markdown([dataclasses.replace(known, means=means)], AXES).splitlines()
    assert head.count("|") == rule.count("|") == line.count("|") == 12
    assert line.split(" | ")[-4:] == ["0.31 [0.20, 0.40]", "8.2", "-", "5,432 |"]
