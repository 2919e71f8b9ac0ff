import time

import pytest

from ganray.data.sources import listing
from ganray.data.sources.listing import iter_with_progress, name_hash, printable, split_by_name


def test_a_tenth_is_held_out_by_name_alone():
    names = [f"cat/{i}.png" for i in range(10_000)]
    count = (split_by_name(names) == 2).sum()
    assert abs(count - 1000) < 5 * 30  # five deviations of 10,000 draws of one in ten
    assert split_by_name(f"{i}.jpg" for i in range(40)).nonzero()[0].tolist() == [1, 6, 29, 32, 39]


def test_hashes_differ_by_key_and_take_any_name():
    assert name_hash("a", b"1") != name_hash("a", b"2")
    assert name_hash("a\udcff", b"1") != name_hash("a\udcfe", b"1")  # bytes that are no UTF-8


def test_a_quick_task_shows_nothing(capsys: pytest.CaptureFixture[str]):
    assert list(iter_with_progress([1, 2, 3], "what", "things")) == [1, 2, 3]
    assert capsys.readouterr().out == ""


def test_a_slow_task_shows_all_of_what_it_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(listing, "QUIET_S", 0.02)
    for _ in iter_with_progress(range(5), "index", "images"):
        time.sleep(0.01)
    said = capsys.readouterr().out
    assert "index: 100%  5.00/5.00 images" in said


def test_names_with_line_breaks_are_shown_in_one_line():
    assert printable("/a/ü b.png") == "/a/ü b.png"
    assert printable("/a/\n.png") == r"'/a/\n.png'"
    printable("/a/\udcff").encode()
