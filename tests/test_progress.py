"""Progress of a long task: log lines, or a bar on a terminal, with a fake clock."""

import io

import pytest
from tqdm import tqdm

from ganray import progress
from ganray.progress import LOG_INTERVAL_S, Progress


class Clock:
    """A clock that the test sets."""

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


def test_a_line_shows_task_progress_speed_and_remaining_time(
    clock: Clock, capsys: pytest.CaptureFixture
):
    with Progress(2000, "faces -> shards", "images") as task:
        clock.now += LOG_INTERVAL_S
        task.add(500)
        assert capsys.readouterr() == (
            "faces -> shards:  25%  500/2.00k images [00:10<00:30, 50.0 images/s]\n",
            "",  # job logs mark standard error as errors
        )


def test_a_long_name_is_shortened_so_that_a_line_fits_a_job_log(
    clock: Clock, capsys: pytest.CaptureFixture
):
    with Progress(200_000, f"folder-of-images -> {'x' * 100}-{'y' * 10}", "images") as task:
        clock.now += 36_000
        task.add(100_000)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("folder-of-images ...xxxxxxxxx-yyyyyyyyyy:  50%  100k/200k images [")
    assert max(map(len, lines)) <= 100


def test_a_slow_task_has_a_rate_in_units_per_second(clock: Clock, capsys: pytest.CaptureFixture):
    with Progress(4, "work", "steps") as task:
        clock.now += 40
        task.add(1)
        assert capsys.readouterr().out.endswith("[00:40<02:00, 0.03 steps/s]\n")


def test_a_log_gets_one_line_per_interval_and_a_last_one(
    clock: Clock, capsys: pytest.CaptureFixture
):
    with Progress(100, "work", "steps") as task:
        for _ in range(100):  # two and a half intervals
            clock.now += LOG_INTERVAL_S / 40
            task.add(1)
    output = capsys.readouterr().out
    assert "\r" not in output
    assert output.endswith("\n")
    assert [line.split(" [")[0] for line in output.splitlines()] == [
        "work:  40%  40.0/100 steps",
        "work:  80%  80.0/100 steps",
        "work: 100%  100/100 steps",
    ]


def test_a_pause_is_followed_by_one_line_only(clock: Clock, capsys: pytest.CaptureFixture):
    with Progress(10, "work", "steps") as task:
        clock.now += 5 * LOG_INTERVAL_S
        task.add(1)
        task.add(1)
        assert capsys.readouterr().out.count("\n") == 1


def test_the_clock_starts_with_the_context(clock: Clock, capsys: pytest.CaptureFixture):
    task = Progress(10, "work", "steps")
    clock.now += 3600
    with task:
        clock.now += 1
        task.add(5)
    assert capsys.readouterr().out == "work:  50%  5.00/10.0 steps [00:01<00:01, 5.00 steps/s]\n"


def test_a_failed_task_logs_its_progress(clock: Clock, capsys: pytest.CaptureFixture):
    def work() -> None:
        with Progress(4, "work", "steps") as task:
            task.add(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("work:  25%  1.00/4.00 steps [")


def test_a_terminal_gets_one_bar_and_no_log_lines(monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    with Progress(8, "work", "steps") as task:
        task.add(8)
    assert terminal.getvalue().count("\n") == 1
    shown = terminal.getvalue().split("\r")[-1]
    assert shown.startswith("work: 100%|")
    assert " steps/s]" in shown


def test_the_bar_of_a_long_name_fits_80_columns():
    bar = tqdm.format_meter(
        n=64,
        total=297,
        elapsed=3,
        ncols=80,
        prefix=Progress(297, "digits -> " + "x" * 99, "images").what,
        unit=" images",
        unit_scale=True,
        bar_format=progress._BAR_FORMAT,
    )
    assert len(bar) <= 80
    assert bar.endswith("| [00:03<00:10, 21.3 images/s]")
