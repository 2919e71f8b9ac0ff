"""RunDatasets of shards to fetch, and what the tests of ``ganray.data.remote`` share.

A test module takes the fixtures by name: ``url = remote_sets.url``.
"""

import contextlib
import hashlib
import json
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ganray.data import remote, remote_cache, remote_source
from ganray.data.format import MANIFEST, ConversionSpec, Manifest, Shard
from ganray.data.remote import RemoteShards
from tests.data.remote_servers import RangeServer

MIB = 2**20


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_source, "BACKOFF_S", 0.01)
    monkeypatch.setattr(remote_cache, "ROOM_WAIT_S", 0.3)
    monkeypatch.setattr(remote_cache, "ROOM_POLL_S", 0.02)
    monkeypatch.setattr(remote, "FULL_S", 0.05)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def server() -> RangeServer:
    """Three shards of 1 MiB."""
    server = RangeServer()
    server.files = make_set([MIB] * 3)
    return server


@pytest.fixture
def url(server: RangeServer) -> Iterator[str]:
    with server.running() as url:
        yield url


def make_set(sizes: list[int], seed: int = 0) -> dict[str, bytes]:
    """Shards of random bytes, which remote.py does not look into, and their manifest."""
    rng = np.random.default_rng(seed)
    files = {f"shard-{n:05d}.h5": rng.bytes(size) for n, size in enumerate(sizes)}
    return files | {MANIFEST: manifest_of(files)}


def manifest_of(files: dict[str, bytes], **lies: object) -> bytes:
    """Their manifest; ``lies`` replaces what it says of the first."""
    shards = tuple(
        Shard(name, len(data), len(data), len(data), hashlib.sha256(data).hexdigest())
        for name, data in files.items()
    )
    rows = sum(shard.rows for shard in shards)
    recipe = ConversionSpec("noise", "0", 1, rows, "all")
    with tempfile.TemporaryDirectory() as folder:
        Manifest(recipe, (1, 1, 1), rows, (), (), shards, "pytest").write(Path(folder))
        text = json.loads((Path(folder) / MANIFEST).read_bytes())
    text["shards"][0] |= lies
    return json.dumps(text).encode()


def wait_until(holds: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def total(cache: Path) -> int:
    """Bytes of all shards, whole or not; files come and go meanwhile."""
    size = 0
    for path in cache.glob("*/shard-*.h5*"):
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


def standing(shards: RemoteShards) -> list[int]:
    return [int(path.stem[-5:]) for path in sorted(shards.folder.glob("*.h5"))]


def failure(url: str, cache: Path, number: int = 0) -> str:
    with pytest.raises(ValueError, match=r"; |: ") as error, RemoteShards(url, cache) as shards:
        shards.fetch(number)
    text = str(error.value)
    assert "\n" not in text
    assert "secret" not in "".join(traceback.format_exception(error.value))
    return text
