"""Printed command lines run as printed."""

import os
import shlex
from pathlib import Path

import pytest

from ganray.config.commands import command_line, home_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def default_home(tmp_path, monkeypatch):
    monkeypatch.setenv("GANRAY_HOME", str(tmp_path / "default"))


def test_a_home_with_spaces_is_quoted_and_the_default_left_out():
    home = Path("/data/a b/it's")
    line = command_line("sweep", "--resume", "--name", "x", home=home)
    words = ["python", "jobs/sweep.py", "--resume", "--name", "x", "--home", str(home)]
    assert shlex.split(line) == words
    assert command_line("celeba", home=home_folder(None)) == "python jobs/celeba.py"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (ROOT / "jobs" / "evaluate.py", ["python", str(ROOT / "jobs" / "celeba.py")]),
        (
            os.path.relpath(ROOT / "jobs" / "evaluate.py"),
            ["python", os.path.relpath(ROOT / "jobs" / "celeba.py")],
        ),
        ("ganray evaluate", ["ganray", "celeba"]),
        ("/usr/bin/pytest", ["python", "jobs/celeba.py"]),
        ("", ["python", "jobs/celeba.py"]),
    ],
)
def test_a_job_is_named_by_the_path_that_started_the_other(program, words, monkeypatch):
    monkeypatch.setattr("sys.argv", [str(program)])
    assert shlex.split(command_line("celeba", home=home_folder(None))) == words
