"""The page of a study: all of it in one file, and no one's words taken for markup."""

import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from ganray.metrics.intervals import Estimate, replicate_interval
from ganray.sweeps.report_html import COLUMNS, Figures, draw, meaning, page, picture
from tests.sweeps.small import KINDS, SIZES, axis, grid, results


def ranked(found):
    """A row for each setting, as a ranking has them; the first two are tied."""
    rows = []
    for place, cell in enumerate(found.plan.settings):
        ended = [found.get(t) for t in found.plan.trials if t.levels == cell]
        values = [o.values for o in ended if o.scored]
        means = {
            name: replicate_interval([v[name] for v in values])
            for name in COLUMNS
            if values and name in values[0]
        }
        rows.append(
            SimpleNamespace(
                levels=cell, means=means, n=len(values), rank=place + 1.0, best_tied=place < 2,
                diverged=sum(o.status == "diverged" for o in ended),
                failed=sum(o.status == "failed" for o in ended),
            )
        )  # fmt: skip
    return rows


class Reader(HTMLParser):
    """Tags with their attributes, and the words between them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    found = results(KINDS, SIZES, diverged=["normal-1-s0"], failed=["uniform-10-s1"])
    grid(folder / "s.normal-100-s0", (0, 90, 0))
    effects = [SimpleNamespace(factors=("latent.size",), share=Estimate(0.4, 0.3, 0.5, 3))]
    figures = draw(found, {"coverage": effects, "recall": []}, folder, folder / "figures")
    made = {"command": "python jobs/sweep.py", "base": {"train.total_kimg": 40}, "commit": ""}
    return page(found, ranked(found), figures, "Size matters.\n\nKinds do not.", made)


def test_the_page_needs_no_other_file(whole):
    reader = Reader(whole)
    assert not reader.open
    sources = [
        attrs[n] for _, attrs in reader.tags for n in ("src", "href", "srcset") if n in attrs
    ]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not any(tag in ("link", "iframe", "object", "form") for tag, _ in reader.tags)
    assert not re.search(r"https?://|url\(|@import", whole)
    assert sum(tag == "img" for tag, _ in reader.tags) == 3 + 1 + 1 + 1


def test_the_page_tells_the_numbers_and_how_they_were_made(whole):
    text = Reader(whole).text
    for words in (
        "18 runs", "6 settings", "3 seeds each", "1 diverged", "1 failed", "Kinds do not.",
        "corrected KL", "0.22 ±0.05", "The 2 green settings", "Do not rank by precision",
        "reals' balls that hold a fake", "python jobs/sweep.py", "train.total_kimg 40",
    ):  # fmt: skip
        assert words in text
    assert "commit" not in text  # nothing is known of it


def test_settings_that_are_tied_with_the_best_are_marked(whole):
    lines = [attrs for tag, attrs in Reader(whole).tags if tag == "tr" and "class" in attrs]
    assert lines == [{"class": "tied"}] * 2


def test_words_of_the_user_are_words():
    found = results(axis("latent.distribution", "<i>x", "b"), seeds=1, name="<b>x")
    text = page(found, ranked(found), Figures(), "<u>so</u>", {"command": "<s>", "<a>": {"<p>": 1}})
    assert not re.search(r"<b>x|<i>x|<u>|<s>|<a>|<p>1", text)
    assert "&lt;b&gt;x" in text
    assert "<b>x" in Reader(text).text


def test_a_study_without_runs_is_a_page(tmp_path):
    found = results(KINDS, seeds=1, waiting=["normal-s0", "uniform-s0"])
    text = Reader(page(found, [], draw(found, {}, tmp_path, tmp_path))).text
    assert "No run has ended yet." in text
    assert "2 waiting" in text
    assert "Every run" not in text


def test_what_was_not_measured_leaves_its_place_empty():
    found = results(KINDS, seeds=2)
    rows = ranked(found)
    del rows[0].means["recall"]
    rows[0].rank = float("nan")
    rows[1].means["recall"] = replicate_interval([0.25])
    text = Reader(page(found, rows, Figures())).text
    assert "0.25" in text
    assert "nan" not in text
    assert "inf" not in text


def test_a_picture_is_as_wide_as_it_was_drawn_for(tmp_path, whole):
    found = results(KINDS, seeds=1)
    figures = draw(found, {}, tmp_path, tmp_path)
    for path in (*figures.heat_maps.values(), *figures.strips.values()):
        assert 300 < picture(path).width < 1200


def test_a_metric_is_explained_without_the_one_above_it():
    assert meaning("kl_corrected") == (
        "lower",
        "KL to the real modes, nats, less its bias (Miller-Madow)",
    )
    assert all("the same" not in meaning(name)[1] for name in COLUMNS)
