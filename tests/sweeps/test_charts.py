"""Charts of a study: the numbers in their places, whatever the number of axes."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ganray.metrics.intervals import Estimate, replicate_interval
from ganray.sweeps import charts, contact_sheet
from ganray.sweeps.tables import Cell, digits, direction, short, tabulate
from tests.sweeps.small import KINDS, OPTIMIZERS, SIZES, axis, grid, results


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def written(figure):
    """All words of a matplotlib figure."""
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.fixture
def figure(monkeypatch):
    """The figure that was drawn last."""
    made, draw = SimpleNamespace(last=None), charts._figure

    def remembered(*size):
        made.last = draw(*size)
        return made.last

    monkeypatch.setattr(charts, "_figure", remembered)
    return made


def test_a_table_has_the_first_axis_down_the_second_across_and_a_panel_for_each_rest():
    table = tabulate(results(KINDS, SIZES, OPTIMIZERS), "coverage")
    assert [panel.title for panel in table.panels] == ["optimizer sgd", "optimizer adam"]
    assert table.panels[1].cells[1][2].levels == ("uniform", "100", "adam")
    for panel in table.panels:
        for row, first in zip(panel.cells, (0.1, 0.2), strict=True):
            for cell in row:
                np.testing.assert_allclose(cell.values, [first, first + 0.02, first + 0.04])
                assert cell.mean == replicate_interval(cell.values.tolist())


def test_one_axis_is_a_single_column_and_four_are_panels_of_pairs():
    single = tabulate(results(KINDS), "coverage")
    assert [len(row) for row in single.panels[0].cells] == [1, 1]
    assert single.panels[0].cells[1][0].levels == ("uniform",)
    four = tabulate(results(KINDS, SIZES, OPTIMIZERS, axis("rate", "1", "3")), "coverage")
    assert [panel.title for panel in four.panels][:2] == [
        "optimizer sgd, rate 1",
        "optimizer sgd, rate 3",
    ]


def test_a_cell_counts_what_diverged_and_leaves_out_what_crashed():
    found = results(KINDS, diverged=["normal-s1"], failed=["normal-s2", "uniform-s0"])
    normal, uniform = (row[0] for row in tabulate(found, "coverage").panels[0].cells)
    np.testing.assert_allclose(normal.values, [0.1, 0.0])
    assert normal.fell.tolist() == [False, True]
    assert (normal.diverged, len(uniform.values)) == (1, 2)


def test_an_empty_cell_says_why():
    found = results(KINDS, seeds=2, failed=["normal-s0"], waiting=["normal-s1"])
    cell = tabulate(found, "coverage").panels[0].cells[0][0]
    assert cell.mean is None
    assert cell.state == "waiting"
    assert Cell((), "coverage", (), ()).state == ""


def test_numbers_are_as_long_as_they_can_be_read():
    assert short(Estimate(0.6149, 0.55, 0.67, 5), digits([0.61])) == ("0.61", "±0.06")
    assert short(replicate_interval([-0.001]), 2) == ("0.00", "")
    assert [digits([x]) for x in (0.1, 12.0, 940.0)] == [2, 1, 0]
    assert digits([]) == 2


def test_which_way_is_better():
    assert [direction(m) for m in ("coverage", "kl_corrected", "precision", "images_per_s")] == [
        "higher",
        "lower",
        "neither",
        "neither",
    ]


def test_a_heat_map_has_each_mean_half_its_interval_and_what_the_mean_does_not_tell(
    tmp_path, figure
):
    found = results(
        KINDS, SIZES, diverged=["normal-1-s0"], failed=["uniform-10-s1"],
        waiting=[f"uniform-100-s{seed}" for seed in range(3)],
    )  # fmt: skip
    charts.heat_maps(found, "coverage", tmp_path / "a.png")
    words = written(figure.last)
    assert words.count("0.12") == 2  # normal: 0.10, 0.12, 0.14
    assert words.count("±0.05") == 3  # and of uniform at 1: 4.303 x 0.02 / sqrt(3)
    for word in ("0.22", "n=2", "†1", "waiting", "normal", "100", "coverage, higher is better"):
        assert word in words
    height, width = pixels(tmp_path / "a.png").shape[:2]
    assert 400 < height < 1200
    assert 800 < width < 2400


def test_low_is_bright_where_low_is_better(tmp_path):
    found = results(KINDS, seeds=2)
    brightness = {}
    for metric in ("coverage", "kl_corrected"):
        charts.heat_maps(found, metric, tmp_path / "a.png")
        picture = pixels(tmp_path / "a.png")
        # Yellow is where red and green are much above blue; uniform, the lower row, is better.
        yellow = (picture[..., :2].min(axis=2) > 150) & (picture[..., 2] < 60)
        brightness[metric] = yellow.nonzero()[0].mean() / len(picture)
    assert brightness["coverage"] > 0.5
    assert brightness["kl_corrected"] > 0.5


def test_words_on_a_colour_can_be_read():
    assert charts.readable_on((0.27, 0.0, 0.33)) == "white"
    assert charts.readable_on((0.99, 0.91, 0.14)) == "black"


@pytest.mark.parametrize("axes", [(KINDS,), (KINDS, SIZES, OPTIMIZERS)], ids=["1", "3"])
def test_a_strip_chart_has_a_dot_for_each_run(tmp_path, figure, axes):
    trial = results(*axes).plan.trials[0].label
    found = results(*axes, diverged=[trial])
    charts.strip_chart(found, "coverage", tmp_path / "a.png")
    lines = [line for panel in figure.last.axes for line in panel.get_lines()]
    dots = sum(len(line.get_xdata()) for line in lines if line.get_marker() == "o")
    assert dots == len(found.plan.trials) - 1
    assert sum(len(line.get_xdata()) for line in lines if line.get_marker() == "x") == 1
    assert max(pixels(tmp_path / "a.png").shape) < 2600


def test_a_study_that_has_not_begun_is_drawn_too(tmp_path):
    found = results(KINDS, seeds=1, waiting=["normal-s0", "uniform-s0"])
    charts.heat_maps(found, "coverage", tmp_path / "a.png")
    charts.strip_chart(found, "coverage", tmp_path / "b.png")
    assert pixels(tmp_path / "a.png").std() > 0


def test_effects_are_drawn_largest_first_and_chance_last(tmp_path, figure):
    shares = {("optimizer",): 0.1, ("seeds",): 0.5, ("latent.size",): 0.3,
              ("latent.size", "optimizer"): -0.01}  # fmt: skip
    effects = [
        SimpleNamespace(factors=factors, share=Estimate(x, x - 0.05, x + 0.05, 9))
        for factors, x in shares.items()
    ]
    charts.effects_chart(effects, tmp_path / "a.png")
    labels = [label.get_text() for label in figure.last.axes[0].get_yticklabels()]
    assert labels == ["size", "optimizer", "size × optimizer", "chance (the seed)"]  # noqa: RUF001
    assert {"30%", "10%", "0%", "50%"} <= set(written(figure.last))


def area(picture, color):
    """Pixels of one colour."""
    return int((picture == color).all(axis=2).sum())


def test_the_sheet_shows_the_newest_grid_of_the_lowest_seed_that_finished(tmp_path):
    found = results(KINDS, diverged=["uniform-s0"])
    newest, old, second, fell = (0, 200, 0), (200, 0, 0), (0, 0, 200), (200, 200, 0)
    grid(tmp_path / "s.normal-s0", old, 1000)
    grid(tmp_path / "s.normal-s0", newest, 20000)
    grid(tmp_path / "s.normal-s1", old)
    grid(tmp_path / "s.uniform-s0", fell)
    grid(tmp_path / "s.uniform-s1", second)
    contact_sheet.contact_sheet(found, tmp_path, tmp_path / "a.png")
    picture = pixels(tmp_path / "a.png")
    # A sample of 8 pixels is kept at 96, and shown at a half of that: 4 x 4 of them.
    assert area(picture, newest) == area(picture, second) == (4 * 48) ** 2
    assert area(picture, old) == area(picture, fell) == 0
    rows = [(picture == color).all(axis=2).nonzero()[0].min() for color in (newest, second)]
    assert rows[0] < rows[1]


def test_a_setting_without_samples_is_grey_and_says_why(tmp_path):
    found = results(KINDS, SIZES, seeds=1, failed=["normal-1-s0"], diverged=["normal-10-s0"])
    table = tabulate(found, "coverage")
    words = [contact_sheet._why_missing(cell) for cell in table.panels[0].cells[0]]
    assert words == ["failed", "diverged", "no samples"]
    contact_sheet.contact_sheet(found, tmp_path, tmp_path / "a.png")
    assert area(pixels(tmp_path / "a.png"), contact_sheet._BLANK) > 100_000


def test_a_sheet_of_many_settings_stays_small(tmp_path):
    many = axis("latent.size", *map(str, range(12)))
    found = results(axis("latent.distribution", *"abcdefghi"), many, OPTIMIZERS, seeds=1)
    for trial in found.plan.trials[:5]:
        grid(tmp_path / trial.name, (1, 2, 3), side=64)
    contact_sheet.contact_sheet(found, tmp_path, tmp_path / "a.png")
    height, width = pixels(tmp_path / "a.png").shape[:2]
    assert height * width < 6_000_000
    assert width < 1500


def test_samples_that_are_no_squares_are_cut_at_their_edges():
    samples = np.repeat(np.arange(64, dtype=np.uint8), 30 * 20 * 3).reshape(64, 30, 20, 3)
    picture = samples.reshape(8, 8, 30, 20, 3).swapaxes(1, 2).reshape(240, 160, 3)
    cut = contact_sheet.crop(picture, 2, 64)
    assert cut.shape == (60, 40, 3)
    assert set(cut.flat) == {0, 1, 8, 9}
