"""Processes of a pool: they leave signals to their parent, and end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def follow_parent() -> None:
    """Let this process ignore Ctrl-C and SIGTERM, and end when its parent does.

    The parent handles both. It would wait forever for the rest of a result if SIGTERM, which `ray
    job stop` sends to all processes, ended this one in the midst of sending it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def die_with_parent() -> None:
        parent.join()
        os._exit(1)  # a pool's worker would otherwise wait forever for a parent that was killed

    threading.Thread(target=die_with_parent, daemon=True).start()
