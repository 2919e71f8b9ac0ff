"""Atomic writes and checked reads, on a file system that is really full where the test says so."""

import os

import pytest

from ganray.errors import UserError
from ganray.files import read_json, write_atomic


def test_a_write_creates_the_folder_replaces_the_content_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_atomic(path, "one")
    write_atomic(path, b"two")
    assert path.read_text() == "two"
    assert os.listdir(path.parent) == ["a.json"]


def test_equal_content_is_not_written_again(tmp_path):
    path = tmp_path / "a.json"
    write_atomic(path, "one")
    before = path.stat().st_mtime_ns, path.stat().st_ino
    write_atomic(path, "one")
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before


def test_a_full_disk_leaves_the_old_content_and_one_line(mount_disk):
    disk = mount_disk("1m")
    path = disk / "config.json"
    write_atomic(path, "old")
    with pytest.raises(UserError, match=r"needs 2,000,000 bytes, and [\d,]+ are free.*same"):
        write_atomic(path, bytes(2_000_000))
    assert path.read_text() == "old"
    assert os.listdir(disk) == ["config.json"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "contains a list instead of an object"),
        ("3", "contains a int instead of an object"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_damaged_json_is_one_line_that_names_the_file(tmp_path, content, reason):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"{path}: damaged .*{reason}.*; delete it$") as error:
        read_json(path, "delete it")
    assert "\n" not in str(error.value)


def test_missing_json_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"a\.json: missing; delete it"):
        read_json(tmp_path / "a.json", "delete it")
