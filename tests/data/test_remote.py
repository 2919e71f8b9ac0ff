"""Remote shards: sources that fail, processes that share a cache, and what is removed from it."""

import contextlib
import fcntl
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import namedtuple
from pathlib import Path

import fsspec
import numpy as np
import pytest

from ganray.data import remote, remote_source
from ganray.data.format import MANIFEST, ConversionSpec, Manifest, Shard
from ganray.data.remote import RemoteShards
from tests.conftest import wait_until
from tests.data.remote_servers import RangeServer, cutting_proxy

MIB = 2**20
SHARD_0 = "shard-00000.h5"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(remote_source, "BACKOFF_S", 0.01)
    monkeypatch.setattr(remote, "ROOM_WAIT_S", 0.3)
    monkeypatch.setattr(remote, "POLL_S", 0.02)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def server():
    """A server of three shards of 1 MiB."""
    server = RangeServer()
    server.files = make_set([MIB] * 3)
    return server


@pytest.fixture
def url(server):
    with server.running() as url:
        yield url


def make_set(sizes, seed=0):
    """Return shards of random bytes, whose content remote.py does not read, and their manifest."""
    rng = np.random.default_rng(seed)
    files = {f"shard-{n:05d}.h5": rng.bytes(size) for n, size in enumerate(sizes)}
    return files | {MANIFEST: manifest_of(files)}


def manifest_of(files, **changes):
    """Return the manifest of shards; `changes` replaces fields of the first."""
    shards = tuple(
        Shard(name, len(data), len(data), len(data), hashlib.sha256(data).hexdigest(), 0, "")
        for name, data in files.items()
    )
    rows = sum(shard.rows for shard in shards)
    spec = ConversionSpec("noise", "0", 1, rows, "all")
    with tempfile.TemporaryDirectory() as folder:
        Manifest(spec, (1, 1, 1), rows, (), (), shards, "pytest").write(Path(folder))
        manifest = json.loads((Path(folder) / MANIFEST).read_bytes())
    manifest["shards"][0] |= changes
    return json.dumps(manifest).encode()


def cached_bytes(cache):
    """Return the size of all shards, complete or not."""
    size = 0
    for path in cache.glob("*/shard-*.h5*"):
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


def cached(shards):
    return [int(path.stem[-5:]) for path in sorted(shards.folder.glob("*.h5"))]


def failure(url, cache, number=0):
    """Return the error of fetching a shard, which is one line without the URL's password."""
    with pytest.raises(ValueError, match=r"; |: ") as error, RemoteShards(url, cache) as shards:
        shards.fetch(number)
    text = str(error.value)
    assert "\n" not in text
    assert "secret" not in "".join(traceback.format_exception(error.value))
    return text


# Sources.


def upload(bucket, files):
    import boto3

    for name, data in files.items():
        boto3.client("s3").put_object(Bucket=bucket, Key=f"set/{name}", Body=data)
    return f"s3://{bucket}/set"


@pytest.mark.parametrize("kind", ["memory", "file", "path", "http", "s3"])
def test_shards_are_fetched_from(kind, tmp_path, cache, request):
    files = make_set([9 * MIB, 1, 5000])  # the first needs two requests
    if kind == "s3":
        url = upload(request.getfixturevalue("bucket"), files)
    elif kind == "http":
        request.getfixturevalue("server").files = files
        url = request.getfixturevalue("url")
    else:
        path = f"{tmp_path}/set"
        url = {"memory": f"memory://{path}", "file": f"file://{path}", "path": path}[kind]
        fs, path = fsspec.core.url_to_fs(url)
        fs.makedirs(path, exist_ok=True)
        for name, data in files.items():
            fs.pipe_file(f"{path}/{name}", data)
    with RemoteShards(url + "/", cache) as shards:
        assert shards.folder.parent == cache
        assert shards.manifest == Manifest.read(shards.folder)
        shards.stage([1, 0])
        for number in range(3):
            path = shards.fetch(number)
            assert path.read_bytes() == files[path.name]
        assert not list(cache.rglob("*.part"))


def test_a_dropped_connection_resumes_with_smaller_requests(server, url, cache):
    server.files = make_set([20 * MIB])
    drops = iter([3 * MIB, 0])
    server.cut = lambda name, start: next(drops, None) if start == 8 * MIB else None
    with RemoteShards(url, cache) as shards:
        assert shards.fetch(0).read_bytes() == server.files[SHARD_0]
    starts = [start / MIB for _, start, _ in server.log]
    assert starts == [0, 8, 8, 8, 8.5, 16.5]  # after two drops, a request of a sixteenth


def test_a_connection_that_always_drops_ends_with_an_error_and_keeps_what_came(server, url, cache):
    server.files = make_set([20 * MIB])
    server.cut = lambda name, start: 100 if start >= 8 * MIB else None
    with RemoteShards(url, cache) as shards:
        with pytest.raises(ValueError, match=r"failed 5 times in a row at byte 8388608") as error:
            shards.fetch(0)
        assert f"{url}/{SHARD_0}" in str(error.value)
        assert cached(shards) == []
        assert len(server.log) == 6
        server.cut = lambda name, start: None
        shards.fetch(0)
        assert server.log[6][1] == 8 * MIB


def test_an_s3_connection_that_drops(moto, bucket, cache, monkeypatch):
    files = make_set([20 * MIB])
    url, budgets = upload(bucket, files), [MIB, 3 * MIB, 100_000]
    with cutting_proxy(moto, budgets) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        with RemoteShards(url, cache) as shards:
            assert shards.fetch(0).read_bytes() == files[SHARD_0]
    assert budgets == []


def test_a_server_that_is_down_and_one_that_recovers(server, cache):
    with server.running() as url:
        server.status[SHARD_0] = 503
        threading.Timer(0.03, server.status.clear).start()
        with RemoteShards(url, cache) as shards:
            shards.fetch(0)
    text = failure(url, cache)
    assert "manifest.json: the connection failed 3 times in a row (ClientConnectorError" in text
    assert "check network and server" in text


@pytest.mark.parametrize("size", [MIB - 1, MIB + 1])
def test_another_size_is_rejected_before_a_byte_is_received(server, url, cache, size):
    server.files[SHARD_0] = bytes(size)
    assert f"has {size} bytes, but {MIB} by its manifest" in failure(url, cache)
    assert server.log == []


@pytest.mark.parametrize("size", [1000, 5 * MIB])
def test_a_server_without_sizes_cannot_fill_the_disk(server, url, cache, size, monkeypatch):
    server.lengths = False
    server.files[SHARD_0] = bytes(size)
    largest, truncate = 0, os.truncate

    def measure_and_truncate(path, length):
        nonlocal largest
        largest = max(largest, path.stat().st_size)
        truncate(path, length)

    monkeypatch.setattr(os, "truncate", measure_and_truncate)
    with RemoteShards(url, cache) as shards:
        with pytest.raises(ValueError, match=r"SHA-256|range requests|no bytes came"):
            shards.fetch(0)
        shards.fetch(1)
    assert largest <= MIB


def test_a_server_without_range_requests(server, url, cache):
    server.files, server.ranges = make_set([20 * MIB]), False
    assert "the server must support range requests" in failure(url, cache)


def test_missing_files(server, url, cache, tmp_path):
    del server.files["shard-00001.h5"]
    assert f"{url}/shard-00001.h5: does not exist; check" in failure(url, cache, 1)
    del server.files[MANIFEST]
    assert f"{url}/manifest.json: does not exist; check" in failure(url, cache)
    assert "does not exist" in failure(f"file://{tmp_path}/nowhere", cache)
    assert "does not exist" in failure("memory://nowhere", cache)


def test_missing_permission(server, url, cache):
    server.status[SHARD_0] = 403
    text = failure(url, cache)
    assert f"{url}/{SHARD_0}: no permission (403" in text
    assert "AWS_PROFILE" in text
    assert server.log == []


def test_passwords_are_not_shown(server, url, cache):
    server.login = "me:the%20secret"
    with_login = url.replace("//", "//me:the%2520secret@")
    assert "no permission" in failure(url, cache)
    with RemoteShards(with_login, cache) as shards:
        assert "secret" not in str(shards.fetch(0))
    server.status["shard-00001.h5"] = 403
    del server.files["shard-00002.h5"]
    for number in (1, 2):
        assert failure(with_login, cache, number).startswith("http://***@127.0.0.1")
    assert "no permission" in failure(url.replace("//", "//me:wrongsecret@"), cache)
    assert "***@" in failure("s3a9://key:secret@bucket/set", cache)
    assert "give the whole URL again" in failure("http://***@127.0.0.1/set", cache)


def test_s3_errors(bucket, cache, monkeypatch):
    import s3fs

    assert "s3://images/no/manifest.json: does not exist" in failure("s3://images/no", cache)
    assert "does not exist" in failure("s3://no-such-bucket/set", cache)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    text = failure("s3://images/set", cache)
    assert "no permission (Unable to locate credentials)" in text
    assert "FSSPEC_S3_ANON=true" in text


def test_an_unknown_protocol_and_a_missing_package(cache, monkeypatch):
    assert "s33://bucket/set: cannot be opened" in failure("s33://bucket/set", cache)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert "gs://bucket/set: a package is missing: Please install gcsfs" in failure(
        "gs://bucket/set", cache
    )


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"name": f"../{SHARD_0}"}, "must be named"),
        ({"name": "shard-00001.h5"}, "names a shard twice"),
        ({"bytes": -1}, "must be whole"),
        ({"bytes": "9"}, "must be whole"),
        ({"sha256": "../../x"}, "has no SHA-256"),
        ({"surprise": 1}, "damaged"),
    ],
)
def test_a_hostile_manifest(server, url, cache, changes, rule):
    files = {name: data for name, data in server.files.items() if name != MANIFEST}
    server.files[MANIFEST] = manifest_of(files, **changes)
    text = failure(url, cache)
    assert text.startswith(f"{url}: ")
    assert rule in text
    assert str(cache) not in text
    assert not list(cache.iterdir())


def test_a_manifest_that_is_none(server, url, cache, monkeypatch):
    monkeypatch.setattr(remote_source, "MAX_MANIFEST_BYTES", 1000)
    server.files[MANIFEST] = bytes(2000)
    assert "has more than 1000 bytes" in failure(url, cache)
    server.files[MANIFEST] = b"{"
    assert "manifest.json: damaged" in failure(url, cache)


# The cache of a node.


def test_a_cached_shard_is_not_downloaded_again_unless_it_is_truncated(server, url, cache):
    for _ in range(2):
        with RemoteShards(url, cache) as shards:
            shards.fetch(0)
            shards.fetch(0)
    assert server.log == [(SHARD_0, 0, MIB)]
    os.truncate(shards.folder / SHARD_0, 1000)
    with RemoteShards(url, cache) as shards:
        assert shards.fetch(0).read_bytes() == server.files[SHARD_0]


def test_two_versions_of_a_set_do_not_mix(server, url, cache):
    with RemoteShards(url, cache) as old:
        old.fetch(0)
        server.files = make_set([MIB] * 3, seed=1)
        with RemoteShards(url, cache) as new:
            assert new.folder != old.folder
            assert new.fetch(0).read_bytes() == server.files[SHARD_0]


def test_a_cache_that_is_no_folder(url, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be the cache (Not a directory)" in failure(url, tmp_path / "file" / "cache")


def test_a_pickled_object_opens_the_same_set(url, cache):
    with RemoteShards(url, cache, limit_bytes=5 * MIB) as shards:
        shards.fetch(0)
        with pickle.loads(pickle.dumps(shards)) as other:
            assert (other.folder, other.limit_bytes) == (shards.folder, 5 * MIB)
            assert other.fetch(0) == shards.folder / SHARD_0


def test_a_closed_or_forked_object_raises(url, cache, monkeypatch):
    shards = RemoteShards(url, cache)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        with pytest.raises(RuntimeError, match="made before a fork"):
            shards.fetch(0)
    shards.close()
    for call in (lambda: shards.fetch(0), lambda: shards.stage([0])):
        with pytest.raises(RuntimeError, match="closed; make"):
            call()


def test_fetch_raises_the_error_of_a_staged_shard(server, url, cache):
    server.status["shard-00001.h5"] = 404
    with RemoteShards(url, cache) as shards:
        shards.stage([1])
        wait_until(lambda: not shards._active)
        with pytest.raises(ValueError, match=r"shard-00001\.h5: does not exist"):
            shards.fetch(1)
        del server.status["shard-00001.h5"]
        shards.fetch(1)
        shards.fetch(0)


def test_one_process_of_a_node_logs_progress_of_long_downloads(
    server, url, cache, monkeypatch, capsys
):
    with RemoteShards(url, cache) as shards:
        shards.fetch(0)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(remote, "QUIET_S", 0.02)
    server.delay_s = 0.5
    with RemoteShards(url, cache) as shards, RemoteShards(url, cache) as other:
        threads = [threading.Thread(target=s.fetch, args=[1]) for s in (shards, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("download ")
    assert "100%" in line
    assert "1.05M/1.05M B" in line


def test_close_ends_downloads(server, url, cache):
    server.files = make_set([20 * MIB])
    server.cut = lambda name, start: 0 if start else None  # it would be tried again and again
    shards = RemoteShards(url, cache)
    shards.stage([0])
    wait_until(lambda: len(server.log) > 1)
    shards.close()
    assert not shards._active
    assert [path.stat().st_size for path in cache.glob("*/*.part")] == [8 * MIB]


def start_process(code, *arguments):
    """Run code in another process; ``shards(limit)`` returns RemoteShards(url, cache)."""
    head = (
        "import sys, time; from pathlib import Path; from ganray.data import remote\n"
        "def shards(limit=None):\n"
        "    return remote.RemoteShards(sys.argv[1], Path(sys.argv[2]), limit_bytes=limit)\n"
    )
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_of_a_node_share_the_work(server, url, cache):
    server.files = make_set([100_000] * 12)
    server.delay_s = 0.1  # long enough for the four to meet
    code = (
        "with shards() as s:\n"
        "    s.stage(range(12))\n"
        "    sizes = [s.fetch(n).stat().st_size for n in range(12)]\n"
        "assert sizes == [100_000] * 12\n"
    )
    children = [start_process(code, url, cache) for _ in range(4)]
    for child in children:
        child.communicate(timeout=60)
    assert [child.returncode for child in children] == [0] * 4
    assert server.requests() == [(f"shard-{n:05d}.h5", 0) for n in range(12)]


def test_a_shard_that_another_process_downloads_does_not_hold_up_the_others(server, url, cache):
    with RemoteShards(url, cache) as shards:
        with remote.FileLock(shards.folder / f"{SHARD_0}.lock"):
            shards.stage([0, 1, 2])
            wait_until(lambda: cached(shards) == [1, 2])
            time.sleep(0.1)
            assert cached(shards) == [1, 2]
        wait_until(lambda: cached(shards) == [0, 1, 2])


def test_threads_that_fetch_the_same_shard_download_it_once(server, url, cache):
    server.delay_s = 0.1
    with RemoteShards(url, cache) as shards:
        threads = [threading.Thread(target=shards.fetch, args=(0,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.log == [(SHARD_0, 0, MIB)]
        shards.release(0)
        with (shards.folder / SHARD_0).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_killed_download_is_resumed(server, url, cache):
    server.files = make_set([20 * MIB])
    third, go_on = threading.Event(), threading.Event()

    def before(name, start):
        if start == 16 * MIB and not third.is_set():
            third.set()
            go_on.wait(20)

    server.before = before
    child = start_process("shards().fetch(0)", url, cache)
    assert third.wait(20)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (part,) = cache.glob("*/*.part")
    assert part.stat().st_size == 16 * MIB
    assert not list(cache.glob("*/*.h5"))
    server.log.clear()
    with RemoteShards(url, cache) as shards:
        assert shards.fetch(0).read_bytes() == server.files[SHARD_0]
        assert server.log == [(SHARD_0, 16 * MIB, 4 * MIB)]
    go_on.set()


def test_a_shard_is_in_use_until_its_process_ends(server, url, cache):
    code = "s = shards(); s.fetch(0); print('fetched', flush=True); time.sleep(60)"
    child = start_process(code, url, cache)
    assert child.stdout.readline() == "fetched\n"
    with RemoteShards(url, cache, limit_bytes=MIB) as shards:
        with pytest.raises(ValueError, match=r"limit of 1\.0 MB beside the shards in use"):
            shards.fetch(1)
        child.send_signal(signal.SIGKILL)
        child.wait()
        shards.fetch(1)
        assert cached(shards) == [1]


def test_damaged_bytes_of_an_earlier_download_are_discarded(server, url, cache):
    with RemoteShards(url, cache) as shards:
        (shards.folder / f"{SHARD_0}.{MIB}.part").write_bytes(bytes(1000))
        (shards.folder / f"shard-00001.h5.{MIB}.part").write_bytes(bytes(2 * MIB))  # too long
        for number in (0, 1):
            path = shards.fetch(number)
            assert path.read_bytes() == server.files[path.name]
    assert [start for _, start, _ in server.log] == [1000, 0, 0]


def test_a_shard_that_is_damaged_at_the_source_is_rejected(server, url, cache):
    server.files[SHARD_0] = bytes(MIB)
    assert f"{url}/{SHARD_0}: downloaded twice with SHA-256" in failure(url, cache)
    assert len(server.log) == 2
    assert cached_bytes(cache) == 0


def test_the_least_recently_used_shard_is_removed_first(url, cache):
    with RemoteShards(url, cache, limit_bytes=5 * MIB // 2) as shards:
        for number in (0, 1, 0, 2):
            shards.fetch(number)
            shards.release(number)
            assert cached_bytes(cache) <= 5 * MIB // 2
        assert cached(shards) == [0, 2]


def test_the_limit_is_for_all_sets_and_other_files_are_kept(server, url, cache):
    (cache / "mine").mkdir(parents=True)
    (cache / "mine" / SHARD_0).write_bytes(bytes(MIB))  # a set that a user prepared
    with RemoteShards(url, cache, limit_bytes=2 * MIB) as old:
        for number in (0, 1):
            old.fetch(number)
            old.release(number)
        server.files = make_set([MIB] * 3, seed=1)
        with RemoteShards(url, cache, limit_bytes=2 * MIB) as new:
            new.fetch(2)
            assert (cached(old), cached(new)) == ([1], [2])
    assert (cache / "mine" / SHARD_0).exists()


def test_shards_in_use_are_kept(url, cache, monkeypatch):
    monkeypatch.setattr(remote, "ROOM_WAIT_S", 60)  # nobody else could make room
    with RemoteShards(url, cache, limit_bytes=2 * MIB) as shards:
        shards.fetch(0)
        shards.fetch(1)
        with pytest.raises(ValueError, match=r"1\.0 MB too many .* limit of 2\.1 MB") as error:
            shards.fetch(2)
        assert "raise data.cache_gb, or use data.shuffle=blocks" in str(error.value)
        assert cached(shards) == [0, 1]
        shards.release(0)
        shards.fetch(2)
        assert cached(shards) == [1, 2]


def test_a_process_waits_for_room_that_another_one_uses(url, cache):
    with (
        RemoteShards(url, cache, limit_bytes=MIB) as shards,
        RemoteShards(url, cache, limit_bytes=MIB) as other,
    ):
        other.fetch(0)
        threading.Timer(0.1, other.release, [0]).start()
        shards.fetch(1)
        assert cached(shards) == [1]


def test_staging_keeps_the_limit_and_downloads_each_shard_once(server, url, cache):
    server.files, largest = make_set([100_000] * 12), 0

    def before(name, start):
        nonlocal largest
        largest = max(largest, cached_bytes(cache))

    server.before = before
    with RemoteShards(url, cache, limit_bytes=350_000) as shards:
        shards.stage(range(12))
        for number in range(12):
            path = shards.fetch(number)
            assert path.read_bytes() == server.files[path.name]
            shards.release(number)
    assert len(server.log) == 12
    assert largest <= 350_000


def test_fetch_may_remove_shards_that_were_staged_the_latest_first(server, url, cache):
    server.files = make_set([100_000] * 8)
    with RemoteShards(url, cache, limit_bytes=300_000) as shards:
        shards.stage(range(8))
        wait_until(lambda: len(cached(shards)) == 3)
        first = cached(shards)[0]
        shards.fetch(7)
        assert {7, first} <= {*cached(shards)}
        with RemoteShards(url, cache, limit_bytes=300_000) as other:
            other.fetch(6)


def test_a_full_disk_is_found_before_the_download(server, url, cache, monkeypatch):
    usage = namedtuple("usage", "total used free")
    with RemoteShards(url, cache) as shards:
        shards.fetch(0)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 1000))
        with pytest.raises(ValueError, match=r"1\.0 MB too many for the disk of .*; make room"):
            shards.fetch(1)
        shards.release(0)
        shards.fetch(1)  # in place of the shard that is not used
        assert cached(shards) == [1]
    assert len(server.log) == 2
