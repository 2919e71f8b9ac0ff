"""Joining a process group; training in one is tested in test_parity.py."""

import pytest
import torch
import torch.distributed as dist

from ganray.distributed import torchrun_group


@pytest.fixture
def calls(monkeypatch):
    """Calls to torch of the second of two torchrun processes on a machine with two GPUs."""
    calls: list[tuple[str, str]] = []
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: calls.append(("gpu", str(gpu))))
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend, **_: calls.append(("group", backend))
    )
    monkeypatch.setattr(dist, "new_group", lambda backend, **_: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append(("group", "left")))
    return calls


def test_each_rank_selects_its_gpu_before_any_collective(calls):
    with torchrun_group(timeout_s=60):
        calls.append(("first", "collective"))
    assert calls == [
        ("gpu", "cuda:1"),
        ("group", "cpu:gloo,cuda:nccl"),  # objects and barriers use gloo
        ("first", "collective"),
        ("group", "left"),
    ]
