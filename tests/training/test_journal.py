"""The journal: complete events, once and in order, even if the writer is killed."""

import time

import numpy as np
import pytest
from PIL import Image

from ganray.training import journal
from ganray.training.journal import Journal
from ganray.training.run_folder import RunFolder
from tests.conftest import tiny_config


def events(folder, offset=0):
    return [event for event, _ in journal.read(folder, offset)]


def test_events_are_read_in_order_and_images_are_files(tmp_path):
    log = Journal(RunFolder(tmp_path))
    log.metrics(10, {"loss/D": 0.5})
    log.image("samples", 10, np.full((2, 3, 3), 7, np.uint8))
    metrics, image = events(tmp_path)
    assert (metrics["name"], metrics["images"], metrics["values"]) == (
        "metrics",
        10,
        {"loss/D": 0.5},
    )
    assert image["path"] == "samples/000000000010.png"
    assert np.asarray(Image.open(tmp_path / image["path"])).tolist() == [[[7] * 3] * 3] * 2


def test_a_resumed_run_does_not_write_a_step_twice(tmp_path):
    for start in (1, 3):  # the second writer repeats steps 3 and 4
        log = Journal(RunFolder(tmp_path))
        for step in range(start, start + 4):
            log.metrics(step, {"x": float(step)})
            log.image("samples", step, np.zeros((1, 1, 3), np.uint8))
    assert journal.history(tmp_path, "x")[0].tolist() == [1, 2, 3, 4, 5, 6]
    assert sum(event["name"] == "samples" for event in events(tmp_path)) == 6


def test_an_incomplete_last_line_is_skipped_and_then_replaced(tmp_path):
    log = Journal(RunFolder(tmp_path))
    log.metrics(1, {"x": 1.0})
    with (tmp_path / journal.FILE).open("a") as file:
        file.write('{"name": "metrics", "imag')
    assert len(events(tmp_path)) == 1
    log = Journal(RunFolder(tmp_path))
    log.metrics(2, {"x": 2.0})
    assert journal.history(tmp_path, "x")[1].tolist() == [1.0, 2.0]


def test_events_can_be_read_from_an_offset(tmp_path):
    log = Journal(RunFolder(tmp_path))
    log.metrics(1, {"x": 1.0})
    ((_, offset),) = journal.read(tmp_path)
    log.metrics(2, {"x": 2.0})
    assert [event["images"] for event in events(tmp_path, offset)] == [2]


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = Journal(None)
    log.metrics(1, {"x": 1.0})
    log.image("samples", 1, np.zeros((1, 1, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_the_progress_line_has_progress_speed_and_remaining_time():
    values = {"speed/images_per_s": 500.0, "loss/D": 0.6931, "loss/G": 0.7}
    values |= {"discriminator/real_prob": 0.5, "discriminator/fake_prob": 0.25}
    text = journal.progress_line({"images": 25_000, "values": values}, 100_000)
    assert "25.0 / 100 kimg ( 25%)" in text
    assert "500 images/s" in text
    assert "D 0.693" in text
    assert text.endswith("left 0:02:30")


@pytest.mark.parametrize("columns", [80, 100])
def test_lines_of_progress_and_evaluations_fit_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    values = metrics(0.5) | {"loss/G": 12.345, "speed/images_per_s": 12_345.0}
    lines = [journal.progress_line({"images": 1_234_500, "values": values}, 2_400_064)]
    values = {"collapse/modes_held": 16, "collapse/kl": 0.0123, "collapse/recall": 0.0123}
    values |= {"collapse/coverage": 0.0123, "collapse/vendi_share": 1.16}
    values |= {"speed/evaluation_share": 0.123}
    event = {"images": 1_234_500, "values": values, "warning": ""}
    lines.append(journal.collapse_line(event))
    assert max(map(len, lines)) <= columns
    assert "left 0:01:34" in lines[0]
    usual = metrics(0.5) | {"loss/G": 2.055, "speed/images_per_s": 1_699.0}
    lines.append(journal.progress_line({"images": 50_200, "values": usual}, 75_008))
    assert ("50.2 / 75 kimg ( 67%)" in lines[-1]) == (columns == 100)
    assert len(lines[-1]) <= columns
    assert "(12.3% of the time)" not in lines[1] or columns == 100
    assert "Vendi 116%" in lines[1]


def metrics(kimg: float) -> dict[str, float]:
    return {
        "speed/images_per_s": 500.0,
        "loss/D": kimg,
        "discriminator/real_prob": 0.5,
        "discriminator/fake_prob": 0.5,
    }


def test_progress_lines_come_once_a_second_and_the_last_one_always(tmp_path, ganray_log):
    config = tiny_config(tmp_path)
    folder = config.run_folder()
    writer = journal.Journal(RunFolder(folder))
    with journal.print_progress(config):
        for kimg in range(30):
            writer.metrics(kimg, metrics(kimg))
            time.sleep(0.02)
        journal.add_status(folder, "rank 1 failed", is_training=False)
        for kimg in range(30, 60):
            writer.metrics(kimg, metrics(kimg))
    lines = [record.getMessage() for record in ganray_log.records]
    assert len(lines) <= 4
    assert "D 59.000" in lines[-1]
    status = lines.index("rank 1 failed")
    assert "D 29.000" in lines[status - 1]  # what had happened before


def test_workers_that_start_are_seen_to_do_so(tmp_path, ganray_log, monkeypatch):
    monkeypatch.setattr(journal, "_WAIT_S", 0.1)
    monkeypatch.setattr(journal, "_LONG_WAIT_S", 1.2)
    config = tiny_config(tmp_path)
    with journal.print_progress(config, lambda: " (they need 2 CPU)"):
        time.sleep(2.2)
    lines = [record.getMessage() for record in ganray_log.records]
    assert lines[0] in ("starting workers: 0 s", "starting workers: 1 s")
    assert lines[-1] == "starting workers: 2 s (they need 2 CPU)"
    ganray_log.clear()
    with journal.print_progress(config):  # this process trains, and need not start
        time.sleep(1)
    assert not ganray_log.records
