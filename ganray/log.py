"""Logging setup for jobs and workers.

Modules log through ``logging.getLogger(__name__)`` and never configure handlers. Jobs and worker
processes call ``configure`` once.
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
import textwrap
from typing import Literal

HIDDEN = "***"
"""Replaces the secrets of a URL."""
_USER = re.compile(r"://[^/\s'\"]*@")
_SECRET_PARAM = re.compile(
    r"""([?&;](?:[\w.-]*[-_.])?
    (?:sig|signature|token|\w*password|passwd|pwd|key|(?:api|access|account)_?key|awsaccesskeyid
    |secret|credentials?|auth|authorization)=)
    [^&\#\s'"]+""",
    re.IGNORECASE | re.VERBOSE,
)
"""Parameter of a URL's query string that holds a secret, such as X-Amz-Signature or api_key."""
_NO_BREAK = "\N{NO-BREAK SPACE}"
LogLevel = Literal["debug", "info", "warning", "error"]


def configure(level: LogLevel = "info", rank: int = 0) -> None:
    """Send ganray's log records to stdout.

    Messages of level INFO are printed as they are, because they are the output that users read.
    Others carry their level; those of ranks other than 0 carry the rank; at level DEBUG every
    record also has a timestamp and the name of its logger.

    Args:
        level: Lowest level that is printed. Ranks other than 0 print warnings and errors only,
            except at level ``debug``.
        rank: Rank of this process in the process group.
    """
    lowest = getattr(logging, level.upper())
    if rank and lowest > logging.DEBUG:
        lowest = max(lowest, logging.WARNING)
    handler = _StdoutHandler()
    handler.setFormatter(_Formatter(rank, verbose=lowest <= logging.DEBUG))
    root = logging.getLogger("ganray")
    root.handlers = [handler]
    root.setLevel(lowest)
    root.propagate = False


def redact(text: object) -> str:
    """Return the text without user, password and secret parameters of any URL in it.

    Everything that ganray prints passes through this function, so that messages of libraries, which
    repeat the addresses that they were given, reveal nothing.
    """
    return _SECRET_PARAM.sub(rf"\1{HIDDEN}", _USER.sub(f"://{HIDDEN}@", str(text)))


def two_digits(value: float) -> str:
    """Return a score with two decimals, or if it is small with two significant digits."""
    return f"{value:.2f}" if abs(value) >= 0.1 or not value else f"{value:.2g}"


def columns() -> int:
    """Return the width of the terminal, at least 40; 100 in a job log."""
    return max(40, shutil.get_terminal_size((100, 24)).columns)


def first_that_fits(*lines: str) -> str:
    """Return the first line that fits the terminal, else the last."""
    return next((line for line in lines if len(line) <= columns()), lines[-1])


def unbroken(text: object) -> str:
    """Return a text, such as a path or a command, that `wrap` does not break at its spaces."""
    return str(text).replace(" ", _NO_BREAK)


def wrap(text: str, prefix: str = "", indent: int = 0) -> str:
    """Return the prefix and the text in lines of the terminal's width; 100 columns in a job log.

    Later lines are indented. A word that is longer, such as a path, keeps its length.
    """
    return textwrap.fill(
        text,
        columns(),
        initial_indent=prefix,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    ).replace(_NO_BREAK, " ")


class _StdoutHandler(logging.Handler):
    """Writes to the current ``sys.stdout``, which tests and notebooks replace."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stdout.write(self.format(record) + "\n")
            sys.stdout.flush()
        except Exception:
            self.handleError(record)


class _Formatter(logging.Formatter):
    def __init__(self, rank: int, verbose: bool) -> None:
        super().__init__("%(asctime)s %(name)s: %(message)s" if verbose else "%(message)s")
        self._rank = rank

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        rank = f"[rank {self._rank}] " if self._rank else ""
        text = super().format(record)
        if level and "\n" not in text and sys.stdout.isatty():  # a job log keeps one line to search
            return redact(wrap(text, rank + level, len(level)))
        return redact(rank + level + text)
