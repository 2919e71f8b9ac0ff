"""The folder of a run, as its workers see it: on this machine, or on the driver's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

RANKS_FOLDER = "ranks"
"""Subfolder with one file per rank, for the watchdog."""
OWNER_FILE = "driver.json"
"""File that names the driver which holds the folder of a run or sweep."""
Caller = Callable[[Callable[[], Any]], Any]
"""Calls a function where the folder is, and returns its result or raises its error."""


def call_here(function: Callable[[], Any]) -> Any:
    """Call a function in this process."""
    return function()


class RunFolder:
    """Folder of a run's journal, pictures, errors and stop request.

    With shared storage, or one machine, it is a folder here. Otherwise functions on it run on the
    driver's node, through `caller`.

    Args:
        path: The folder, where it is.
        caller: Calls a function there; it is pickled if that is another process.
    """

    def __init__(self, path: Path, caller: Caller = call_here) -> None:
        self.path, self._caller = path, caller

    @property
    def is_remote(self) -> bool:
        """Whether the folder is on another node, or might be."""
        return self._caller is not call_here

    def call(
        self, function: Callable[Concatenate[Path, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return ``function(path, *args, **kwargs)``."""
        return self._caller(partial(function, self.path, *args, **kwargs))
