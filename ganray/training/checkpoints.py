"""Checkpoints in the run folder: complete or absent, with a digest of the tensors.

They are written by a thread, from a copy of the state in host memory, while training goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ganray.config.commands import command_line
from ganray.config.schema import Config
from ganray.data.storage import Storage, open_storage
from ganray.distributed import rank
from ganray.errors import UserError
from ganray.files import cannot_write, sync
from ganray.training.checkpoint_uploader import CheckpointUploader
from ganray.training.run_storage import (
    BEST_FOLDER,
    download_checkpoint,
    fetch_run,
    push_folder,
    stored_checkpoint,
    stored_checkpoints,
)
from ganray.training.state import (
    DIGEST_FILE,
    STATE_FILE,
    TrainState,
    file_digest,
    save_content,
    verify_checkpoint,
)

if TYPE_CHECKING:
    from ganray.training.context import WorkerContext

logger = logging.getLogger(__name__)

_SCORE_FILE = "score.json"
_Buffers = dict[tuple[int, torch.Size], torch.Tensor]
"""Copies of tensors by the address and shape of the original."""


class CheckpointWriter:
    """Writes a run's checkpoints from a thread, one at a time. Does nothing on ranks other than 0.

    A step starts while the state is still being copied: weights and moments do not change before
    an optimizer's step, which waits for the end of the copy. A CUDA graph contains that step, so
    whoever runs one calls `wait_for_copy` before. The copy takes as much host memory as the state.
    With a storage they are uploaded as well, see `CheckpointUploader`.
    """

    def __init__(self, state: TrainState, context: WorkerContext) -> None:
        self._state, self._train = state, state.config.train
        self._folder = state.config.run_folder()
        self._uploader = self._make_uploader(context) if rank() == 0 else None
        self._best = best_coverage(self._folder)
        self._buffers: _Buffers = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._copied: Future[Any] = Future()
        self._copied.set_result(None)
        self._written: Future[None] = Future()
        self._written.set_result(None)
        self._hooks = [
            optimizer.register_step_pre_hook(lambda *_: self.wait_for_copy())
            for optimizer in (state.D_optimizer, state.G_optimizer)
        ]

    def _make_uploader(self, context: WorkerContext) -> CheckpointUploader | None:
        """Return what uploads checkpoints; None without a storage.

        The run folder of this node gets the best checkpoint.
        """
        url, folder = self._state.config.storage, self._folder
        if not url or (storage := open_storage(url)) is None:
            return None
        best = folder / BEST_FOLDER
        download_checkpoint(storage, best)  # raises during an outage: the best must not start anew
        try:
            verify_checkpoint(best)
        except UserError:  # there is none, or its upload was cut off
            shutil.rmtree(best, ignore_errors=True)
        return CheckpointUploader(
            storage,
            folder,
            flush=lambda: context.folder.call(push_folder, url),
            announce=lambda text: context.announce(text, is_training=True),
            surplus=self._surplus,
        )

    def reserve(self) -> None:
        """Reserve memory for the copy, in the thread, so that the first one is no slower."""
        if not self._buffers and rank() == 0:
            # Taken here, as the first update of G adds to its optimizer's state.
            self._copied = self._thread.submit(self._copy, self._state.content())

    def save(self, *, latest: bool, coverage: float = 0.0) -> Path | None:
        """Save the current state after the previous one is written; return the latest's folder.

        Args:
            latest: Whether to write a checkpoint to resume from.
            coverage: Coverage of this state. The highest one so far is written as the best.

        Raises:
            UserError: The previous checkpoint could not be written.
        """
        is_best = coverage > self._best
        self._best = max(coverage, self._best)
        if rank() != 0 or not (latest or is_best):
            return None
        self._written.result()
        state, score = self._state, {"coverage": coverage, "images_seen": self._state.images_seen}
        target = self._folder / f"checkpoint_{state.step:010d}"  # sorts by step
        self._copied = self._thread.submit(self._copy, state.content())
        self._written = self._thread.submit(
            self._write, self._copied, target if latest else None, score if is_best else None
        )
        return target if latest else None

    def check(self) -> None:
        """Raise the error of the checkpoint that was written last, if there was one.

        Raises:
            UserError: It could not be written. Earlier checkpoints are kept.
        """
        if self._written.done():
            self._written.result()

    def wait_for_copy(self) -> None:
        """Wait until the state may change and a CUDA graph may be captured."""
        self._copied.result()

    def wait(self) -> None:
        """Wait until the last checkpoint is written and uploaded; raises as `check` does."""
        self._written.result()
        if self._uploader:
            self._uploader.wait()

    def finish(self) -> None:
        """Wait until the last checkpoint is written, and is in the storage, if there is one.

        Raises:
            UserError: It could not be written, or not be uploaded for five minutes.
        """
        self._written.result()
        if self._uploader:
            self._uploader.finish()

    def close(self) -> None:
        """Finish the checkpoint that is being written or uploaded."""
        self._thread.shutdown()
        if self._uploader:
            self._uploader.close()
        for hook in self._hooks:
            hook.remove()

    def _copy(self, content: dict[str, Any]) -> dict[str, Any]:
        """Copy all tensors to host memory, which is that of the previous copy where they fit."""
        previous, self._buffers = self._buffers, {}
        copy = self._copy_tensors(content, previous)
        if self._state.device.type == "cuda":
            # Not of the whole device, which CUDA forbids while a graph is captured.
            torch.cuda.current_stream(self._state.device).synchronize()
        return copy

    def _copy_tensors(self, value: Any, previous: _Buffers) -> Any:
        if isinstance(value, dict):
            return {key: self._copy_tensors(item, previous) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copy_tensors(item, previous) for item in value)
        if not isinstance(value, torch.Tensor):
            return value
        key = value.data_ptr(), value.shape
        if key not in self._buffers:  # otherwise the same tensor: G_ema may be G
            pinned = value.device.type == "cuda"
            buffer = previous.get(key)
            if buffer is None:
                buffer = torch.empty_like(value, device="cpu", pin_memory=pinned)
            self._buffers[key] = buffer.copy_(value.detach(), non_blocking=True)
        return self._buffers[key]

    def _write(
        self, copied: Future[dict[str, Any]], target: Path | None, score: dict[str, float] | None
    ) -> None:
        content, config = copied.result(), self._state.config
        # Weights with NaN must not replace the good ones. The next loss is NaN as well, on all
        # ranks, and ends the run.
        if not all(_is_finite(content[network]) for network in ("G", "D")):
            logger.warning("step %d is not saved: weights are not finite", content["step"])
            return
        if score is not None:
            texts = {_SCORE_FILE: json.dumps(score)}
            write_checkpoint(content, config, self._folder / BEST_FOLDER, texts)
            self._upload(self._folder / BEST_FOLDER)
        if target is not None:
            self._write_latest(content, target)
            self._upload(target)

    def _upload(self, checkpoint: Path) -> None:
        if self._uploader:
            self._uploader.add(checkpoint)

    def _write_latest(self, content: dict[str, Any], target: Path) -> None:
        """Write a checkpoint and delete those that are no longer kept.

        If it does not fit on the disk, the oldest one is deleted first, unless fewer than
        `train.keep_checkpoints` would remain.
        """
        keep = self._train.keep_checkpoints
        try:
            write_checkpoint(content, self._state.config, target)
        except UserError:
            others = [path for path in list_checkpoints(self._folder) if path != target]
            older = self._deletable(others)
            if len(older) < keep or keep == 1 or not _is_full(self._folder, content):
                raise
            shutil.rmtree(older[0])
            write_checkpoint(content, self._state.config, target)
        for old in self._surplus(list_checkpoints(self._folder), target):
            shutil.rmtree(old)

    def _surplus(self, checkpoints: Sequence[Path], newest: Path) -> list[Path]:
        """Return those of some checkpoints that are no longer kept when the newest is written.

        Those of later steps are not part of the run any more: they are damaged, or were not
        uploaded, or the run went on from an earlier checkpoint of another member of a population.
        """
        later = [path for path in checkpoints if path.name > newest.name]
        earlier = self._deletable([path for path in checkpoints if path.name <= newest.name])
        return later + earlier[: -self._train.keep_checkpoints]

    def _deletable(self, checkpoints: Sequence[Path]) -> list[Path]:
        """Return the checkpoints that are not kept forever."""
        every = self._train.keep_every
        interval = self._train.kimg_to_steps(every) if every else 0
        return [path for path in checkpoints if not interval or checkpoint_step(path) % interval]


def write_checkpoint(
    content: Mapping[str, Any], config: Config, target: Path, texts: Mapping[str, str] = {}
) -> None:
    """Write a checkpoint folder, and `texts` by file name into it.

    Raises:
        UserError: It cannot be written. No part of it is left.
    """
    partial = target.with_name(f"{target.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        save_content(content, config, partial)
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
        if isinstance(error, RuntimeError) and not _is_full(target.parent, content):
            raise
        with contextlib.suppress(OSError):
            shutil.rmtree(partial)
        raise cannot_write(target, error, _num_bytes(content)) from error


def best_coverage(folder: Path) -> float:
    """Return the coverage of the best checkpoint in a run folder; 0 if there is none intact."""
    try:
        return float(json.loads((folder / BEST_FOLDER / _SCORE_FILE).read_text())["coverage"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0.0


def _is_full(folder: Path, content: Mapping[str, Any]) -> bool:
    """Return whether the disk has no room for a checkpoint, which is a little larger than this."""
    return shutil.disk_usage(folder).free < 1.1 * _num_bytes(content) + 2**16


def _num_bytes(value: Any) -> int:
    """Return the size of all tensors in a nested value."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    items = value.values() if isinstance(value, Mapping) else value
    return (
        0
        if isinstance(items, str) or not isinstance(items, Iterable)
        else sum(map(_num_bytes, items))
    )


def _is_finite(weights: Mapping[str, torch.Tensor]) -> bool:
    return all(bool(weight.isfinite().all()) for weight in weights.values())


def find_checkpoint(run_folder: Path, strict: bool, storage: Storage | None = None) -> Path | None:
    """Return the newest undamaged checkpoint of a run; None if the run has no checkpoint.

    Args:
        run_folder: The run folder.
        strict: Whether to raise if the newest one is damaged.
        storage: Where the run's checkpoints are; they are downloaded into the run folder.

    Raises:
        UserError: All checkpoints are damaged, or `strict`, or the storage does not answer.
    """
    checkpoints = list_checkpoints(run_folder, storage)
    problem = None
    for checkpoint in reversed(checkpoints):
        if storage:
            download_checkpoint(storage, checkpoint)
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


def locate_initial_weights(config: Config) -> Config:
    """Return the config with `init_from` as the absolute path of a checkpoint.

    A dry run does not download it from the storage.

    Raises:
        UserError: There is none, or it is damaged.
    """
    if not config.init_from:
        return config
    given = Path(config.init_from).expanduser()
    if not given.exists():
        stored = stored_checkpoint(config.init_from, config.home, config.storage)
        if stored and config.dry_run:
            return replace(config, init_from=str(stored))
        fetch_run(config.init_from, config.home, config.storage)
    for folder in (given, config.home / "runs" / config.init_from):
        if (folder / STATE_FILE).is_file():
            return replace(config, init_from=str(folder.resolve()))
        if checkpoint := find_checkpoint(folder, strict=False):
            return replace(config, init_from=str(checkpoint.resolve()))
    raise UserError(
        f"init_from={config.init_from} must be a run in {config.home}, or the folder of a run or"
        f" checkpoint; {command_line('evaluate', home=config.home)} lists the runs"
    )


def list_checkpoints(run_folder: Path, storage: Storage | None = None) -> list[Path]:
    """Return the checkpoints of a run by step, without unfinished ones, which end in .part.

    They are those in the storage, if one is given, as paths in the run folder.
    """
    if storage:
        return stored_checkpoints(storage, run_folder)
    return sorted(run_folder.glob("checkpoint_*[0-9]"))


def checkpoint_step(checkpoint: Path) -> int:
    """Return the step of a checkpoint in a run folder, from its name."""
    return int(checkpoint.name.rpartition("_")[2])


def resume_kimg(config: Config) -> float | None:
    """Return the kimg of the latest checkpoint of a run; None if it has none."""
    checkpoints = list_checkpoints(config.run_folder(), open_storage(config.storage))
    if not checkpoints:
        return None
    return checkpoint_step(checkpoints[-1]) * config.train.batch_size / 1000
