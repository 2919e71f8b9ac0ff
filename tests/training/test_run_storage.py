"""Runs in a storage, here a folder that stands for one behind a URL."""

import json
import os
import shutil
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ganray.data.storage import Storage
from ganray.errors import UserError
from ganray.training import checkpoint_uploader, checkpoints, journal, launch, run_lock
from ganray.training.checkpoints import find_checkpoint, list_checkpoints
from ganray.training.context import LocalContext
from ganray.training.run_folder import RunFolder
from ganray.training.run_lock import lock_folder
from ganray.training.run_storage import (
    fetch_initial,
    fetch_run,
    pull_folder,
    push_folder,
    share_initial,
    share_run,
    upload_folders,
)
from ganray.training.state import read_state
from tests.conftest import tiny_config
from tests.training.test_resume import states_equal


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "storage")


@pytest.fixture
def stored(url):
    return Storage(url)


def stored_config(home, url, **train):
    return replace(tiny_config(home, **train), storage=url)


def steps(names):
    return sorted({name.split("/")[2] for name in names if "/checkpoint_" in name})


def test_a_run_goes_on_bit_for_bit_in_another_home(squares, tmp_path, url):
    uninterrupted = launch.launch(tiny_config(tmp_path / "whole"), squares)
    launch.launch(stored_config(tmp_path / "one", url, kimg=0.12), squares)
    shutil.rmtree(tmp_path / "one")
    config = stored_config(tmp_path / "two", url)
    pull_folder(config.run_folder(), url)
    resumed = launch.launch(config, squares)
    assert resumed.parent == config.run_folder()
    assert states_equal(read_state(uninterrupted), read_state(resumed))
    curves = [journal.history(p.parent, "loss/D") for p in (uninterrupted, resumed)]
    assert curves[0][0].tolist() == curves[1][0].tolist()
    assert curves[0][1].tolist() == curves[1][1].tolist()


def test_checkpoints_in_the_storage_are_kept_as_those_on_the_disk(squares, tmp_path, url, stored):
    """Another node's driver keeps those that it does not have itself."""
    keep = {"keep_checkpoints": 1, "keep_every": 0.12, "checkpoint_every": 0.024}
    launch.launch(stored_config(tmp_path / "one", url, kimg=0.18, **keep), squares)
    config = stored_config(tmp_path / "two", url, kimg=0.24, **keep)
    launch.launch(config, squares)
    launch.launch(tiny_config(tmp_path / "whole", **keep), squares)
    expected = [path.name for path in list_checkpoints(tmp_path / "whole" / "runs" / "tiny")]
    assert steps(stored.sizes("runs/tiny")) == expected
    assert len(list_checkpoints(tmp_path / "two" / "runs" / "tiny")) < len(expected) == 3


def test_a_damaged_copy_is_downloaded_again_and_a_damaged_original_is_not_used(
    squares, tmp_path, url, stored, capsys
):
    config = stored_config(tmp_path / "one", url, checkpoint_every=0.12)
    last = launch.launch(config, squares)
    before = read_state(last)
    (last / "state.pt").write_bytes(b"damaged")
    assert find_checkpoint(last.parent, True, stored) == last
    assert states_equal(read_state(last), before)
    stored.write(f"runs/tiny/{last.name}/state.pt", b"damaged")
    folder = tmp_path / "two" / "runs" / "tiny"
    found = find_checkpoint(folder, False, stored)
    assert found is not None
    assert found.name == "checkpoint_0000000010"
    assert "resuming from the earlier checkpoint" in capsys.readouterr().out
    with pytest.raises(UserError, match="damaged"):
        find_checkpoint(folder, True, stored)
    stored.delete(f"runs/tiny/{found.name}/digests.json")  # as if its upload had been cut off
    assert [path.name for path in list_checkpoints(folder, stored)] == [last.name]


def test_training_outlives_an_outage_and_the_last_checkpoint_is_uploaded(
    squares, tmp_path, url, stored, monkeypatch, capsys
):
    failures = iter(range(6))
    upload = Storage.upload

    def fail(self, source, name):
        if "checkpoint_" in name and next(failures, None) is not None:
            raise UserError(f"{self}/{name}: the connection failed")
        upload(self, source, name)

    monkeypatch.setattr(Storage, "upload", fail)
    monkeypatch.setattr(checkpoint_uploader, "_RETRY_S", 0.01)
    config = stored_config(tmp_path / "home", url, checkpoint_every=0.06)
    last = launch.launch(config, squares)
    assert steps(stored.sizes("runs/tiny")) == [last.name]
    lines = capsys.readouterr().out
    assert "checkpoint_0000000005 is not uploaded yet, and training goes on" in lines
    monkeypatch.setattr(checkpoint_uploader, "_LAST_UPLOAD_S", 0.5)
    failures = iter(range(100))
    with pytest.raises(UserError, match="the connection failed"):
        launch.launch(replace(config, train=replace(config.train, kimg=0.3)), squares)


def test_the_end_does_not_wait_forever_for_a_store_that_never_answers(
    squares, tmp_path, url, monkeypatch
):
    released, upload = threading.Event(), Storage.upload

    def hang(self, source, name):
        if "checkpoint_" in name:
            released.wait(60)
        upload(self, source, name)

    monkeypatch.setattr(Storage, "upload", hang)
    monkeypatch.setattr(checkpoint_uploader, "_LAST_UPLOAD_S", 0.2)
    config = stored_config(tmp_path / "home", url)
    try:
        with pytest.raises(UserError, match=r"an upload did not end within 0\.2 s; the last"):
            launch.launch(config, squares)
        assert list_checkpoints(config.run_folder())[-1].name == "checkpoint_0000000020"
    finally:
        released.set()


def test_the_best_checkpoint_does_not_start_anew_in_an_outage(squares, tmp_path, url, monkeypatch):
    config = stored_config(tmp_path / "home", url, kimg=0.12)
    last = launch.launch(config, squares)
    best = shutil.copytree(last, last.with_name("best_coverage"))
    monkeypatch.setattr(Storage, "read", _fail)
    context, state = LocalContext(config), SimpleNamespace(config=config, step=10)
    with pytest.raises(UserError, match="the connection failed"):
        checkpoints.CheckpointWriter(state, context)  # pyright: ignore[reportArgumentType]
    assert (best / "state.pt").exists()


def _fail(self, name):
    raise UserError(f"{self}/{name}: the connection failed")


def test_the_journal_is_there_before_the_checkpoint(squares, tmp_path, url, stored, monkeypatch):
    """If the driver is killed then, no event before the checkpoint is lost."""
    uploaded = []
    upload, write = Storage.upload, Storage.write
    monkeypatch.setattr(Storage, "upload", lambda *args: uploaded.append(args[2]) or upload(*args))
    monkeypatch.setattr(Storage, "write", lambda *args: uploaded.append(args[1]) or write(*args))
    launch.launch(stored_config(tmp_path / "home", url), squares)
    last = uploaded.index("runs/tiny/checkpoint_0000000020/digests.json")
    assert "runs/tiny/journal.jsonl" in uploaded[:last]
    pull_folder(tmp_path / "other" / "runs" / "tiny", url)
    seen, _ = journal.history(tmp_path / "other" / "runs" / "tiny", "loss/D")
    assert seen[-1] == 240


def test_the_pictures_are_there_before_the_journal(tmp_path, url, stored, monkeypatch):
    """A run that resumes would not write one again that its journal names."""
    writer = journal.Journal(RunFolder(tmp_path / "runs" / "one"))
    image = np.zeros((2, 2, 3), np.uint8)
    upload = Storage.upload

    def upload_while_training(*args):
        writer.image("samples", 200, image)
        upload(*args)

    writer.image("samples", 100, image)
    monkeypatch.setattr(Storage, "upload", upload_while_training)
    push_folder(tmp_path / "runs" / "one", url)
    pictures = {f"runs/one/{event['path']}" for event in stored_events(stored)}
    assert pictures == {"runs/one/samples/000000000100.png"}
    assert pictures <= stored.sizes("runs/one").keys()
    push_folder(tmp_path / "runs" / "one", url)
    assert len(stored_events(stored)) == 2


def stored_events(stored):
    return [json.loads(line) for line in stored.read("runs/one/journal.jsonl").splitlines()]


def test_a_longer_journal_stays_and_another_one_is_replaced(tmp_path, url, stored):
    folder = tmp_path / "runs" / "one"
    for name, content in {"journal.jsonl": b"1\n2\n", "samples/1.png": b"new"}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    stored.write("runs/one/journal.jsonl", b"1\n")
    stored.write("runs/one/config.json", b"{}")
    stored.write("runs/one/../../outside", b"")
    for own in ("driver.json", "stop", "ranks/0.json", "checkpoint_0000000001/state.pt"):
        stored.write(f"runs/one/{own}", b"{}")
    pull_folder(folder, url)
    assert (folder / "journal.jsonl").read_bytes() == b"1\n2\n"
    push_folder(folder, url)
    assert stored.read("runs/one/journal.jsonl") == b"1\n2\n"
    stored.write("runs/one/journal.jsonl", b"1\n3\n")  # by another driver
    pull_folder(folder, url)
    assert (folder / "journal.jsonl").read_bytes() == b"1\n3\n"
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert files == [".push.lock", ".stored.json", "config.json", "journal.jsonl", "samples/1.png"]
    assert not (tmp_path / "outside").exists()


def test_files_that_were_not_uploaded_in_time_stay_and_others_are_replaced(tmp_path, url, stored):
    folder, other = tmp_path / "runs" / "one", tmp_path / "other" / "runs" / "one"
    folder.mkdir(parents=True)
    for name in ("result.json", "losses.png", "kept.png"):
        (folder / name).write_bytes(b"1")
    push_folder(folder, url)
    (folder / "result.json").write_bytes(b"2")  # and the driver is killed
    pull_folder(folder, url)
    assert (folder / "result.json").read_bytes() == b"2"
    pull_folder(other, url)
    (other / "losses.png").write_bytes(b"22")
    (other / "result.json").write_bytes(b"33")
    push_folder(other, url)
    pull_folder(folder, url)
    found = [(folder / name).read_bytes() for name in ("result.json", "losses.png", "kept.png")]
    assert found == [b"33", b"22", b"1"]


def test_only_what_has_changed_is_uploaded(tmp_path, url, stored, monkeypatch):
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    for name in ("a.json", "b.png"):
        (folder / name).write_bytes(b"1")
    push_folder(folder, url)
    uploaded = []
    monkeypatch.setattr(Storage, "upload", lambda *args: uploaded.append(args[2]))
    push_folder(folder, url)
    assert uploaded == []
    (folder / "a.json").write_bytes(b"2")
    push_folder(folder, url)
    assert uploaded == ["runs/one/a.json"]


def test_folders_are_uploaded_at_the_end_however_it_ends(tmp_path, url, stored):
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)

    def write(name, end=None):
        with upload_folders(url, lambda: [folder]):
            (folder / name).write_text(name)
            if end:
                raise end

    write("report.json")
    with pytest.raises(KeyboardInterrupt):
        write("losses.png", KeyboardInterrupt)
    assert [*stored.sizes("")] == ["runs/one/losses.png", "runs/one/report.json"]


def test_a_run_and_one_of_its_checkpoints_are_fetched_by_name(squares, tmp_path, url):
    config = stored_config(tmp_path / "one", url, checkpoint_every=0.12)
    last = launch.launch(config, squares)
    push_folder(last.parent, url)
    home = tmp_path / "two"
    for name in ("tiny", "tiny/checkpoint_0000000010", "other", "../one", "tiny/other"):
        fetch_run(name, home, url)
    assert [*(home / "runs").iterdir()] == [home / "runs" / "tiny"]
    found = list_checkpoints(home / "runs" / "tiny")
    assert [path.name for path in found] == ["checkpoint_0000000010", last.name]
    assert journal.history(home / "runs" / "tiny", "loss/D")[0].tolist()


def test_a_run_that_began_without_the_storage_goes_on_with_it(squares, tmp_path, url, stored):
    first = launch.launch(tiny_config(tmp_path / "home", kimg=0.12), squares)
    config = stored_config(tmp_path / "home", url)
    share_run(config.run_folder(), url)
    assert steps(stored.sizes("runs/tiny")) == [first.name]
    launch.launch(config, squares)
    (tmp_path / "home/runs/tiny/checkpoint_0000000099").mkdir()  # of an upload that failed
    share_run(config.run_folder(), url)
    assert steps(stored.sizes("runs/tiny")) == [first.name, "checkpoint_0000000020"]
    stored.write("runs/tiny/checkpoint_0000000077/digests.json", b"damaged")
    last = launch.launch(replace(config, train=replace(config.train, kimg=0.36)), squares)
    assert steps(stored.sizes("runs/tiny"))[1:] == ["checkpoint_0000000020", last.name]
    assert not (tmp_path / "home/runs/tiny/checkpoint_0000000099").exists()


@pytest.mark.parametrize("name", ["tiny", "tiny/checkpoint_0000000010"])
def test_initial_weights_come_from_a_run_in_the_storage(squares, tmp_path, url, stored, name):
    source = launch.launch(stored_config(tmp_path / "one", url, checkpoint_every=0.12), squares)
    if "/" in name:
        source = source.with_name("checkpoint_0000000010")
    config = replace(stored_config(tmp_path / "two", url, name="tuned"), init_from=name)
    located = checkpoints.locate_initial_weights(config)
    assert located.init_from == str(tmp_path / "two" / "runs" / "tiny" / source.name)
    before = stored.sizes("runs/tiny")
    shared = share_initial(located.init_from, url)
    on_node = fetch_initial(replace(located, home=tmp_path / "node", init_from=shared))
    assert states_equal(read_state(source), read_state(Path(on_node.init_from)))
    assert Path(on_node.init_from).is_relative_to(tmp_path / "node")
    assert stored.sizes("runs/tiny") == before


def test_a_driver_in_another_home_is_recognized_by_its_file_in_the_storage(
    tmp_path, url, stored, monkeypatch
):
    monkeypatch.setattr(run_lock, "HEARTBEAT_S", 0.2)
    one, two = (tmp_path / home / "runs" / "one" for home in ("a", "b"))
    monkeypatch.setattr(run_lock, "_CLAIM_S", 0.2)
    with lock_folder(one, url):
        owner = stored.read("runs/one/driver.json")
        rule = rf"{two} is held by another driver .*, process {os.getpid()}, since"
        with pytest.raises(UserError, match=rule), lock_folder(two, url):
            pass
    assert stored.read("runs/one/driver.json") is None
    stored.write("runs/one/driver.json", owner)  # as if it had been killed
    with lock_folder(two, url):
        assert json.loads((two / "driver.json").read_text())["folder"] == str(two)


def test_a_driver_whose_claim_was_slow_finds_the_one_that_it_has_replaced(
    tmp_path, url, stored, monkeypatch
):
    """It saw no owner, and writes its file after the other has read its own."""
    monkeypatch.setattr(run_lock, "HEARTBEAT_S", 0.4)
    monkeypatch.setattr(run_lock, "_CLAIM_S", 0.05)
    one, two = (tmp_path / home / "runs" / "one" for home in ("a", "b"))
    write = Storage.write
    with ExitStack() as stack:

        def write_late(self, *args):
            monkeypatch.setattr(Storage, "write", write)
            stack.enter_context(lock_folder(one, url))
            write(self, *args)

        monkeypatch.setattr(Storage, "write", write_late)
        with pytest.raises(UserError, match="held by another driver"), lock_folder(two, url):
            pass
        assert json.loads(stored.read("runs/one/driver.json"))["folder"] == str(one)
