"""The cache that the processes of a node share: who downloads, and what goes when it is full."""

import fcntl
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest

from ganray.data.remote import RemoteShards
from tests.data import remote_sets
from tests.data.remote_servers import RangeServer
from tests.data.remote_sets import MIB, make_set, standing, total, wait_until

impatient, cache, server, url = (
    remote_sets.impatient,
    remote_sets.cache,
    remote_sets.server,
    remote_sets.url,
)
pytestmark = pytest.mark.usefixtures("impatient")


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Run this in another process; ``shards(limit)`` makes a RemoteShards of (url, cache)."""
    head = (
        "import sys, time; from pathlib import Path; from ganray.data import remote, remote_cache\n"
        "def shards(limit=None):\n"
        "    return remote.RemoteShards(sys.argv[1], Path(sys.argv[2]), limit_bytes=limit)\n"
    )
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_of_a_node_share_the_work(server: RangeServer, url: str, cache: Path) -> None:
    server.files = make_set([100_000] * 12)
    server.delay_s = 0.1  # long enough for the four to meet
    code = (
        "own = []\n"
        "append = remote_cache.CachedSet._append\n"
        "remote_cache.CachedSet._append = lambda *a: own.append(a[2].name) or append(*a)\n"
        "with shards() as s:\n"
        "    s.stage(range(12))\n"
        "    sizes = [s.fetch(n).stat().st_size for n in range(12)]\n"
        "assert sizes == [100_000] * 12\n"
        "print('own', *own)\n"
    )
    children = [start(code, url, cache) for _ in range(4)]
    outputs = [child.communicate(timeout=60)[0] for child in children]
    shares = [re.findall(r"shard-\d+\.h5", out[out.rindex("own") :]) for out in outputs]
    assert [child.returncode for child in children] == [0] * 4
    names = sorted(name for name in server.files if name.endswith(".h5"))
    assert server.requests() == [(name, 0) for name in names]
    assert sorted(name for share in shares for name in share) == names


def test_a_busy_shard_is_left_for_later(server: RangeServer, url: str, cache: Path) -> None:
    with RemoteShards(url, cache) as shards:
        with (shards.folder / "shard-00000.h5.lock").open("a") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            shards.stage([0, 1, 2])
            wait_until(lambda: standing(shards) == [1, 2])
            time.sleep(0.1)
            assert standing(shards) == [1, 2]
        wait_until(lambda: standing(shards) == [0, 1, 2])


def test_threads_that_fetch_the_same_shard(server: RangeServer, url: str, cache: Path) -> None:
    server.delay_s = 0.1
    with RemoteShards(url, cache) as shards:
        threads = [threading.Thread(target=shards.fetch, args=(0,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.log == [("shard-00000.h5", 0, MIB)]
        shards.release(0)
        with (shards.folder / "shard-00000.h5.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_killed_download_is_taken_up(server: RangeServer, url: str, cache: Path) -> None:
    server.files = make_set([20 * MIB])
    third, go_on = threading.Event(), threading.Event()

    def before(name: str, first: int) -> None:
        if first == 16 * MIB and not third.is_set():
            third.set()
            go_on.wait(20)

    server.before = before
    child = start("shards().fetch(0)", url, cache)
    assert third.wait(20)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (part,) = cache.glob("*/*.part")
    assert part.stat().st_size == 16 * MIB
    assert not list(cache.glob("*/*.h5"))
    server.log.clear()
    with RemoteShards(url, cache) as shards:
        assert shards.fetch(0).read_bytes() == server.files["shard-00000.h5"]
        assert server.log == [("shard-00000.h5", 16 * MIB, 4 * MIB)]
    go_on.set()


def test_a_pin_ends_with_its_process(server: RangeServer, url: str, cache: Path) -> None:
    child = start("s = shards(); s.fetch(0); print('here', flush=True); time.sleep(60)", url, cache)
    assert child.stdout is not None
    assert child.stdout.readline() == "here\n"
    with RemoteShards(url, cache, limit_bytes=MIB) as shards:
        with pytest.raises(ValueError, match=r"limit of 1\.0 MB beside the shards in use"):
            shards.fetch(1)
        child.send_signal(signal.SIGKILL)
        child.wait()
        shards.fetch(1)
        assert standing(shards) == [1]


def test_a_damaged_part_is_fetched_from_zero(server: RangeServer, url: str, cache: Path) -> None:
    with RemoteShards(url, cache) as shards:
        (shards.folder / "shard-00000.h5.part").write_bytes(b"\0" * 1000)
        (shards.folder / "shard-00001.h5.part").write_bytes(b"\0" * 2 * MIB)  # too long
        for number in (0, 1):
            path = shards.fetch(number)
            assert path.read_bytes() == server.files[path.name]
    assert [first for _, first, _ in server.log] == [1000, 0, 0]


def test_a_shard_that_is_damaged_there_is_refused(
    server: RangeServer, url: str, cache: Path
) -> None:
    server.files["shard-00000.h5"] = bytes(MIB)
    with RemoteShards(url, cache) as shards:
        with pytest.raises(ValueError, match=f"{url}/shard-00000.h5: came twice with SHA-256"):
            shards.fetch(0)
        assert len(server.log) == 2
        assert total(cache) < 100  # the lock file


def test_the_shard_not_used_for_longest_goes_first(url: str, cache: Path) -> None:
    with RemoteShards(url, cache, limit_bytes=5 * MIB // 2) as shards:
        for number in (0, 1, 0, 2):
            shards.fetch(number)
            shards.release(number)
            assert total(cache) <= 5 * MIB // 2
        assert standing(shards) == [0, 2]


def test_the_limit_is_for_all_sets_and_spares_other_files(
    server: RangeServer, url: str, cache: Path
) -> None:
    (cache / "mine").mkdir(parents=True)
    (cache / "mine" / "shard-00000.h5").write_bytes(bytes(MIB))  # someone prepared a set here
    with RemoteShards(url, cache, limit_bytes=2 * MIB) as old:
        for number in (0, 1):
            old.fetch(number)
            old.release(number)
        server.files = make_set([MIB] * 3, seed=1)
        with RemoteShards(url, cache, limit_bytes=2 * MIB) as new:
            new.fetch(2)
            assert (standing(old), standing(new)) == ([1], [2])
    assert (cache / "mine" / "shard-00000.h5").exists()


def test_shards_in_use_stay(url: str, cache: Path) -> None:
    with RemoteShards(url, cache, limit_bytes=2 * MIB) as shards:
        shards.fetch(0)
        shards.fetch(1)
        started = time.monotonic()
        with pytest.raises(ValueError, match=r"1\.0 MB too many .* limit of 2\.1 MB") as error:
            shards.fetch(2)
        assert time.monotonic() - started < 0.2  # nobody else could make room
        assert "raise data.cache_gb, or use data.shuffle=blocks" in str(error.value)
        assert standing(shards) == [0, 1]
        shards.release(0)
        shards.fetch(2)
        assert standing(shards) == [1, 2]


def test_a_shard_of_another_process_is_waited_for(url: str, cache: Path) -> None:
    with (
        RemoteShards(url, cache, limit_bytes=MIB) as shards,
        RemoteShards(url, cache, limit_bytes=MIB) as other,
    ):
        other.fetch(0)
        threading.Timer(0.1, other.release, [0]).start()
        shards.fetch(1)
        assert standing(shards) == [1]


def test_staging_keeps_within_the_limit_and_loses_nothing(
    server: RangeServer, url: str, cache: Path
) -> None:
    server.files = make_set([100_000] * 12)
    most = 0

    def before(name: str, first: int) -> None:
        nonlocal most
        most = max(most, total(cache))

    server.before = before
    with RemoteShards(url, cache, limit_bytes=350_000) as shards:
        shards.stage(range(12))
        for number in range(12):
            path = shards.fetch(number)
            assert path.read_bytes() == server.files[path.name]
            shards.release(number)
    assert len(server.log) == 12
    assert most <= 351_000  # and the lock files


def test_a_shard_that_is_needed_takes_the_room_of_those_staged(
    server: RangeServer, url: str, cache: Path
) -> None:
    server.files = make_set([100_000] * 8)
    with RemoteShards(url, cache, limit_bytes=300_000) as shards:
        shards.stage(range(8))
        wait_until(lambda: len(standing(shards)) == 3)
        first = standing(shards)[0]
        shards.fetch(7)
        assert 7 in standing(shards)
        assert first in standing(shards)  # the last of those staged went
        with RemoteShards(url, cache, limit_bytes=300_000) as other:
            other.fetch(6)


def test_no_room_on_the_disk_is_seen_beforehand(
    server: RangeServer, url: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    with RemoteShards(url, cache) as shards:
        shards.fetch(0)
        free = 1000
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, free))
        with pytest.raises(ValueError, match=r"1\.0 MB too many for the disk of .*; make room"):
            shards.fetch(1)
        shards.release(0)
        shards.fetch(1)  # in the place of the one that is not used
        assert standing(shards) == [1]
    assert len(server.log) == 2
