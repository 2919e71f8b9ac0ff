"""HDF5 handles: none is locked, none crosses a process, none is needed to write."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ganray.data import reader as reader_module
from ganray.data.integrity import verify_shards
from ganray.data.reader import ShardedDataset
from tests.data.conftest import SHARD_1, gathered

ROOT = Path(reader_module.__file__).parents[2]
HOLD = """
import fcntl, sys
file = open(sys.argv[1], "rb")
fcntl.flock(file, fcntl.LOCK_EX)  # as HDF5 locks what it writes
print("held", flush=True)
sys.stdin.read()
"""
REFUSED = """
import sys, h5py
try:
    h5py.File(sys.argv[1], "r", locking=True)
except OSError:
    print("refused")
"""


@pytest.fixture
def locked(folder: Path) -> Iterator[Path]:
    """A set, one shard of which another process has open for writing, with HDF5's lock on it."""
    command = [sys.executable, "-c", HOLD, str(folder / SHARD_1)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield folder
        process.communicate(b"")


def test_hdf5_locks_no_file(locked: Path, monkeypatch):
    """A network file system without locks fails in the same place as one that is held."""
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "TRUE")
    command = [sys.executable, "-c", REFUSED, str(locked / SHARD_1)]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "refused\n"
    assert len(gathered(ShardedDataset(locked))) == 150


def test_a_folder_that_only_others_may_write_is_read(shards_folder: Path):
    """Read in a child process without root's permissions, which ignore file modes."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for path in shards_folder.iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
            (copy / path.name).chmod(0o444)
        copy.chmod(0o555)
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            status = 1
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                assert not os.access(copy, os.W_OK)
                reader = ShardedDataset(copy, verify="first-touch")
                assert len(gathered(reader)) == verify_shards(copy).num_images
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        copy.chmod(0o755)


def total(reader: ShardedDataset, results) -> None:
    results.put(int(gathered(reader).sum()))


@pytest.mark.parametrize(("method", "threads"), [("fork", 1), ("fork", 2), ("spawn", 2)])
def test_a_process_started_in_any_way_reads(shards_folder: Path, method: str, threads: int):
    reader = ShardedDataset(shards_folder, threads=threads)
    expected = int(gathered(reader).sum())
    context = multiprocessing.get_context(method)
    results = context.Queue()
    process = context.Process(target=total, args=(reader, results), daemon=True)
    process.start()
    assert results.get(timeout=60) == expected
    process.join(10)
    assert process.exitcode == 0


def test_no_hdf5_object_is_left_open(shards_folder: Path):
    import h5py

    reader = ShardedDataset(shards_folder)
    gathered(reader)
    kinds = h5py.h5f.OBJ_FILE | h5py.h5f.OBJ_DATASET | h5py.h5f.OBJ_GROUP | h5py.h5f.OBJ_ATTR
    assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, kinds) == 0


def test_a_forked_child_decodes_with_threads_of_its_own(celeba_zip: Path, tmp_path: Path):
    from ganray.data.sources.celeba import CelebA
    from ganray.data.writer import write_shards

    write_shards(CelebA.open(celeba_zip), tmp_path, images=20, encoding="jpeg", processes=1)
    reader = ShardedDataset(tmp_path, threads=2, size=32)
    expected = gathered(reader)  # the parent's threads have begun
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if torch.equal(gathered(reader), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
