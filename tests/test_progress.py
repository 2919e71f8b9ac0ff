"""What a long task says: lines in a log, a bar on a terminal. The clock is ours."""

import io

import pytest

from ganray import progress
from ganray.progress import LINE_EVERY_S, Progress


class Clock:
    """Stands still until it is told otherwise."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


# capsys is in memory and no terminal: what a job log sees.


def test_a_line_says_what_how_far_and_how_fast(clock: Clock, capsys: pytest.CaptureFixture):
    with Progress(2000, "faces -> shards", "images") as task:
        clock.now += LINE_EVERY_S
        task.add(500)
        assert capsys.readouterr() == (
            "faces -> shards:  25%  500/2.00k images [00:10<00:30, 50.0 images/s]\n",
            "",  # a job log shows standard error as if it were trouble
        )


def test_a_slow_task_has_a_rate_of_the_same_unit(clock: Clock, capsys: pytest.CaptureFixture):
    with Progress(4, "work", "steps") as task:
        clock.now += 40
        task.add(1)
        assert capsys.readouterr().out.endswith("[00:40<02:00, 0.03 steps/s]\n")


def test_a_log_gets_whole_lines_at_most_one_an_interval_and_a_last_one(
    clock: Clock, capsys: pytest.CaptureFixture
):
    with Progress(100, "work", "steps") as task:
        for _ in range(100):  # two and a half intervals
            clock.now += LINE_EVERY_S / 40
            task.add(1)
    said = capsys.readouterr().out
    assert "\r" not in said
    assert said.endswith("\n")
    assert [line.split(" [")[0] for line in said.splitlines()] == [
        "work:  40%  40.0/100 steps",
        "work:  80%  80.0/100 steps",
        "work: 100%  100/100 steps",
    ]


def test_a_pause_is_not_made_up_for(clock: Clock, capsys: pytest.CaptureFixture):
    with Progress(10, "work", "steps") as task:
        clock.now += 5 * LINE_EVERY_S
        task.add(1)
        task.add(1)
        assert capsys.readouterr().out.count("\n") == 1


def test_time_counts_from_the_start_of_the_task(clock: Clock, capsys: pytest.CaptureFixture):
    task = Progress(10, "work", "steps")
    clock.now += 3600
    with task:
        clock.now += 1
        task.add(5)
    assert capsys.readouterr().out == "work:  50%  5.00/10.0 steps [00:01<00:01, 5.00 steps/s]\n"


def test_a_task_that_fails_says_how_far_it_came(clock: Clock, capsys: pytest.CaptureFixture):
    def work() -> None:
        with Progress(4, "work", "steps") as task:
            task.add(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("work:  25%  1.00/4.00 steps [")


def test_a_terminal_gets_one_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    with Progress(8, "work", "steps") as task:
        task.add(8)
    assert terminal.getvalue().count("\n") == 1
    shown = terminal.getvalue().split("\r")[-1]
    assert shown.startswith("work: 100%|")
    assert "| 8.00/8.00 [" in shown
    assert " steps/s]" in shown
