"""Runs in the storage: what another node needs to resume, evaluate or explore them.

Rank 0 uploads checkpoints. The driver, which has the rest of the run folder, uploads that; rank 0
asks for it before a checkpoint is complete, so that no event before a checkpoint is lost.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePath, PurePosixPath

from filelock import FileLock

from ganray.config.schema import Config
from ganray.data.storage import Storage, open_storage
from ganray.distributed import rank
from ganray.errors import UserError
from ganray.files import read_json, write_atomic
from ganray.training import journal
from ganray.training.run_folder import OWNER_FILE, RANKS_FOLDER
from ganray.training.state import DIGEST_FILE, STATE_FILE, verify_checkpoint
from ganray.training.stopping import STOP_FILE

logger = logging.getLogger(__name__)

BEST_FOLDER = "best_coverage"
"""Subfolder of the run folder for the checkpoint with the highest coverage."""
_UPLOAD_S = 5.0
"""Interval at which a driver uploads what is new."""
_PUSH_LOCK_FILE = ".push.lock"
"""File in the folder of a run or sweep that locks its upload."""
_STAMPS_FILE = ".stored.json"
"""File in the folder of a run or sweep, see `_read_stamps`."""


def push_folder(folder: Path, url: str) -> None:
    """Upload what is new in the folder of a run or sweep, except for checkpoints.

    The journal comes last, in its state of before: its events must not precede their pictures,
    which a run that resumes would not write again.
    """
    if not folder.exists():
        return
    # Of two processes, one could replace the journal by an older one.
    with FileLock(folder / _PUSH_LOCK_FILE):
        storage, known = _open(url), _read_stamps(folder)
        before = dict(known)
        events, events_stamp = b"", None
        with suppress(FileNotFoundError):
            events_stamp = _stamp(folder / journal.FILE)
            events = (folder / journal.FILE).read_bytes()
        try:
            for path in sorted(folder.rglob("*")):
                name = path.relative_to(folder)
                with suppress(FileNotFoundError):  # deleted meanwhile
                    if _is_shared(name) and name.name != journal.FILE and path.is_file():
                        stamp = _stamp(path)
                        if known.get(str(name)) != stamp:
                            storage.upload(path, f"{_name(folder)}/{name.as_posix()}")
                            known[str(name)] = stamp
            if events_stamp and known.get(journal.FILE) != events_stamp:
                storage.write(f"{_name(folder)}/{journal.FILE}", events)
                known[journal.FILE] = events_stamp
        finally:
            if known != before:
                _write_stamps(folder, known)


def upload_files(files: Iterable[Path], folder: Path | None, url: str | None) -> None:
    """Upload those of some files that are in the folder of a run, if there is a storage."""
    storage = open_storage(url)
    for path in files:
        if storage and folder and path.is_relative_to(folder):
            storage.upload(path, f"{_name(folder)}/{path.relative_to(folder).as_posix()}")


def pull_folder(folder: Path, url: str) -> None:
    """Download what differs in the folder of a run or sweep, except for checkpoints.

    What has changed here since it was last uploaded stays, unless another driver has changed it,
    too: this driver was killed before it uploaded the rest. Of a journal that goes on from the one
    in the storage that is always so.
    """
    storage, known = _open(url), _read_stamps(folder)
    prefix, stored = f"{_name(folder)}/", storage.sizes(_name(folder))
    for file, size in stored.items():
        name = PurePosixPath(file.removeprefix(prefix))
        path, stamp = folder / name, known.get(str(name))
        if ".." in name.parts or not _is_shared(name):
            continue
        if name.name == journal.FILE and path.exists():
            keep = path.read_bytes().startswith(storage.read(file) or b"")
        else:  # a JSON file may have changed there without its size
            is_same_there = stamp is not None and stamp[0] == size and path.exists()
            keep = is_same_there and (path.suffix != ".json" or stamp != _stamp(path))
        if keep:
            continue
        if storage.download(file, path):
            known[str(name)] = _stamp(path)
    known = {name: stamp for name, stamp in known.items() if f"{prefix}{name}" in stored}
    if folder.exists():
        _write_stamps(folder, known)


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _read_stamps(folder: Path) -> dict[str, list[int]]:
    """Return size and time of the files when they were last the same as in the storage."""
    try:
        return read_json(folder / _STAMPS_FILE, "")
    except UserError:
        return {}


def _write_stamps(folder: Path, stamps: dict[str, list[int]]) -> None:
    write_atomic(folder / _STAMPS_FILE, json.dumps(stamps))


@contextmanager
def upload_folders(url: str | None, folders: Callable[[], Iterable[Path]]) -> Iterator[None]:
    """Upload what is new in folders of runs and sweeps while the block runs, and at its end.

    Raises:
        UserError: The last upload failed; the next driver of the same run uploads the rest.
    """
    if url is None:
        yield
        return
    stop, failed = threading.Event(), False

    def push() -> None:
        for folder in folders():
            push_folder(folder, url)

    def upload() -> None:
        nonlocal failed
        while not stop.wait(_UPLOAD_S):
            try:
                push()
                failed = False
            except UserError as error:
                if not failed:  # once per outage
                    logger.warning("%s; trying again", error)
                failed = True

    thread = threading.Thread(target=upload, name="storage", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        stop.set()
        with suppress(UserError):  # the error of the block is what counts
            push()
        raise
    stop.set()
    thread.join()
    push()


def fetch_run(name: str, home: Path, url: str | None) -> None:
    """Download a run into the home, if the storage has it, with its newest checkpoint.

    Args:
        name: Name of the run, or RUN/CHECKPOINT to download that checkpoint.
        home: Home folder.
        url: Storage, if there is one.
    """
    storage, checkpoint = open_storage(url), stored_checkpoint(name, home, url)
    if storage and url and checkpoint and download_checkpoint(storage, checkpoint):
        pull_folder(checkpoint.parent, url)


def stored_checkpoint(name: str, home: Path, url: str | None) -> Path | None:
    """Return the path that `fetch_run` downloads a checkpoint to; None if there is none."""
    storage = open_storage(url)
    if not (storage and re.fullmatch(r"\w[\w.-]*(/\w+)?", name)):
        return None
    run, _, chosen = name.partition("/")
    folder = home / "runs" / run
    checkpoints = [folder / chosen] if chosen else stored_checkpoints(storage, folder)
    is_there = checkpoints and storage.read(f"{checkpoint_name(checkpoints[-1])}/{DIGEST_FILE}")
    return checkpoints[-1] if is_there else None


def stored_names(storage: Storage, kind: str, file: str) -> list[str]:
    """Return the names of the runs, or sweeps, whose folder has a file, or has it in a subfolder.

    `kind` is "runs" or "sweeps".
    """
    names = (PurePosixPath(name) for name in storage.sizes(kind))
    return sorted({path.parts[1] for path in names if path.name == file and len(path.parts) > 2})


def stored_checkpoints(storage: Storage, run_folder: Path) -> list[Path]:
    """Return the complete checkpoints in the storage by step, as paths in the run folder."""
    names = storage.sizes(_name(run_folder))
    complete = [Path(name).parent.name for name in names if name.endswith(f"/{DIGEST_FILE}")]
    return [run_folder / name for name in sorted(complete) if name != BEST_FOLDER]


def upload_checkpoint(storage: Storage, source: Path, name: str) -> None:
    """Upload the files of a checkpoint, its digests last: they complete it."""
    storage.delete(f"{name}/{DIGEST_FILE}")  # of an earlier version
    for path in sorted(source.iterdir(), key=lambda path: path.name == DIGEST_FILE):
        storage.upload(path, f"{name}/{path.name}")


def download_checkpoint(storage: Storage, checkpoint: Path, name: str = "") -> bool:
    """Download a checkpoint unless it is here, intact; return whether the storage has it.

    Processes of a node may call it at the same time. `name` is its name in the storage, unless it
    is that of the run.
    """
    name = name or checkpoint_name(checkpoint)
    digests = storage.read(f"{name}/{DIGEST_FILE}")
    if digests is None:
        return False
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(checkpoint.parent / ".download.lock"):
        with suppress(OSError, UserError):
            if (checkpoint / DIGEST_FILE).read_bytes() == digests:
                verify_checkpoint(checkpoint)
                return True
        partial = checkpoint.with_name(f"{checkpoint.name}.part")
        shutil.rmtree(partial, ignore_errors=True)
        files = [*storage.sizes(name)]
        if not files or not all(storage.download(f, partial / Path(f).name) for f in files):
            return False  # it was deleted meanwhile
        shutil.rmtree(checkpoint, ignore_errors=True)
        partial.rename(checkpoint)
    return True


def delete_checkpoint(storage: Storage, checkpoint: Path) -> None:
    """Delete a checkpoint in the storage, its digests first, so that no half of it is used."""
    name = checkpoint_name(checkpoint)
    storage.delete(f"{name}/{DIGEST_FILE}")
    storage.delete(name)


def share_run(run_folder: Path, url: str | None) -> None:
    """Upload the newest checkpoint of a run that began without the storage, if there is one."""
    storage, own = open_storage(url), sorted(run_folder.glob("checkpoint_*[0-9]"))
    if storage and own and not stored_checkpoints(storage, run_folder):
        best = run_folder / BEST_FOLDER
        for checkpoint in (own[-1], *([best] if best.is_dir() else [])):
            upload_checkpoint(storage, checkpoint, checkpoint_name(checkpoint))


def share_initial(checkpoint: str, url: str) -> str:
    """Upload the checkpoint that a run starts from unless it is there, and return its name."""
    storage, source = _open(url), Path(checkpoint)
    digest = read_json(source / DIGEST_FILE, "give another --init_from")[STATE_FILE]
    name = f"init/{digest}"
    if storage.read(f"{name}/{DIGEST_FILE}") is None:
        upload_checkpoint(storage, source, name)
    return name


def fetch_initial(config: Config) -> Config:
    """Return the config with the result of `share_initial` as a checkpoint on this node."""
    storage = open_storage(config.storage)
    if not (storage and config.init_from):
        return config
    checkpoint = config.home / config.init_from
    download_checkpoint(storage, checkpoint, config.init_from)
    return replace(config, init_from=str(checkpoint))


def node_copy(checkpoint: Path, config: Config) -> Path:
    """Return rank 0's checkpoint of the run on this node, from the storage if there is one."""
    storage = open_storage(config.storage)
    if storage is None or (rank() == 0 and checkpoint.is_dir()):
        return checkpoint
    copy = config.run_folder() / checkpoint.name
    download_checkpoint(storage, copy)
    return copy


def checkpoint_name(checkpoint: Path) -> str:
    """Return the name of a run's checkpoint in the storage."""
    return "/".join(checkpoint.parts[-3:])


def _open(url: str) -> Storage:
    storage = open_storage(url)
    assert storage is not None
    return storage


def _is_shared(path: PurePath) -> bool:
    """Return whether other nodes need a file of a run or sweep, besides checkpoints."""
    own = ("checkpoint_", BEST_FOLDER, RANKS_FOLDER, OWNER_FILE, STOP_FILE, "tune", ".")
    return not path.parts[0].startswith(own) and path.suffix != ".part"


def _name(folder: Path) -> str:
    """Return the name of the folder of a run or sweep in the storage."""
    return "/".join(folder.parts[-2:])
