"""Files that are complete or absent: atomic writes, and JSON files with clear errors."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from ganray.errors import UserError


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file that has either its old or its new content, whatever fails meanwhile.

    Creates the folder. A file that has this content already is not written again.

    Raises:
        UserError: The file cannot be written, for example because the disk is full.
    """
    data = content.encode() if isinstance(content, str) else content
    with contextlib.suppress(OSError):
        if path.read_bytes() == data:
            return
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        publish(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise cannot_write(path, error, len(data)) from error


def write_file(folder: Path, name: str | Path, content: bytes) -> None:
    """Write a file in a folder; see `write_atomic`."""
    write_atomic(folder / name, content)


def create_folder(folder: Path) -> Path:
    """Create a folder unless it exists, and return it; UserError if it cannot be created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return folder


def publish(part: Path, path: Path) -> None:
    """Flush a finished file and rename it, so that its final name never denotes a partial file."""
    sync(part)
    part.replace(path)
    sync(path.parent)  # otherwise a power failure may undo the rename


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: Exception, size: int = 0) -> UserError:
    """Return the error for a file of `size` bytes that cannot be written."""
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    if size > free:
        reason = f"{reason}: it needs {size:,} bytes, and {free:,} are free"
    return UserError(
        f"{path}: cannot be written ({reason}); make room or give permission, or use another folder"
        " (--home, GANRAY_HOME or --out), then start the same command again"
    )


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        path: The file.
        remedy: What the user can do about a damaged file, for the message.

    Raises:
        UserError: The file is missing, unreadable, no JSON, or contains no object.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; {remedy}") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: damaged ({reason}); {remedy}") from error
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise UserError(f"{path}: damaged (contains a {kind} instead of an object); {remedy}")
    return value
