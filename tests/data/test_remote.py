"""The shards of a set somewhere else: fetched, staged, and what is said of them."""

import os
import pickle
import threading
from pathlib import Path

import pytest

from ganray.data import remote
from ganray.data.format import MANIFEST
from ganray.data.reader import ShardedDataset
from ganray.data.remote import RemoteShards
from tests.data import remote_sets
from tests.data.remote_servers import RangeServer
from tests.data.remote_sets import MIB, failure, make_set, manifest_of, wait_until

impatient, cache, server, url = (
    remote_sets.impatient,
    remote_sets.cache,
    remote_sets.server,
    remote_sets.url,
)
pytestmark = pytest.mark.usefixtures("impatient")


def test_reader_opens_what_came(shards_folder: Path, cache: Path) -> None:
    with RemoteShards(f"file://{shards_folder}", cache) as shards:
        for number in range(3):
            shards.fetch(number)
        assert len(ShardedDataset(shards.folder, verify=True)) == 150


def test_what_is_here_is_not_fetched_again(server: RangeServer, url: str, cache: Path) -> None:
    for _ in range(2):
        with RemoteShards(url, cache) as shards:
            shards.fetch(0)
            shards.fetch(0)
    assert server.log == [("shard-00000.h5", 0, MIB)]


def test_a_truncated_shard_is_fetched_again(server: RangeServer, url: str, cache: Path) -> None:
    with RemoteShards(url, cache) as shards:
        os.truncate(shards.fetch(0), 1000)
    with RemoteShards(url, cache) as shards:
        assert shards.fetch(0).read_bytes() == server.files["shard-00000.h5"]


def test_two_versions_of_a_set_do_not_mix(server: RangeServer, url: str, cache: Path) -> None:
    with RemoteShards(url, cache) as old:
        old.fetch(0)
        server.files = make_set([MIB] * 3, seed=1)
        with RemoteShards(url, cache) as new:
            assert new.folder != old.folder
            assert new.fetch(0).read_bytes() == server.files["shard-00000.h5"]


def test_pickle_makes_another_one_of_the_same_set(url: str, cache: Path) -> None:
    with RemoteShards(url, cache, limit_bytes=5 * MIB) as shards:
        shards.fetch(0)
        with pickle.loads(pickle.dumps(shards)) as other:
            assert (other.folder, other.limit_bytes) == (shards.folder, 5 * MIB)
            assert other.fetch(0) == shards.folder / "shard-00000.h5"


def test_a_closed_or_forked_one_says_so(
    url: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = RemoteShards(url, cache)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        with pytest.raises(RuntimeError, match="made before a fork"):
            shards.fetch(0)
    shards.close()
    for call in (lambda: shards.fetch(0), lambda: shards.stage([0])):
        with pytest.raises(RuntimeError, match="closed; make"):
            call()


def test_no_such_number(url: str, cache: Path) -> None:
    assert "no shard 3; there are 0 to 2" in failure(url, cache, 3)


@pytest.mark.parametrize(
    ("lie", "rule"),
    [
        ({"name": "../shard-00000.h5"}, "must be named"),
        ({"name": "shard-00001.h5"}, "names a shard twice"),
        ({"bytes": -1}, "it must be > 0"),
        ({"bytes": "9"}, "it must be > 0"),
        ({"sha256": "../../x"}, "has no SHA-256"),
        ({"surprise": 1}, "damaged"),
    ],
)
def test_a_hostile_manifest(
    server: RangeServer, url: str, cache: Path, lie: dict[str, object], rule: str
) -> None:
    files = {name: data for name, data in server.files.items() if name != MANIFEST}
    server.files[MANIFEST] = manifest_of(files, **lie)
    text = failure(url, cache)
    assert text.startswith(f"{url}: ")
    assert rule in text
    assert str(cache) not in text
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_one(url: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be the cache (Not a directory)" in failure(url, tmp_path / "file" / "cache")


def test_staging_errors_are_raised_by_fetch(server: RangeServer, url: str, cache: Path) -> None:
    server.status["shard-00001.h5"] = 404
    with RemoteShards(url, cache) as shards:
        shards.stage([1])
        wait_until(lambda: not shards._threads)
        with pytest.raises(ValueError, match=r"shard-00001\.h5: is not there"):
            shards.fetch(1)
        del server.status["shard-00001.h5"]
        shards.fetch(1)
        shards.fetch(0)


def test_one_process_of_a_node_prints_progress(
    server: RangeServer,
    url: str,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with RemoteShards(url, cache) as shards:
        shards.fetch(0)
    assert capsys.readouterr().out == ""  # it was quick
    monkeypatch.setattr(remote, "QUIET_S", 0.02)
    server.delay_s = 0.3
    with RemoteShards(url, cache) as shards, RemoteShards(url, cache) as other:
        shards.stage([1])
        other.fetch(1)
        wait_until(lambda: not shards._threads)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{url} -> {shards.folder}: 100%")
    assert "1.05M/1.05M B" in line


def test_close_ends_what_is_under_way(server: RangeServer, url: str, cache: Path) -> None:
    server.files = make_set([20 * MIB])
    server.cut = lambda name, first: 0 if first else None  # it would try again and again
    shards = RemoteShards(url, cache)
    shards.stage([0])
    wait_until(lambda: len(server.log) > 1)
    shards.close()
    assert not shards._threads
    assert [path.stat().st_size for path in cache.glob("*/*.part")] == [8 * MIB]
    assert not [t for t in threading.enumerate() if "_stage" in t.name or "_run" in t.name]
