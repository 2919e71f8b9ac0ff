"""Checkpoints are the run folder's: torch and Ray go on from each other's, and from whole ones."""

import shutil
from dataclasses import replace

import pytest

from ganray.distributed import local_device
from ganray.evaluation.reference import NO_ASSETS
from ganray.integrations import ray_train
from ganray.training.launch import launch, run_worker
from ganray.training.state import read_state
from tests.conftest import tiny_config
from tests.training.test_resume import Killed, states_equal


@pytest.fixture
def reports(monkeypatch):
    """Makes this process a Ray worker; returns what Ray is told."""
    told: list = []
    monkeypatch.setattr(ray_train, "get_device", local_device)
    monkeypatch.setattr(ray_train.ray.train, "report", lambda *said: told.append(said))
    return told


def under_torch(config, images):
    launch(config, str(images))


def under_ray(config, images):
    config.run_folder().mkdir(parents=True, exist_ok=True)
    context = ray_train.RayContext(config.run_folder(), config.train.keep_checkpoints)
    run_worker(config, str(images), NO_ASSETS, context)


def written(config):
    """When each checkpoint was written, by its step."""
    found = sorted(config.run_folder().glob("checkpoint_*"))
    return {int(p.name.split("_")[1]): (p / "state.pt").stat().st_mtime_ns for p in found}


@pytest.mark.parametrize("first", [under_torch, under_ray])
def test_launchers_go_on_from_each_other_and_keep_as_many(squares, tmp_path, reports, first):
    turns = [under_torch, under_ray, under_torch, under_ray]
    turns = turns if first is under_torch else turns[1:]
    before: dict[int, int] = {}
    for number, go_on in enumerate(turns, start=1):
        config = tiny_config(tmp_path, kimg=0.24 * number, keep_checkpoints=3)  # 20 steps more
        go_on(config, squares)
        now = written(config)
        assert sorted(now) == [step for step in (10, 20, 30, 40, 50, 60, 70, 80) if step in now]
        assert list(now)[-1] == 20 * number
        assert len(now) == min(3, 2 * number)
        assert all(now[step] == before[step] for step in now if step in before)
        before = now
    whole = launch(tiny_config(tmp_path / "whole", kimg=config.train.kimg), str(squares))
    together = config.run_folder() / whole.name
    assert states_equal(read_state(together), read_state(whole))
    assert [said["kimg"] for (said,) in reports][-2:] == [
        config.train.kimg - 0.12,
        config.train.kimg,
    ]


@pytest.mark.parametrize("go_on", [under_torch, under_ray])
def test_a_checkpoint_that_was_half_written_is_not_taken(
    squares, tmp_path, reports, monkeypatch, go_on
):
    config = tiny_config(tmp_path)
    under_ray(config, squares)
    copytree = shutil.copytree

    def killed(source, target):
        copytree(source, target)
        (target / "state.pt").write_bytes((target / "state.pt").read_bytes()[:1000])
        raise Killed

    longer = replace(config, train=replace(config.train, kimg=0.36))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", killed)
        with pytest.raises(Killed):
            under_ray(longer, squares)
    go_on(longer, squares)
    assert sorted(written(longer)) == [10, 20, 30]
    whole = launch(tiny_config(tmp_path / "whole", kimg=0.36), str(squares))
    assert states_equal(read_state(config.run_folder() / whole.name), read_state(whole))


def test_a_node_without_the_run_folder_is_told_of_before_it_learns(tmp_path, reports):
    with pytest.raises(ValueError, match=r"home: .* is not seen by node .*; put --home on storage"):
        ray_train.RayContext(tmp_path / "elsewhere", 3)
