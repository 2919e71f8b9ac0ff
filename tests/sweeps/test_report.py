"""All parts of a report agree with each other and with the runs."""

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from ganray.config.schema import Config
from ganray.metrics.intervals import Estimate
from ganray.sweeps import report
from ganray.sweeps.analysis import Effect, RankedSetting, compare, ranking
from ganray.sweeps.report import difference_table, ranking_table, write
from ganray.sweeps.results import RunResult
from tests.sweeps.small import KINDS, OPTIMIZERS, SIZES, axis, results, write_samples


@pytest.fixture
def base(tmp_path):
    return Config(home=tmp_path / "home", name="s")


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_command_in_the_report_has_no_secrets(base, monkeypatch):
    root = "--data.root=https://me:hush@host/a?X-Sig=hush"
    words = [root, "--name", "x", "--home", "/my home"]
    monkeypatch.setattr(sys, "argv", ["jobs/sweep.py", *words])
    details = report._details(base, "")
    options = "'--data.root=https://***@host/a?***' --name x --home '/my home'"
    assert details["command"] == f"python jobs/sweep.py {options}"
    monkeypatch.setattr(sys, "argv", ["ganray sweep", *words])
    assert report._details(base, "")["command"] == f"ganray sweep {options}"
    assert "commit" not in details


def test_changed_defaults_are_shown_as_typed(base):
    data = replace(base.data, flip=True, images=500)
    changed = report._details(replace(base, data=data), "")["changed defaults"]
    assert (changed["data.flip"], changed["data.images"]) == ("true", "500")


def test_shares_that_are_not_determined_are_not_logged():
    sweep = results(KINDS)
    shares = {"optimizer": Estimate(0.5, 0.0, 1.0, 3), "latent.size": Estimate(0.5, 0.4, 0.6, 3)}
    effects = {"coverage": [Effect((name,), 0.5, share) for name, share in shares.items()]}
    logged = [name for name in report._metrics(sweep, [], effects) if "share_of" in name]
    assert logged == ["sweep/coverage_share_of_latent.size"]


def test_text_json_html_and_mlflow_metrics_agree(base, tmp_path):
    sweep = results(KINDS, SIZES, diverged=["normal-1-s0"], failed=["uniform-10-s1"])
    write_samples(base.home / "runs" / "s.normal-100-s0", (0, 90, 0))
    written = write(sweep, base, tmp_path, censored=False, commit="abc123")
    data = json.loads((tmp_path / "report.json").read_text())
    settings = {tuple(setting["levels"]): setting for setting in data["ranking"]}
    assert data["ranking"][0]["levels"][0] == "uniform"
    assert settings["normal", "1"]["diverged"] == 1
    mean = settings["normal", "1"]["means"]["coverage"]["value"]
    assert mean == pytest.approx((0 + 0.12 + 0.14) / 3)
    assert settings["uniform", "10"]["means"]["coverage"]["n"] == 2
    assert data["runs"]["s.uniform-10-s1"]["status"] == "failed"
    assert {d["metric"] for d in data["differences"]} == {"coverage", "recall"}
    shares = {
        tuple(e["factors"]): e["share"]["value"] for e in data["share_of_variance"]["coverage"]
    }
    assert max(shares, key=lambda factors: shares[factors]) == ("latent.distribution",)
    assert written.metrics["sweep/best_coverage"] == pytest.approx(0.22)
    assert written.metrics["sweep/diverged"] == 1
    logged = {k: v for k, v in written.metrics.items() if k.startswith("sweep/coverage_share_of_")}
    assert logged == {
        f"sweep/coverage_share_of_{'_x_'.join(e['factors'])}": e["share"]["value"]
        for e in data["share_of_variance"]["coverage"]
        if e["share"]["high"] - e["share"]["low"] < 0.9
    }
    html = written.html.read_text()
    for text in (data["summary"].split(".")[0], "abc123"):
        assert text in html
    assert data["summary"] in " ".join(written.text.split())
    assert max(map(len, written.text.splitlines())) <= 100
    assert data["summary"] in written.markdown
    assert written.html in written.files
    assert all(file.exists() for file in written.files)

    page = Page(html)
    assert not page.open
    for text in (
        "18 runs", "6 settings", "3 seeds each", "1 diverged", "1 failed", "corrected KL",
        "0.22 ±0.05", "Do not rank by precision", "Pairwise differences",
        "Green settings are not significantly worse", "at most 4 % have one",
        "at most 1 % a setting",
    ):  # fmt: skip
        assert text in page.text


def test_page_needs_no_other_file_and_shows_all_charts(base, tmp_path):
    written = write(results(KINDS, SIZES), base, tmp_path, censored=False)
    html = written.html.read_text()
    page = Page(html)
    sources = [attrs[name] for _, attrs in page.tags for name in ("src", "href") if name in attrs]
    assert len(sources) == sum(file.suffix == ".png" for file in written.files) == 7
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|url\(|@import|<link|<iframe", html)
    widths = [int(attrs["width"]) for tag, attrs in page.tags if tag == "img"]
    assert all(300 < width < 1200 for width in widths)


def test_html_escapes_labels(base, tmp_path):
    sweep = results(axis("latent.distribution", "<i>x", "b"), seeds=1, name="<b>x")
    html = write(sweep, base, tmp_path, censored=False, commit="<u>").html.read_text()
    assert not re.search(r"<b>x|<i>x|<u>", html)
    assert "&lt;b&gt;x" in html


def test_settings_that_tie_with_the_best_are_marked_in_the_page(base, tmp_path):
    sweep = results(KINDS, SIZES)
    ties = sum(setting.ties_best for setting in ranking(sweep))
    page = Page(write(sweep, base, tmp_path, censored=False).html.read_text())
    marked = [attrs for tag, attrs in page.tags if tag == "tr" and attrs.get("class") == "tied"]
    assert len(marked) == ties == 3


def test_report_without_finished_runs(base, tmp_path):
    sweep = results(KINDS, seeds=1, waiting=["normal-s0", "uniform-s0"])
    page = Page(write(sweep, base, tmp_path, censored=False).html.read_text())
    assert "No run has ended yet." in page.text
    assert "2 waiting" in page.text
    assert "All runs" not in page.text


@pytest.mark.parametrize("cause", ["search", "stopped run"])
def test_censored_runs_have_no_effects_and_no_differences(base, tmp_path, cause):
    sweep = results(KINDS, OPTIMIZERS)
    if cause == "stopped run":
        stopped = {sweep.plan.trials[0].name: RunResult("stopped", {"coverage": 0.1})}
        sweep = replace(sweep, by_trial={**sweep.by_trial, **stopped})
    written = write(sweep, base, tmp_path, censored=cause == "search")
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["share_of_variance"] == {}
    assert data["differences"] == []
    assert "cannot be estimated" in data["summary"]
    assert not [name for name in written.metrics if "share_of" in name]


AXES = (axis("latent.distribution+latent.scaling", "uniform centered"), axis("optimizer", "sgd"))


def setting(rank=1.0, ties=True, diverged=0, **means):
    estimates = {
        "coverage": Estimate(0.612, 0.58, 0.643, 5),
        "recall": Estimate(0.4, 0.35, 0.45, 5),
        "kl_corrected": Estimate(0.31, 0.2, 0.4, 5),
        "images_per_s": Estimate(5432.1, 5000, 5864.2, 5),
    }
    levels = ("uniform centered", "sgd")
    return RankedSetting(levels, estimates | means, 5, diverged, 0, rank, ties)


def test_text_table_is_aligned_and_drops_columns_that_do_not_fit():
    table = ranking_table([setting(), setting(10.0, diverged=2), setting(12.0, ties=False)], AXES)
    lines = table.text(200).splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[0].split()[-1] == "speed"
    assert lines[1].endswith("5,432 ±432")
    assert lines[2].startswith("=10.0")
    assert lines[3].startswith(" 12.0")
    assert lines[4] == "= not significantly worse than the first"
    for width in (100, 70):
        narrow = table.text(width).splitlines()[:4]
        assert max(map(len, narrow)) <= width
        assert "0.61 ±0.03" in narrow[1]


def test_markdown_table_has_every_column_and_dashes_for_unknown_values():
    incomplete = setting(2.0)
    del incomplete.means["kl_corrected"]
    head, rule, _, line, *_ = ranking_table([setting(), incomplete], AXES).markdown().splitlines()
    assert head.count("|") == rule.count("|") == line.count("|") == 9
    assert line.split(" | ")[-2:] == ["-", "5,432 ±432 |"]


def test_long_tables_are_truncated_in_text_but_not_in_html():
    table = ranking_table([setting(float(i), ties=False) for i in range(1, 31)], AXES)
    assert table.text(200).splitlines()[-1] == "... and 10 more"
    assert table.markdown().endswith("\n\n... and 10 more")
    assert len(table.rows) == 30


def test_differences_are_shown_from_the_level_of_higher_coverage():
    sweep = results(KINDS)
    (row,) = difference_table(compare(sweep, [(0, None)]), [KINDS]).rows
    assert row[:3] == ["distribution", "uniform", "normal"]
    assert row[3].startswith("0.1")
    assert row[3].endswith("] *")
    assert row[4].startswith("0.05")


def test_two_seeds_show_what_was_seen_and_what_is_missing(base, tmp_path):
    written = report.write(results(KINDS, SIZES, seeds=2), base, tmp_path, censored=False)
    html = written.html.read_text()
    assert '<section class="pale">\n<h2>Pairwise differences, none of them significant' in html
    assert "--sweep.seeds 3" in html
    assert 'class="tied"' not in html
    assert "=" not in written.text
    assert not [name for name in written.metrics if "share_of" in name]
