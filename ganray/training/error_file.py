"""error.txt in the run folder: the tracebacks and stacks of a run's workers."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from pathlib import Path

from ganray import log

ERROR_FILE = "error.txt"


def append_error(folder: Path, source: str, text: str) -> Path:
    """Append an error to the run's `error.txt`, if its folder can be written; return the file."""
    path = folder / ERROR_FILE
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)  # a worker may die before it has a run folder
        with path.open("a") as file:
            file.write(
                log.redact(f"{datetime.now():%Y-%m-%d %H:%M:%S} {source}\n{text.rstrip()}\n\n")
            )
    return path
