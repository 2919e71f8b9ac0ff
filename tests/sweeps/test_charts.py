"""Charts show every number in its place, for any number of axes."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from ganray.metrics.intervals import Estimate, replicate_interval
from ganray.sweeps import charts
from ganray.sweeps.analysis import Effect
from ganray.sweeps.charts import decimals, direction, format_estimate, setting_grid
from tests.sweeps.small import KINDS, OPTIMIZERS, SIZES, axis, results, write_samples


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.fixture
def saved(monkeypatch):
    """All figures that are saved, the newest last."""
    figures, savefig = [], Figure.savefig

    def remember(figure, *args, **kwargs):
        figures.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", remember)
    return figures


def test_grid_has_first_axis_down_second_across_and_a_panel_per_other_level():
    grid = setting_grid(results(KINDS, SIZES, OPTIMIZERS), "coverage")
    assert grid.titles == ("optimizer sgd", "optimizer adam")
    assert grid.values.shape == (2, 2, 3, 3)
    assert grid.names[1, 1, 2, 0] == "s.uniform-100-adam-s0"
    for panel, row, column in np.ndindex(2, 2, 3):
        expected = [0.1 * (row + 1) + 0.02 * seed for seed in range(3)]
        np.testing.assert_allclose(grid.values[panel, row, column], expected)
        assert grid.estimate(panel, row, column) == replicate_interval(expected)


def test_grid_of_one_axis_is_a_column_and_of_four_axes_panels_of_pairs():
    assert setting_grid(results(KINDS), "coverage").values.shape == (1, 2, 1, 3)
    four = setting_grid(results(KINDS, SIZES, OPTIMIZERS, axis("rate", "1", "3")), "coverage")
    assert four.titles[:2] == ("optimizer sgd, rate 1", "optimizer sgd, rate 3")


def test_setting_counts_diverged_runs_and_leaves_out_crashed_ones():
    grid = setting_grid(
        results(KINDS, diverged=["normal-s1"], failed=["normal-s2", "uniform-s0"]), "coverage"
    )
    assert grid.estimate(0, 0, 0) == replicate_interval([0.1, 0.0])
    assert grid.statuses[0, 0, 0].tolist() == ["finished", "diverged", "failed"]
    assert grid.estimate(0, 1, 0).n == 2


def test_setting_without_scored_runs_has_a_status_but_no_mean():
    unfinished = results(KINDS, seeds=2, failed=["normal-s0"], waiting=["normal-s1"])
    grid = setting_grid(unfinished, "coverage")
    assert grid.estimate(0, 0, 0) is None
    assert grid.status(0, 0, 0) == "waiting"


def test_numbers_are_shown_with_two_decimals_or_two_significant_digits():
    assert format_estimate(Estimate(0.6149, 0.555, 0.6748, 5), 2) == ("0.61", "±0.06")
    assert format_estimate(replicate_interval([-0.00001]), 2) == ("0.00", "")
    assert format_estimate(Estimate(0.23, 0.0, 1.0, 1), 2) == (
        "0.23",
        "",
    )  # one run, cut at 0 and 1
    assert format_estimate(Estimate(0.0049, 0.0, 0.02, 5), 2) == ("0.0049", "±0.015")
    assert [decimals([x]) for x in (0.1, 12.0, 940.0)] == [2, 1, 0]
    assert decimals([]) == 2


def test_direction_of_better_values():
    metrics = ("coverage", "kl_corrected", "precision", "images_per_s")
    assert [direction(m) for m in metrics] == ["higher", "lower", "neither", "neither"]


def test_heat_map_shows_means_half_intervals_and_missing_or_diverged_runs(tmp_path, saved):
    sweep = results(
        KINDS, SIZES, diverged=["normal-1-s0"], failed=["uniform-10-s1"],
        waiting=[f"uniform-100-s{seed}" for seed in range(3)],
    )  # fmt: skip
    charts.heat_maps(sweep, "coverage", tmp_path / "a.png")
    shown = texts(saved[-1])
    assert shown.count("0.12") == 2  # normal: 0.10, 0.12, 0.14
    assert shown.count("±0.05") == 3  # and uniform at size 1: 4.303 x 0.02 / sqrt(3)
    assert {"0.22", "waiting", "normal", "100", "coverage, higher is better"} <= set(shown)
    assert any(text.endswith("†1") for text in shown)
    assert any(text.endswith("n=2") for text in shown)
    height, width = pixels(tmp_path / "a.png").shape[:2]
    assert 300 < height < 1200
    assert 800 < width < 2400


@pytest.mark.parametrize("metric", ["coverage", "kl_corrected"])
def test_better_values_are_bright(tmp_path, saved, metric):
    charts.heat_maps(results(KINDS, seeds=2), metric, tmp_path / "a.png")
    image = saved[-1].axes[0].images[0]
    normal, uniform = image.to_rgba(image.get_array())[:, 0, :3].mean(-1)
    assert uniform > normal  # uniform is better by both metrics


@pytest.mark.parametrize("axes", [(KINDS,), (KINDS, SIZES, OPTIMIZERS)], ids=["1", "3"])
def test_strip_chart_has_a_dot_per_run_and_a_cross_per_diverged_run(tmp_path, saved, axes):
    sweep = results(*axes)
    sweep = results(*axes, diverged=[sweep.plan.trials[0].label])
    charts.strip_chart(sweep, "coverage", tmp_path / "a.png")
    # Filled dots have one edge and many vertices; a cross has no filled area.
    dots = crosses = 0
    for ax in saved[-1].axes:
        for points in ax.collections:
            count = len(points.get_offsets())
            if len(points.get_paths()[0].vertices) > 4:
                dots += count
            else:
                crosses += count
    assert (dots, crosses) == (len(sweep.plan.trials) - 1, 1)
    assert max(pixels(tmp_path / "a.png").shape) < 2800


def test_sweep_without_results_can_be_drawn(tmp_path):
    sweep = results(KINDS, seeds=1, waiting=["normal-s0", "uniform-s0"])
    charts.heat_maps(sweep, "coverage", tmp_path / "a.png")
    charts.strip_chart(sweep, "coverage", tmp_path / "b.png")
    assert pixels(tmp_path / "a.png").std() > 0


def test_effects_are_drawn_largest_first_and_seeds_last(tmp_path, saved):
    shares = {("optimizer",): 0.1, ("seeds",): 0.5, ("latent.size",): 0.3,
              ("latent.size", "optimizer"): -0.01}  # fmt: skip
    effects = [
        Effect(factors, x, Estimate(x, x - 0.05, x + 0.05, 9)) for factors, x in shares.items()
    ]
    charts.effects_chart(effects, "coverage", tmp_path / "a.png")
    labels = [label.get_text() for label in saved[-1].axes[0].get_yticklabels()]
    assert labels == ["size", "optimizer", "size × optimizer", "seeds"]  # noqa: RUF001
    assert {"30%", "10%", "0%", "50%"} <= set(texts(saved[-1]))
    unknown = Effect(("optimizer",), 0.5, Estimate(0.5, 0.0, 1.0, 3))
    charts.effects_chart([unknown], "coverage", tmp_path / "a.png")
    assert "not determined with 3 seeds" in texts(saved[-1])
    assert "50%" not in texts(saved[-1])


def area(picture, color):
    """Number of pixels of one color."""
    return int((picture == color).all(axis=2).sum())


def test_contact_sheet_shows_the_newest_samples_of_the_first_finished_run(tmp_path):
    sweep = results(KINDS, diverged=["uniform-s0"])
    newest, old, second, diverged = (0, 200, 0), (200, 0, 0), (0, 0, 200), (200, 200, 0)
    write_samples(tmp_path / "s.normal-s0", old, 1000)
    write_samples(tmp_path / "s.normal-s0", newest, 20000)
    write_samples(tmp_path / "s.normal-s1", old)
    write_samples(tmp_path / "s.uniform-s0", diverged)
    write_samples(tmp_path / "s.uniform-s1", second)
    charts.contact_sheet(sweep, tmp_path, tmp_path / "a.png")
    picture = pixels(tmp_path / "a.png")
    assert area(picture, newest) > 30_000
    assert area(picture, second) == pytest.approx(area(picture, newest), rel=0.02)
    assert area(picture, old) == area(picture, diverged) == 0
    rows = [(picture == color).all(axis=2).nonzero()[0].min() for color in (newest, second)]
    assert rows[0] < rows[1]


def test_contact_sheet_names_why_samples_are_missing(tmp_path, saved):
    sweep = results(KINDS, SIZES, seeds=1, failed=["normal-1-s0"], diverged=["normal-10-s0"])
    charts.contact_sheet(sweep, tmp_path, tmp_path / "a.png")
    assert {"failed", "diverged", "no samples"} <= set(texts(saved[-1]))


def test_no_text_is_tiny(tmp_path, saved):
    sweep = results(KINDS, SIZES)
    charts.heat_maps(sweep, "coverage", tmp_path / "a.png")
    charts.contact_sheet(sweep, tmp_path, tmp_path / "b.png")
    shown = [text for figure in saved for text in figure.findobj(Text) if text.get_text()]
    assert min(text.get_fontsize() for text in shown) >= 7


def test_contact_sheet_of_many_settings_stays_small(tmp_path):
    sizes = axis("latent.size", *map(str, range(12)))
    sweep = results(axis("latent.distribution", *"abcdefghi"), sizes, OPTIMIZERS, seeds=1)
    for trial in sweep.plan.trials[:5]:
        write_samples(tmp_path / trial.name, (1, 2, 3), side=64)
    charts.contact_sheet(sweep, tmp_path, tmp_path / "a.png")
    height, width = pixels(tmp_path / "a.png").shape[:2]
    assert height * width < 9_000_000
    assert width < 2500


def test_samples_that_are_not_square_are_cropped_at_their_edges():
    samples = np.repeat(np.arange(64, dtype=np.uint8), 30 * 20 * 3).reshape(64, 30, 20, 3)
    picture = samples.reshape(8, 8, 30, 20, 3).swapaxes(1, 2).reshape(240, 160, 3)
    cropped = charts.crop_samples(picture, 2)
    assert cropped.shape == (60, 40, 3)
    assert set(cropped.flat) == {0, 1, 8, 9}
