"""The journal: all metrics, evaluations and images of a run, one JSON line per event.

Rank 0 appends to `journal.jsonl` in the run folder and writes images beside it. The file is the
single source of these numbers: progress lines and MLflow read it at their own pace, so that a slow
or failed server never delays a training step and missed events can be sent later.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ganray import log
from ganray.config.schema import Config
from ganray.errors import UserError
from ganray.files import cannot_write, write_file
from ganray.training.run_folder import RunFolder

logger = logging.getLogger(__name__)

Event = dict[str, Any]

FILE = "journal.jsonl"
_PROGRESS_S = 1.0
"""Minimum time between two progress lines."""
_SILENCE_S, _WAIT_S, _LONG_WAIT_S = 120, 5, 30
"""Seconds without an event after which a line says so: of workers that train, or that start; and
after which it says what they need, and comes less often."""


class Journal:
    """Appends events to the file; does nothing if `folder` is None (on ranks other than 0).

    A resumed run repeats the steps since its last checkpoint. Their events are already in the file
    and are not written again.
    """

    def __init__(self, folder: RunFolder | None) -> None:
        self._folder = folder
        self._last = folder.call(_open) if folder else {}

    def metrics(self, images_seen: int, values: Mapping[str, float]) -> None:
        """Write training metrics by name."""
        self._append("metrics", images_seen, values=dict(values))

    def collapse(self, images_seen: int, values: Mapping[str, float], warning: str) -> None:
        """Write the metrics of an evaluation and its collapse warning, '' if there is none."""
        self._append("collapse", images_seen, values=dict(values), warning=warning)

    def image(self, name: str, images_seen: int, image: np.ndarray) -> None:
        """Write an image, uint8 (H, W, 3), e.g. a sample grid, as a PNG file of its own."""
        if self._folder is None or self._is_repeated(name, images_seen):
            return
        relative = Path(name) / f"{images_seen:012d}.png"
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        self._folder.call(write_file, relative, buffer.getvalue())
        self._append(name, images_seen, path=str(relative))

    def history(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the curve of one metric; see the function of this name."""
        return self._folder.call(history, name) if self._folder else _curve([])

    def _is_repeated(self, name: str, images_seen: int) -> bool:
        return images_seen <= self._last.get(name, -1)

    def _append(self, name: str, images_seen: int, **content: Any) -> None:
        if self._folder is None or self._is_repeated(name, images_seen):
            return
        self._last[name] = images_seen
        event = {"name": name, "images": images_seen, "time": round(time.time(), 3)} | content
        self._folder.call(_append_line, event)


def _open(folder: Path) -> dict[str, int]:
    """Create the folder and return the images seen at the last event of each name."""
    folder.mkdir(parents=True, exist_ok=True)
    _drop_torn_line(folder / FILE)
    return {event["name"]: event["images"] for event, _ in read(folder)}


def _append_line(folder: Path, event: Event) -> None:
    """Append an event to the file, unless it is the last: Ray repeats a call that may have failed.

    Raises:
        UserError: It cannot be written, for example because the disk is full.
    """
    path, line = folder / FILE, json.dumps(event).encode() + b"\n"
    try:
        with path.open("ab+", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - len(line)))
            if file.read() == line:
                return
            try:
                if file.write(line) < len(line):  # the disk is full
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())  # otherwise the driver sees it late on network storage
            except OSError:
                with contextlib.suppress(OSError):  # leave no half of a line
                    file.truncate(end)
                raise
    except OSError as error:
        raise cannot_write(path, error, len(line)) from error


def read(folder: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Yield events from a byte offset on, each with the offset after it.

    An incomplete last line is not read yet. Damaged lines are skipped with a warning.
    """
    path = folder / FILE
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            event = _parse(line)
            if event is None:
                _warn_damaged(path, offset - len(line))
            else:
                yield event, offset


def _parse(line: bytes) -> Event | None:
    """Return the event of a line; None if the line is damaged."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    types = {"name": str, "images": int, "time": int | float}
    if not isinstance(event, dict):
        return None
    contents = {"path": str, "text": str, "values": dict}
    content, *others = [key for key in contents if key in event] or ["values"]
    types |= {content: contents[content]}
    is_valid = not others and all(isinstance(event.get(key), kind) for key, kind in types.items())
    is_valid &= is_valid and 0 <= event["images"] < 2**63
    if content == "values" and is_valid:
        is_valid = all(isinstance(value, int | float) for value in event["values"].values())
    return event if is_valid else None


@functools.lru_cache  # the same line is read again and again
def _warn_damaged(path: Path, offset: int) -> None:
    logger.warning(
        "%s: the line at byte %d is damaged and skipped; MLflow has its content unless it was"
        " damaged before it was sent",
        path,
        offset,
    )


def add_status(folder: Path, text: str, *, is_training: bool) -> None:
    """Add a line for the driver to print: what the workers do, or what happened to them.

    Any process may call it, as the line is written at once.
    """
    _add_text(folder, "status", text, is_training=is_training)


def add_end(folder: Path) -> None:
    """Record that workers train no longer: all steps are done, or they failed."""
    _add_text(folder, "end", "", is_training=False)


def add_stop(folder: Path) -> None:
    """Record that workers train no longer, because they saved a checkpoint on request."""
    _add_text(folder, "stop", "", is_training=False)


def _add_text(folder: Path, name: str, text: str, *, is_training: bool) -> None:
    event = {"name": name, "images": 0, "time": round(time.time(), 3), "text": text}
    with contextlib.suppress(UserError):
        _append_line(folder, event | {"is_training": is_training})


def is_training(folder: Path) -> bool:
    """Return whether workers train, according to the last event that says so."""
    return bool(_last_state(folder).get("is_training"))


def has_stopped(folder: Path) -> bool:
    """Return whether workers have stopped on request, and none have started since."""
    return _last_state(folder).get("name") == "stop"


def _last_state(folder: Path) -> Event:
    states = [event for event, _ in read(folder) if "is_training" in event]
    return states[-1] if states else {}


def history(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the curve of one metric: images seen, int64 (n,), and values, float64 (n,)."""
    points = [
        (event["images"], event["values"][name])
        for event, _ in read(folder)
        if name in event.get("values", {})
    ]
    return _curve(points)


def _curve(points: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    images, values = zip(*points, strict=True) if points else ((), ())
    return np.array(images, dtype=np.int64), np.array(values, dtype=np.float64)


def progress_line(event: Event, total_images: int) -> str:
    """Format a metrics event: progress, speed, losses, D's probabilities and remaining time.

    The loss of G is missing in a discriminator check. A narrow terminal shows less.
    """
    values, images = event["values"], event["images"]
    rate = values["speed/images_per_s"]
    remaining = int((total_images - images) / max(rate, 1e-9))
    clock = f"{remaining // 3600}:{remaining % 3600 // 60:02d}:{remaining % 60:02d}"
    G = f" G {values['loss/G']:.3f}" if "loss/G" in values else ""
    position = f"{images / 1000:6.1f} / {round(total_images / 1000, 1):g} kimg"
    share = f"({images / total_images:4.0%})"
    losses = f"{rate:6,.0f} images/s  D {values['loss/D']:.3f}{G}"
    real, fake = values["discriminator/real_prob"], values["discriminator/fake_prob"]
    probabilities = f"D(real) {real:.2f} D(fake) {fake:.2f}"
    return log.first_that_fits(
        f"{position} {share}  {losses}  {probabilities}  left {clock}",
        f"{position}  {losses}  {probabilities}  left {clock}",
        f"{position}  {losses}  left {clock}",
    )


def collapse_line(event: Event) -> str:
    """Format an evaluation, with its collapse warning on a second line."""
    values = event["values"]
    parts = [f"{event['images'] / 1000:6.1f} kimg"]
    if "collapse/modes_held" in values:
        parts.append(f"modes {values['collapse/modes_held']:g}")
        parts.append(f"KL {log.two_digits(values['collapse/kl'])}")
    parts.append(f"recall {log.two_digits(values['collapse/recall'])}")
    parts.append(f"coverage {log.two_digits(values['collapse/coverage'])}")
    parts.append(f"Vendi {values['collapse/vendi_share']:.0%}")
    line, share = "  ".join(parts), values["speed/evaluation_share"]
    full = f"{line} of real images"
    lines = [log.first_that_fits(f"{full}  ({share:.1%} of the time)", full, line)]
    if event["warning"]:
        lines.append(log.wrap(event["warning"], f"{'WARNING':>11}  ", 13))
    return "\n".join(lines)


@contextlib.contextmanager
def print_progress(
    config: Config, describe_wait: Callable[[], str] | None = None
) -> Iterator[None]:
    """Log a line for each new event of the run's journal while the context is open.

    Progress lines come at most once a second, the last one always. `describe_wait` returns what
    workers need that do not train yet; None: this process trains.
    """
    folder, stop = config.run_folder(), threading.Event()
    total_images = config.train.steps() * config.train.batch_size
    start = max((offset for _, offset in read(folder)), default=0)

    progress: Event | None = None
    progress_at = -math.inf

    def show_progress() -> None:
        nonlocal progress, progress_at
        if progress is not None:
            logger.info(progress_line(progress, total_images))
            progress, progress_at = None, time.monotonic()

    def follow() -> None:
        nonlocal progress
        offset, stopped, is_training = start, False, describe_wait is None
        event_at = line_at = time.monotonic()
        while not stopped:
            stopped = stop.wait(0.5)
            for event, end in read(folder, offset):
                offset, event_at = end, time.monotonic()
                line_at = event_at
                if event["name"] == "metrics":
                    progress = event
                elif event["name"] == "collapse":
                    show_progress()  # of the same time
                    logger.info(collapse_line(event))
                elif event["name"] == "status":
                    show_progress()
                    is_training = bool(event.get("is_training"))
                    logger.info(event["text"])
            if stopped or time.monotonic() - progress_at >= _PROGRESS_S:
                show_progress()
            interval = _WAIT_S if line_at - event_at < _LONG_WAIT_S else _LONG_WAIT_S
            if time.monotonic() - line_at >= (_SILENCE_S if is_training else interval):
                line_at = time.monotonic()
                waited = line_at - event_at
                what = "no progress for" if is_training else "starting workers:"
                needs = ""
                if describe_wait and not is_training and waited > _LONG_WAIT_S:
                    needs = describe_wait()
                logger.info(f"{what} {waited:.0f} s{needs}")

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _drop_torn_line(path: Path) -> None:
    """Delete the incomplete last line of a killed writer, which the next event would extend."""
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("rb+") as file:
            file.truncate(content.rfind(b"\n") + 1)
