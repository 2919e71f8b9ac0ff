"""Log lines reveal no password of a URL."""

import logging

from ganray import log


def test_messages_of_libraries_are_printed_without_passwords(capsys):
    log.configure()
    error = ValueError("http://me:p@ss@host:5000/api, s3://bucket/a@b, http://host/#/x?a=1")
    logging.getLogger("ganray.test").warning("no answer from %s", error)
    assert capsys.readouterr().out == (
        "WARNING: no answer from http://***@host:5000/api, s3://bucket/a@b, http://host/#/x?a=1\n"
    )


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
