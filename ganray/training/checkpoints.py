"""Checkpoints in the run folder: complete or absent, with a digest of the tensors."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from ganray.distributed import rank
from ganray.errors import UserError
from ganray.files import cannot_write, sync
from ganray.training.state import (
    DIGEST_FILE,
    STATE_FILE,
    TrainState,
    file_digest,
    verify_checkpoint,
)

logger = logging.getLogger(__name__)


def save_checkpoint(state: TrainState, run_folder: Path, keep: int) -> Path:
    """Write a checkpoint and delete the oldest ones beyond the latest `keep`; return its folder.

    If it does not fit on the disk, the oldest one is deleted first, unless fewer than `keep` would
    remain.

    Raises:
        UserError: It cannot be written. Earlier checkpoints are kept.
    """
    target = run_folder / f"checkpoint_{state.step:010d}"  # sorts by step
    try:
        write_checkpoint(state, target)
    except UserError:
        older = [path for path in list_checkpoints(run_folder) if path != target]
        if len(older) < keep or keep == 1 or not _is_full(run_folder, state):
            raise
        shutil.rmtree(older[0])
        write_checkpoint(state, target)
    for old in list_checkpoints(run_folder)[:-keep]:
        shutil.rmtree(old)
    return target


def write_checkpoint(state: TrainState, target: Path, texts: Mapping[str, str] = {}) -> None:
    """Write a checkpoint folder, and `texts` by file name into it.

    Raises:
        UserError: It cannot be written. No part of it is left.
    """
    partial = target.with_name(f"{target.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        state.save(partial)
        for name, text in texts.items():
            (partial / name).write_text(text)
        digests = {STATE_FILE: file_digest(partial / STATE_FILE)}
        (partial / DIGEST_FILE).write_text(json.dumps(digests))
        for path in (*partial.iterdir(), partial):
            sync(path)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        sync(target.parent)
    except (OSError, RuntimeError) as error:
        # torch raises RuntimeError if the disk is full, but also for errors of a device.
        if isinstance(error, RuntimeError) and not _is_full(target.parent, state):
            raise
        with contextlib.suppress(OSError):
            shutil.rmtree(partial)
        raise cannot_write(target, error, state.num_bytes()) from error


def _is_full(folder: Path, state: TrainState) -> bool:
    """Return whether the disk has no room for a checkpoint, which is a little larger than this."""
    return shutil.disk_usage(folder).free < 1.1 * state.num_bytes() + 2**16


def find_checkpoint(run_folder: Path, strict: bool) -> Path | None:
    """Return the newest undamaged checkpoint of a run; None if the run has no checkpoint.

    Args:
        run_folder: The run folder.
        strict: Whether to raise if the newest one is damaged.

    Raises:
        UserError: All checkpoints are damaged, or `strict`.
    """
    checkpoints = list_checkpoints(run_folder)
    problem = None
    for checkpoint in reversed(checkpoints):
        try:
            verify_checkpoint(checkpoint)
        except UserError as error:
            if strict:
                raise
            problem = problem or error
            if rank() == 0:
                logger.warning("%s", error)
            continue
        if problem is not None and rank() == 0:
            logger.warning("resuming from the earlier checkpoint %s", checkpoint)
        return checkpoint
    if problem is not None:
        raise UserError(f"all {len(checkpoints)} checkpoints are damaged; the newest: {problem}")
    return None


def list_checkpoints(run_folder: Path) -> list[Path]:
    """Return the checkpoints of a run by step, without unfinished ones, which end in .part."""
    return sorted(run_folder.glob("checkpoint_*[0-9]"))
