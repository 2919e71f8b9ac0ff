"""Processes of a pool: they leave Ctrl-C to their parent, and end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def follow_parent() -> None:
    """Let this process ignore Ctrl-C, and end when its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    parent = multiprocessing.parent_process()
    assert parent is not None

    def die_with_parent() -> None:
        parent.join()
        os._exit(1)  # a pool's worker would otherwise wait forever for a parent that was killed

    threading.Thread(target=die_with_parent, daemon=True).start()
