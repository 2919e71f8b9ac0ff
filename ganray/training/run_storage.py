"""Runs in the storage: what another node needs to resume, evaluate or explore them.

Rank 0 uploads checkpoints. The driver, which has the rest of the run folder, uploads that; rank 0
asks for it before a checkpoint is complete, so that no event before a checkpoint is lost.
"""

from __future__ import annotations

import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath, PurePosixPath

from filelock import FileLock

from ganray.config.schema import Config
from ganray.data.storage import Storage, open_storage
from ganray.distributed import rank
from ganray.errors import UserError
from ganray.training import journal
from ganray.training.run_folder import OWNER_FILE, RANKS_FOLDER
from ganray.training.state import DIGEST_FILE, verify_checkpoint
from ganray.training.stopping import STOP_FILE

logger = logging.getLogger(__name__)

BEST_FOLDER = "best_coverage"
"""Subfolder of the run folder for the checkpoint with the highest coverage."""
_UPLOAD_S = 5.0
"""Interval at which a driver uploads what is new."""
_RECENT_S = 30.0
"""Time for which a changed file is uploaded again, even if its size is the same."""


def push_folder(folder: Path, url: str) -> None:
    """Upload what is new in the folder of a run or sweep, except for checkpoints."""
    storage = _open(url)
    known, now = storage.sizes(_name(folder)), time.time()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        name = f"{_name(folder)}/{relative.as_posix()}"
        if not _is_shared(relative):
            continue
        with suppress(FileNotFoundError):  # deleted meanwhile
            status = path.stat()
            is_recent = now - status.st_mtime < _RECENT_S and path.suffix != ".png"
            if path.is_file() and (is_recent or known.get(name) != status.st_size):
                storage.upload(path, name)


def pull_folder(folder: Path, url: str) -> None:
    """Download what differs in the folder of a run or sweep, except for checkpoints.

    A journal that begins as the one in the storage stays: this driver was killed before it uploaded
    the rest.
    """
    storage = _open(url)
    prefix = _name(folder) + "/"
    for name, size in storage.sizes(_name(folder)).items():
        relative = PurePosixPath(name.removeprefix(prefix))
        path = folder / relative
        if ".." in relative.parts or not _is_shared(relative) or path.name == OWNER_FILE:
            continue
        if path.name == journal.FILE and path.exists():
            if not path.read_bytes().startswith(storage.read(name) or b""):
                storage.download(name, path)
        elif path.suffix == ".json" or not path.exists() or path.stat().st_size != size:
            storage.download(name, path)


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
    uploaded: dict[Path, object] = {}

    def push() -> None:
        for folder in folders():
            state = _state(folder)
            if uploaded.get(folder) != state:
                push_folder(folder, url)
                uploaded[folder] = state

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


def _state(folder: Path) -> object:
    """Return a value that changes with the files of a folder that other nodes need."""
    state = []
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if _is_shared(path.relative_to(folder)):
                state.append((path, path.stat().st_mtime_ns))
    return sorted(state)


def fetch_run(name: str, home: Path, url: str | None) -> None:
    """Download a run into the home, if the storage has it, with its newest checkpoint.

    Args:
        name: Name of the run, or RUN/CHECKPOINT to download that checkpoint.
        home: Home folder.
        url: Storage, if there is one.
    """
    storage = open_storage(url)
    if not (storage and url and re.fullmatch(r"\w[\w.-]*(/\w+)?", name)):
        return
    run, _, chosen = name.partition("/")
    folder = home / "runs" / run
    checkpoints = [folder / chosen] if chosen else stored_checkpoints(storage, folder)
    if checkpoints and download_checkpoint(storage, checkpoints[-1]):
        pull_folder(folder, url)


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


def upload_checkpoint(storage: Storage, source: Path, checkpoint: Path) -> None:
    """Upload the files of `source` as a checkpoint, its digests last: they complete it."""
    for path in sorted(source.iterdir(), key=lambda path: path.name == DIGEST_FILE):
        storage.upload(path, f"{_name(checkpoint, parts=3)}/{path.name}")


def download_checkpoint(storage: Storage, checkpoint: Path) -> bool:
    """Download a checkpoint unless it is here, intact; return whether the storage has it.

    Processes of a node may call it at the same time.
    """
    name = _name(checkpoint, parts=3)
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
        for file in storage.sizes(name):
            storage.download(file, partial / Path(file).name)
        shutil.rmtree(checkpoint, ignore_errors=True)
        partial.rename(checkpoint)
    return True


def delete_checkpoint(storage: Storage, checkpoint: Path) -> None:
    """Delete a checkpoint in the storage, its digests first, so that no half of it is used."""
    name = _name(checkpoint, parts=3)
    storage.delete(f"{name}/{DIGEST_FILE}")
    storage.delete(name)


def share_run(run_folder: Path, url: str | None) -> None:
    """Upload the newest checkpoint of a run that began without the storage, if there is one."""
    storage, own = open_storage(url), sorted(run_folder.glob("checkpoint_*[0-9]"))
    if storage and own and not stored_checkpoints(storage, run_folder):
        upload_checkpoint(storage, own[-1], own[-1])


def share_checkpoint(checkpoint: Path, url: str | None) -> None:
    """Upload a checkpoint of a run in the home unless it is in the storage, if there is one."""
    storage, is_run = open_storage(url), checkpoint.parents[1].name == "runs"
    if storage and is_run and storage.read(f"{_name(checkpoint, parts=3)}/{DIGEST_FILE}") is None:
        upload_checkpoint(storage, checkpoint, checkpoint)


def node_copy(checkpoint: Path, config: Config) -> Path:
    """Return a checkpoint of another process as a path on this node, from the storage."""
    storage = open_storage(config.storage)
    if storage is None or (rank() == 0 and checkpoint.is_dir()):
        return checkpoint
    copy = config.home / _name(checkpoint, parts=3)
    return copy if download_checkpoint(storage, copy) else checkpoint


def _open(url: str) -> Storage:
    storage = open_storage(url)
    assert storage is not None
    return storage


def _is_shared(path: PurePath) -> bool:
    """Return whether other nodes need a file of a run or sweep, besides checkpoints."""
    own = ("checkpoint_", BEST_FOLDER, RANKS_FOLDER, STOP_FILE, "tune", ".")
    return not path.parts[0].startswith(own) and path.suffix != ".part"


def _name(path: Path, parts: int = 2) -> str:
    """Return the last parts of a path: runs/NAME, of a run; with 3, of a checkpoint."""
    return "/".join(path.parts[-parts:])
