"""The journal: what a run leaves behind as it goes, one JSON line for each event.

Rank 0 appends to `journal.jsonl` in the run folder and puts pictures beside it. That file is the
one source of the numbers: the terminal and MLflow follow it, each at its own pace, so a slow or
dead server never stalls a step, and what it missed can be sent later.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from ganray.config.schema import Config

Event = dict[str, Any]

FILE = "journal.jsonl"
_SILENCE_S = 120  # then the terminal says that it still listens


class Journal:
    """Appends events. Made with no folder (ranks other than 0) it keeps silent.

    After a restart the loop runs again through the steps since the last checkpoint. Their numbers
    are already here, so they are not written twice.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._file: IO[str] | None = None
        self._last: dict[str, int] = {}
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        _drop_torn_line(path)
        for event, _ in read(folder):
            self._last[event["name"]] = event["images"]
        self._file = path.open("a")

    def metrics(self, images_seen: int, values: Mapping[str, float]) -> None:
        """Numbers by name at a point in training, counted in images."""
        self._append("metrics", images_seen, values=dict(values))

    def collapse(self, images_seen: int, values: Mapping[str, float], warning: str) -> None:
        """What an evaluation came to, and why it gives alarm; '' if it does not."""
        self._append("collapse", images_seen, values=dict(values), warning=warning)

    def image(self, name: str, images_seen: int, image: np.ndarray) -> None:
        """A picture, uint8 (H, W, 3), e.g. a sample grid; kept as PNG, each step its own file."""
        if self._folder is None or self._is_old(name, images_seen):
            return
        relative = Path(name) / f"{images_seen:012d}.png"
        path = self._folder / relative
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        Image.fromarray(image).save(part, format="PNG")
        os.replace(part, path)
        self._append(name, images_seen, path=str(relative))

    def close(self) -> None:
        """Close the file; a journal can be opened again."""
        if self._file is not None:
            self._file.close()

    def _is_old(self, name: str, images_seen: int) -> bool:
        return images_seen <= self._last.get(name, -1)

    def _append(self, name: str, images_seen: int, **content: Any) -> None:
        if self._file is None or self._is_old(name, images_seen):
            return
        self._last[name] = images_seen
        event = {"name": name, "images": images_seen, "time": round(time.time(), 3)} | content
        self._file.write(json.dumps(event) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())  # or, on network storage, the driver would see it late


def read(folder: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Events from a byte offset on, each with the offset after it; a torn last line is left."""
    path = folder / FILE
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield json.loads(line), offset


def history(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """One metric's whole curve: images seen (n,) and values (n,)."""
    points = [
        (event["images"], event["values"][name])
        for event, _ in read(folder)
        if name in event.get("values", {})
    ]
    images, values = zip(*points, strict=True) if points else ((), ())
    return np.array(images, dtype=np.int64), np.array(values, dtype=np.float64)


def progress_line(event: Event, total_images: int) -> str:
    """A metrics event as one line for people: how far, how fast, how long to go, the losses.

    G is left out where D trains alone.
    """
    values, images = event["values"], event["images"]
    rate = values["data/images_per_s"]
    left = int((total_images - images) / max(rate, 1e-9))
    clock = f"{left // 3600}:{left % 3600 // 60:02d}:{left % 60:02d}"
    G = f"  G {values['G/loss']:.3f}" if "G/loss" in values else ""
    return (
        f"{images / 1000:8.1f} / {total_images / 1000:g} kimg ({images / total_images:4.0%})"
        f"  {rate:7,.0f} images/s  D {values['D/loss']:.3f}{G}"
        f"  D(real) {values['D/real_prob']:.2f}  D(fake) {values['D/fake_prob']:.2f}  left {clock}"
    )


def collapse_line(event: Event) -> str:
    """An evaluation as a line for people, and another where it gives alarm."""
    values = event["values"]
    parts = [f"{event['images'] / 1000:8.1f} kimg    "]
    if "collapse/modes_held" in values:
        parts.append(f"modes {values['collapse/modes_held']:g}")
        parts.append(f"KL {values['collapse/kl']:.2f}")
    parts.append(f"recall {values['collapse/recall']:.2f}")
    parts.append(f"coverage {values['collapse/coverage']:.2f}")
    parts.append(f"Vendi {values['collapse/vendi_share']:.0%} of the reals'")
    parts.append(f"({values['time/evaluation_share']:.1%} of the time)")
    return "  ".join(parts) + (
        f"\n{'WARNING':>13}    {event['warning']}" if event["warning"] else ""
    )


@contextmanager
def print_progress(config: Config) -> Iterator[None]:
    """Print the metrics of the run's journal as they come, one line a tick, from now on."""
    folder, stop = config.run_folder(), threading.Event()
    total = config.train.steps() * config.train.batch_size
    start = _end(folder)

    def follow() -> None:
        offset, last, heard = start, False, time.monotonic()
        while not last:
            last = stop.wait(0.5)
            for event, after in read(folder, offset):
                offset, heard = after, time.monotonic()
                if event["name"] == "metrics":
                    print(progress_line(event, total), flush=True)
                if event["name"] == "collapse":
                    print(collapse_line(event), flush=True)
            if time.monotonic() - heard > _SILENCE_S:
                heard = time.monotonic()
                print("nothing new yet: workers are starting, or wait for room", flush=True)

    thread = threading.Thread(target=follow, name="narrator", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _end(folder: Path) -> int:
    return max((after for _, after in read(folder)), default=0)


def _drop_torn_line(path: Path) -> None:
    """A killed writer may leave half a line; the next event would be glued to it."""
    if not path.exists():
        return
    whole = path.read_bytes()
    if whole and not whole.endswith(b"\n"):
        with path.open("rb+") as file:
            file.truncate(whole.rfind(b"\n") + 1)
