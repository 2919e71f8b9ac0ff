"""Log lines reveal no password of a URL."""

import logging

import pytest

from ganray import log


def test_messages_of_libraries_are_printed_without_passwords(capsys):
    log.configure()
    error = ValueError("http://me:p@ss@host:5000/api, s3://bucket/a@b, http://host/#/x?a=1")
    logging.getLogger("ganray.test").warning("no answer from %s", error)
    assert capsys.readouterr().out == (
        "WARNING: no answer from http://***@host:5000/api, s3://bucket/a@b, http://host/#/x?a=1\n"
    )


@pytest.mark.parametrize(
    "name",
    [
        "X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "X-Goog-Signature", "sig",
        "Signature", "AWSAccessKeyId", "token", "access_token", "password", "sslpassword", "key",
        "api_key", "apikey", "client_secret",
    ],
)  # fmt: skip
def test_secret_parameters_of_a_query_string_are_redacted(name):
    address = f"https://host/a.h5?{name}=hu%2Fsh&expires=1&{name}=hush#top"
    shown = f"https://host/a.h5?{name}=***&expires=1&{name}=***#top"
    assert log.redact(f"no answer from '{address}'") == f"no answer from '{shown}'"


def test_parameters_that_are_no_secret_are_printed():
    view = "http://h/#/experiments/1/runs?orderByKey=a&viewStateShareKey=b&monkey=c&sign=d"
    assert log.redact(view) == view
    assert log.redact("key=3, token = 5") == "key=3, token = 5"


def test_a_warning_fits_the_terminal_but_is_one_line_of_a_job_log(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    text = "no CelebA was given, so this run trains on faces"
    log.configure()
    logging.getLogger("ganray.test").warning(text)
    assert capsys.readouterr().out == f"WARNING: {text}\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    logging.getLogger("ganray.test").warning(text)
    assert capsys.readouterr().out.splitlines() == [
        "WARNING: no CelebA was given, so this",
        "         run trains on faces",
    ]


def test_paths_and_commands_are_wrapped_but_not_broken(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    path = "/a folder with spaces/and a long name"
    text = log.wrap(f"shards are to be written: {log.unbroken(path)}", "shards  ", 8)
    assert text.splitlines() == ["shards  shards are to be written:", f"        {path}"]
