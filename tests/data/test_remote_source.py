"""Where shards come from: memory, files, HTTP and S3 servers, that drop, lie and refuse."""

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from ganray.data import remote_source
from ganray.data.format import MANIFEST, Manifest
from ganray.data.remote import RemoteShards
from tests.data import remote_sets
from tests.data.remote_servers import RangeServer, cutting_proxy
from tests.data.remote_sets import MIB, failure, make_set, standing

impatient, cache, server, url = (
    remote_sets.impatient,
    remote_sets.cache,
    remote_sets.server,
    remote_sets.url,
)
pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture(scope="session")
def moto() -> Iterator[tuple[str, int]]:
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def bucket(moto: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import boto3
    import s3fs

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{moto[0]}:{moto[1]}")
    s3fs.S3FileSystem.clear_instance_cache()
    boto3.client("s3").create_bucket(Bucket="pictures")
    yield "pictures"
    s3fs.S3FileSystem.clear_instance_cache()


def upload(bucket: str, files: dict[str, bytes]) -> str:
    import boto3

    for name, data in files.items():
        boto3.client("s3").put_object(Bucket=bucket, Key=f"set/{name}", Body=data)
    return f"s3://{bucket}/set"


@pytest.mark.parametrize("kind", ["memory", "file", "path", "http", "s3"])
def test_shards_come_whole_from(
    kind: str, tmp_path: Path, cache: Path, request: pytest.FixtureRequest
) -> None:
    files = make_set([9 * MIB, 1, 5000])  # the first needs two ranges
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


def test_a_dropped_connection_goes_on_where_it_stopped(
    server: RangeServer, url: str, cache: Path
) -> None:
    server.files = make_set([20 * MIB])
    drops = iter([3 * MIB, 0])
    server.cut = lambda name, first: next(drops, None) if first == 8 * MIB else None
    with RemoteShards(url, cache) as shards:
        assert shards.fetch(0).read_bytes() == server.files["shard-00000.h5"]
    starts = [first / MIB for _, first, _ in server.log]
    assert starts == [0, 8, 8, 8, 8.5, 16.5]  # two were cut; the next asked for a sixteenth


def test_a_connection_that_always_drops_is_given_up(
    server: RangeServer, url: str, cache: Path
) -> None:
    server.files = make_set([20 * MIB])
    server.cut = lambda name, first: 100 if first >= 8 * MIB else None
    with RemoteShards(url, cache) as shards:
        with pytest.raises(ValueError, match=r"failed 5 times in a row at byte 8388608 of") as it:
            shards.fetch(0)
        assert f"{url}/shard-00000.h5" in str(it.value)
        assert "\n" not in str(it.value)
        assert standing(shards) == []
        assert len(server.log) == 6
        server.cut = lambda name, first: None
        shards.fetch(0)
        assert server.log[6][1] == 8 * MIB  # what had come was kept


def test_an_s3_connection_that_drops(
    moto: tuple[str, int], bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = make_set([20 * MIB])
    url = upload(bucket, files)
    budgets = [MIB, 3 * MIB, 100_000]
    with cutting_proxy(moto, budgets) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        with RemoteShards(url, cache) as shards:
            assert shards.fetch(0).read_bytes() == files["shard-00000.h5"]
    assert budgets == []


def test_a_server_that_is_down(server: RangeServer, cache: Path) -> None:
    with server.running() as url:
        pass
    text = failure(url, cache)
    assert "manifest.json: the connection failed 3 times in a row (ClientConnectorError" in text
    assert "check network and server" in text


def test_a_server_that_recovers(server: RangeServer, url: str, cache: Path) -> None:
    server.status["shard-00000.h5"] = 503
    threading.Timer(0.03, server.status.clear).start()
    with RemoteShards(url, cache) as shards:
        shards.fetch(0)


@pytest.mark.parametrize("size", [MIB - 1, MIB + 1])
def test_another_size_is_refused_before_a_byte_comes(
    server: RangeServer, url: str, cache: Path, size: int
) -> None:
    server.files["shard-00000.h5"] = bytes(size)
    assert f"has {size} bytes, but {MIB} by its manifest" in failure(url, cache)
    assert server.log == []


@pytest.mark.parametrize("size", [1000, 5 * MIB])
def test_a_server_that_tells_no_sizes(
    server: RangeServer, url: str, cache: Path, size: int
) -> None:
    server.lengths = False
    server.files["shard-00000.h5"] = bytes(size)
    largest = 0
    real_truncate = os.truncate

    def truncate(path: Path, length: int) -> None:
        nonlocal largest
        largest = max(largest, path.stat().st_size)
        real_truncate(path, length)

    with pytest.MonkeyPatch.context() as patch, RemoteShards(url, cache) as shards:
        patch.setattr(os, "truncate", truncate)
        with pytest.raises(ValueError, match=r"SHA-256|range requests|no bytes came"):
            shards.fetch(0)
        shards.fetch(1)
    assert largest <= MIB


def test_a_server_without_ranges_is_named(server: RangeServer, url: str, cache: Path) -> None:
    server.files, server.ranges = make_set([20 * MIB]), False
    assert "the server must know range requests" in failure(url, cache)


def test_what_is_not_there(server: RangeServer, url: str, cache: Path, tmp_path: Path) -> None:
    del server.files["shard-00001.h5"]
    assert f"{url}/shard-00001.h5: is not there; check" in failure(url, cache, 1)
    del server.files[MANIFEST]
    assert f"{url}/manifest.json: is not there; check" in failure(url, cache)
    assert "is not there" in failure(f"file://{tmp_path}/nowhere", cache)
    assert "is not there" in failure("memory://nowhere", cache)


def test_no_permission(server: RangeServer, url: str, cache: Path) -> None:
    server.status["shard-00000.h5"] = 403
    text = failure(url, cache)
    assert f"{url}/shard-00000.h5: no permission to read it (403" in text
    assert "AWS_PROFILE" in text
    assert server.log == []


def test_passwords_are_not_told(server: RangeServer, url: str, cache: Path) -> None:
    server.login = "me:the%20secret"
    bare, with_login = url, url.replace("//", "//me:the%2520secret@")
    assert "no permission" in failure(bare, cache)
    with RemoteShards(with_login, cache) as shards:
        assert "secret" not in str(shards.fetch(0))
    server.status["shard-00001.h5"] = 403
    del server.files["shard-00002.h5"]
    for number in (1, 2):
        assert failure(with_login, cache, number).startswith("http://***@127.0.0.1")
    assert "no permission" in failure(url.replace("//", "//me:wrongsecret@"), cache)
    assert "***@" in failure("s3a9://key:secret@bucket/set", cache)
    assert "give the whole URL again" in failure("http://***@127.0.0.1/set", cache)


def test_s3_refusals(bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    assert "s3://pictures/no/manifest.json: is not there" in failure("s3://pictures/no", cache)
    assert "is not there" in failure("s3://no-such-bucket/set", cache)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    text = failure("s3://pictures/set", cache)
    assert "no permission to read it (Unable to locate credentials)" in text
    assert "FSSPEC_S3_ANON=true" in text


def test_unknown_protocol_and_missing_package(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "s33://bucket/set: cannot be opened" in failure("s33://bucket/set", cache)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    text = failure("gs://bucket/set", cache)
    assert text.startswith("gs://bucket/set: gs:// needs a package")
    assert text.endswith("pip install gcsfs")


def test_a_manifest_without_end(
    server: RangeServer, url: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_source, "SMALL_FILE", 1000)
    server.files[MANIFEST] = bytes(2000)
    assert "has more than 1000 bytes" in failure(url, cache)
    server.files[MANIFEST] = b"{"
    assert "manifest.json: damaged" in failure(url, cache)
