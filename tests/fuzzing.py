"""Spoilt files for every reader: tests/test_fuzz.py reads a few hundred, the benchmark 10^5.

A reader either returns, or raises `UserError`. Anything else, a crash of the process included, is a
bug.
"""

from __future__ import annotations

import json
import pickle
import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ganray.config.serialization import to_dict
from ganray.data.reader import ShardedDataset
from ganray.data.sources.celeba import CelebA
from ganray.data.sources.cifar10 import BATCHES, CIFAR10
from ganray.data.sources.numpy_array import NumpyArray
from ganray.data.writer import write_shards
from ganray.errors import UserError
from ganray.sweeps import design, results
from ganray.training import journal
from ganray.training.checkpoints import write_checkpoint
from ganray.training.run_folder import RunFolder
from ganray.training.state import TrainState, read_config, read_state, verify_checkpoint
from tests.conftest import Squares, tiny_config

VALUES: list[Any] = [None, True, -1, 0, 1, 3, 2**31, 2**63, 2**70, 1e308, "", "x", "../x", [], {}]
VALUES += [float("nan"), float("inf"), [[]], {"x": None}, "\ud800", "9" * 5000, [0] * 100]


@dataclass(frozen=True)
class Target:
    """A reader and the file that is spoilt."""

    file: str
    """Path of the file in the folder that `make` fills."""
    make: Callable[[Path], None]
    read: Callable[[Path], object]


def spoil(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes with one to three random changes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice((_edit_json, _flip, _flip, _number, _cut, _insert, _swap))(data, rng)
    return data


def _position(data: bytes, rng: random.Random) -> int:
    """Return a position, half of them among the first 2,000 bytes, where headers are."""
    return rng.randrange(min(len(data), 2000) if rng.random() < 0.5 else len(data))


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    if data:
        changed[_position(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _number(data: bytes, rng: random.Random) -> bytes:
    """Overwrite bytes by an integer that is likely to be a limit."""
    if len(data) < 9:
        return data
    width = rng.choice("BHIQ")
    limit = 256 ** struct.calcsize(width)
    number = rng.choice((0, 1, limit - 1, limit // 2, rng.randrange(limit)))
    packed, begin = struct.pack(f"<{width}", number), min(_position(data, rng), len(data) - 8)
    return data[:begin] + packed + data[begin + len(packed) :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _insert(data: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(data) + 1)
    return data[:begin] + rng.randbytes(rng.choice((1, 8, 100))) + data[begin:]


def _swap(data: bytes, rng: random.Random) -> bytes:
    """Repeat a part of the file in another place."""
    begin, length, to = (rng.randrange(len(data) + 1) for _ in range(3))
    return data[:to] + data[begin : begin + length % 512] + data[to:]


def _edit_json(data: bytes, rng: random.Random) -> bytes:
    """Replace or delete a value of a JSON file, or of a line of one."""
    lines = data.splitlines(keepends=True) or [b""]
    number = rng.randrange(len(lines))
    for begin, end in ((0, len(lines)), (number, number + 1)):
        try:
            value = json.loads(b"".join(lines[begin:end]))
        except (ValueError, RecursionError):
            continue
        text = json.dumps(_edit(value, rng)).encode() + b"\n"
        return b"".join([*lines[:begin], text, *lines[end:]])
    return data


def _edit(value: Any, rng: random.Random) -> Any:
    if not value or not isinstance(value, dict | list) or rng.random() < 0.1:
        return rng.choice(VALUES)
    copy = value.copy()
    key = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
    if rng.random() < 0.2:
        del copy[key]
    else:
        copy[key] = _edit(copy[key], rng)
    return copy


def _make_shards(folder: Path) -> None:
    write_shards(Squares(40), folder, size=8, processes=1)


def _read_shards(folder: Path) -> None:
    """Open the set, and read all that is in it."""
    dataset = ShardedDataset(folder)
    try:
        rows = np.arange(len(dataset))
        dataset.read_batch(rows, torch.empty((len(rows), *dataset.image_shape), dtype=torch.uint8))
        dataset.annotations(rows)
    finally:
        dataset.close()


def _make_celeba(folder: Path) -> None:
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{number:06d}.jpg" for number in range(1, 6)]
    for name in names:
        Image.new("RGB", (178, 218)).save(folder / "img_align_celeba" / name)
    rows = [f"{name}  1 -1 " + " ".join(["-1"] * 38) for name in names]
    head = [str(len(names)), " ".join(f"Attribute_{number}" for number in range(40))]
    (folder / "list_attr_celeba.txt").write_text("\n".join([*head, *rows]) + "\n")
    partition = "".join(f"{name} {number % 3}\n" for number, name in enumerate(names))
    (folder / "list_eval_partition.txt").write_text(partition)


def _make_array(folder: Path) -> None:
    np.savez_compressed(folder / "images.npz", np.zeros((5, 4, 4, 3), np.uint8), np.arange(5))


def _read_array(folder: Path) -> None:
    source = NumpyArray.open(folder / "images.npz")
    for index in range(min(len(source), 10)):
        source.read(index)


def _make_cifar10(folder: Path) -> None:
    (folder / "cifar-10-batches-py").mkdir()
    batch = pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [3, 7]})
    for name in BATCHES:
        (folder / "cifar-10-batches-py" / name).write_bytes(batch)


def _make_journal(folder: Path) -> None:
    log = journal.Journal(RunFolder(folder))
    for step in (10, 20, 30):
        log.metrics(step, {"loss/D": 1.0, "loss/G": 2.0, "speed/images_per_s": 3.0})
        log.collapse(step, {"collapse/recall": 0.5}, "")
        log.image("samples", step, np.zeros((4, 4, 3), np.uint8))
    journal.add_status(folder, "training", is_training=True)


def _read_journal(folder: Path) -> None:
    journal.Journal(RunFolder(folder))
    journal.history(folder, "loss/D")
    journal.is_training(folder)
    results.images_seen(folder)


def _make_checkpoint(folder: Path) -> None:
    config = tiny_config(folder)
    state = TrainState(config, (16, 16, 3), torch.device("cpu"))
    write_checkpoint(state.content(), config, folder / "checkpoint_0000000010")


def _read_checkpoint(folder: Path) -> None:
    verify_checkpoint(folder / "checkpoint_0000000010")
    read_state(folder / "checkpoint_0000000010")


def _read_tensors(folder: Path) -> None:
    """Read the tensor file of a logged model, which has no digest."""
    checkpoint = folder / "checkpoint_0000000010"
    (checkpoint / "digests.json").unlink(missing_ok=True)
    read_state(checkpoint)


def _make_config(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_dict(tiny_config(folder)), indent=2))


def _make_result(folder: Path) -> None:
    _make_journal(folder)
    results.record(folder, "finished")


def _make_plan(folder: Path) -> None:
    from ganray.sweeps.axes import Axis, Level

    levels = tuple(Level(str(size), {"latent.size": size}) for size in (1, 10))
    design.make_plan("sweep", [Axis("latent.size", levels)], seeds=2).save(folder)


TARGETS: Mapping[str, Target] = {
    "shard header": Target("shard-00000.h5", _make_shards, _read_shards),
    "manifest": Target("manifest.json", _make_shards, _read_shards),
    "attributes": Target("list_attr_celeba.txt", _make_celeba, CelebA.open),
    "partition": Target("list_eval_partition.txt", _make_celeba, CelebA.open),
    "array": Target("images.npz", _make_array, _read_array),
    "cifar10": Target("cifar-10-batches-py/test_batch", _make_cifar10, CIFAR10.open),
    "journal": Target("journal.jsonl", _make_journal, _read_journal),
    "config": Target("config.json", _make_config, read_config),
    "result": Target("result.json", _make_result, results.read),
    "plan": Target("plan.json", _make_plan, design.load_plan),
    **{
        f"checkpoint {name}": Target(f"checkpoint_0000000010/{name}", _make_checkpoint, read)
        for name, read in (
            ("config.json", _read_checkpoint),
            ("digests.json", _read_checkpoint),
            ("state.pt", _read_tensors),
        )
    },
}


class Subject:
    """A target's good files in a folder, of which one is spoilt again and again."""

    def __init__(self, target: Target, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._target, self._folder = target, folder
        target.make(folder)
        self._data = (folder / target.file).read_bytes()

    def read(self, seed: int) -> bool:
        """Read the file as spoilt by a seed; return whether the reader accepted it."""
        data = spoil(self._data, random.Random(seed))
        (self._folder / self._target.file).write_bytes(data)
        try:
            self._target.read(self._folder)
        except UserError:
            return False
        return True
