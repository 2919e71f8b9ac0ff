"""Two drivers of one run: the second is rejected, and a killed driver holds nothing."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from ganray.errors import UserError
from ganray.training import run_lock
from ganray.training.run_lock import lock_folder
from tests.conftest import wait_until

HOLD = """
import sys, time
from pathlib import Path
from ganray.training.run_lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other_driver(tmp_path):
    """A process that holds tmp_path."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_driver_learns_which_driver_holds_the_folder(tmp_path, other_driver):
    rule = rf"{tmp_path} is held by another driver \(.*@.*, process {other_driver.pid}, since 20"
    with pytest.raises(UserError, match=rule), lock_folder(tmp_path):
        pass


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_was_killed_holds_nothing(tmp_path, other_driver, end):
    other_driver.send_signal(end)
    other_driver.wait()
    with lock_folder(tmp_path):
        assert json.loads((tmp_path / "driver.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "driver.json").exists()


@pytest.mark.parametrize("is_alive", [True, False])
def test_a_driver_on_another_host_is_recognized_by_its_heartbeat(tmp_path, monkeypatch, is_alive):
    """On a file system that does not lock across hosts."""
    monkeypatch.setattr(run_lock, "HEARTBEAT_S", 0.1)
    owner = tmp_path / "driver.json"
    owner.write_text(json.dumps({"user": "a", "host": "far", "pid": 1, "since": "2026-01-01"}))
    stop = threading.Event()

    def beat():
        while not stop.wait(0.05):
            os.utime(owner)

    if is_alive:
        threading.Thread(target=beat, daemon=True).start()
    try:
        if is_alive:
            with pytest.raises(UserError, match="a@far, process 1"), lock_folder(tmp_path):
                pass
        else:
            with lock_folder(tmp_path):
                pass
    finally:
        stop.set()


def test_the_heartbeat_updates_the_owner_file(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "HEARTBEAT_S", 0.05)
    with lock_folder(tmp_path):
        before = (tmp_path / "driver.json").stat().st_mtime_ns
        wait_until(lambda: (tmp_path / "driver.json").stat().st_mtime_ns != before)


def test_a_file_system_without_locks_has_the_heartbeat(tmp_path, monkeypatch):
    """A driver on this host is recognized as well, as the lock cannot exclude it."""

    def refuse(_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(run_lock.FileLock, "acquire", refuse)
    with lock_folder(tmp_path):
        rule = rf"process {os.getpid()}, since 20"
        with pytest.raises(UserError, match=rule), lock_folder(tmp_path):
            pass
    with lock_folder(tmp_path):
        pass
