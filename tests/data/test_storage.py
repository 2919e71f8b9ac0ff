"""Storage: files behind a URL, complete or absent."""

import socket
import threading

import pytest

from ganray.data import remote_source
from ganray.data import storage as storage_module
from ganray.data.storage import Storage, fetch
from ganray.errors import UserError
from tests.data.remote_servers import cutting_proxy

MIB = 2**20


@pytest.fixture(params=["path", "memory", "s3"])
def storage(request, tmp_path):
    if request.param == "s3":
        return Storage(f"s3://{request.getfixturevalue('bucket')}/home{tmp_path}")
    return Storage({"path": f"{tmp_path}/store", "memory": f"memory://{tmp_path}"}[request.param])


def test_files_are_written_listed_read_and_deleted(storage, tmp_path):
    (tmp_path / "a").write_bytes(b"a" * 1000)
    assert storage.read("runs/one/a") is None
    assert not storage.download("runs/one/a", tmp_path / "back")
    assert storage.sizes("runs") == {}
    storage.upload(tmp_path / "a", "runs/one/a")
    storage.write("runs/one/b/c", b"c")
    storage.write("runs/two", b"")
    assert storage.sizes("runs") == {"runs/one/a": 1000, "runs/one/b/c": 1, "runs/two": 0}
    assert storage.sizes("runs/one/b") == {"runs/one/b/c": 1}
    assert storage.read("runs/one/b/c") == b"c"
    assert storage.download("runs/one/a", tmp_path / "new" / "back")
    assert (tmp_path / "new" / "back").read_bytes() == b"a" * 1000
    storage.write("runs/one/a", b"another")
    assert storage.read("runs/one/a") == b"another"
    storage.delete("runs/one")
    storage.delete("runs/one")
    assert storage.sizes("") == {"runs/two": 0}


def test_a_file_is_fetched_into_the_home_if_only_the_storage_has_it(storage, tmp_path):
    home, url = tmp_path / "home", storage.url("")
    Storage(url).write("classifiers/a.pt", b"weights")
    for _ in range(2):
        fetch(home / "classifiers" / "a.pt", home, url)
    assert (home / "classifiers" / "a.pt").read_bytes() == b"weights"
    fetch(home / "classifiers" / "b.pt", home, url)
    assert not (home / "classifiers" / "b.pt").exists()
    with pytest.raises(UserError, match=r"must lie in the home folder"):
        fetch(tmp_path / "elsewhere", home, url)


def test_readers_of_a_folder_see_no_half_of_a_file(tmp_path):
    """Threads write one of two contents while another reads."""
    storage = Storage(str(tmp_path / "store"))
    contents = [bytes([i]) * MIB for i in range(2)]
    storage.write("file", contents[0])
    writers = [
        threading.Thread(target=lambda c=content: [storage.write("file", c) for _ in range(20)])
        for content in contents
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert storage.read("file") in contents
    assert [*storage.sizes("")] == ["file"]


def test_a_connection_that_drops_in_mid_transfer(moto, bucket, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(bytes(3 * MIB) + b"end")
    downloads, uploads = [MIB, 2 * MIB], [2 * MIB, MIB, 100_000]
    with cutting_proxy(moto, downloads, uploads) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        storage = Storage(f"s3://{bucket}/dropped")
        storage.upload(tmp_path / "file", "file")
        assert storage.sizes("") == {"file": 3 * MIB + 3}
        assert storage.download("file", tmp_path / "back")
    assert downloads == uploads == []
    assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()
    assert not [*tmp_path.glob("*.part")]


@pytest.mark.parametrize("call", ["upload", "write", "read", "download", "sizes", "delete"])
def test_a_server_that_never_answers_is_given_up(bucket, tmp_path, monkeypatch, call):
    """It takes the connection, and no request."""
    monkeypatch.setattr(remote_source, "BACKOFF_S", 0)
    monkeypatch.setattr(storage_module, "_ANSWER_S", 0.1)
    (tmp_path / "file").touch()
    arguments = {"upload": (tmp_path / "file", "a"), "write": ("a", b"")}
    arguments["download"] = "a", tmp_path / "back"
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(UserError, match=r"/home/a: the connection failed .*\(.*TimeoutError\)"):
            getattr(Storage(f"s3://{bucket}/home"), call)(*arguments.get(call, ("a",)))


@pytest.mark.parametrize("call", ["write", "read", "sizes"])
def test_errors_are_one_line_without_secrets(bucket, monkeypatch, call):
    monkeypatch.setattr(remote_source, "BACKOFF_S", 0)
    storage = Storage("s3://user:geheim@bucket/home")  # s3 takes no password there
    arguments = {"write": ("file", b""), "read": ("file",), "sizes": ("runs",)}[call]
    with pytest.raises(UserError, match=r"^s3://\*\*\*@bucket/home/") as error:
        getattr(storage, call)(*arguments)
    assert "geheim" not in str(error.value)
    assert "\n" not in str(error.value)
    assert "geheim" not in str(storage)


def test_a_store_that_cannot_be_written_is_refused(bucket, tmp_path):
    with pytest.raises(
        UserError, match=r"^storage=s3://missing/home: cannot be written .*does not"
    ):
        Storage("s3://missing/home").check()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^storage=/.*/home: cannot be written .*Not a dir"):
        Storage(str(tmp_path / "file" / "home")).check()


def test_an_unknown_store_is_refused_at_once():
    with pytest.raises(UserError, match=r"^nostore://bucket: cannot be opened .*s3://bucket"):
        Storage("nostore://bucket")
