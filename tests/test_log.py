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
