"""Checkpoints in the run folder: torch and Ray resume each other's runs. Ray is not started."""

import os
from dataclasses import replace

import pytest

from ganray.distributed import local_device
from ganray.evaluation.reference import NO_ASSETS
from ganray.integrations import ray_train
from ganray.training import checkpoints
from ganray.training.launch import launch, run_worker
from ganray.training.state import read_state, save_content
from tests.conftest import tiny_config
from tests.training.test_resume import Killed, states_equal


@pytest.fixture
def reports(monkeypatch):
    """Make this process a Ray worker; return the metrics that are reported to Ray."""
    reports: list = []
    monkeypatch.setattr(ray_train, "get_device", local_device)
    monkeypatch.setattr(ray_train.ray.train, "report", reports.append)
    return reports


def train_under_torch(config, images):
    launch(config, str(images))


def train_under_ray(config, images):
    config.run_folder().mkdir(parents=True, exist_ok=True)
    context = ray_train.RayContext(config)
    run_worker(config, str(images), NO_ASSETS, context)


def checkpoint_times(config):
    """Return the time at which each checkpoint was written, by step."""
    folders = sorted(config.run_folder().glob("checkpoint_*"))
    return {int(p.name.split("_")[1]): (p / "state.pt").stat().st_mtime_ns for p in folders}


@pytest.mark.parametrize("first", [train_under_torch, train_under_ray])
def test_launchers_resume_each_others_runs(squares, tmp_path, reports, first):
    launchers = [train_under_torch, train_under_ray] * 2
    launchers = launchers if first is train_under_torch else launchers[1:]
    before: dict[int, int] = {}
    for number, train in enumerate(launchers, start=1):
        config = tiny_config(tmp_path, kimg=0.24 * number, keep_checkpoints=3)  # 20 steps more
        train(config, squares)
        times = checkpoint_times(config)
        assert [*times] == list(range(10, 10 + 20 * number, 10))[-min(3, 2 * number) :]
        assert all(times[step] == before[step] for step in times if step in before)
        before = times
    uninterrupted = launch(tiny_config(tmp_path / "whole", kimg=config.train.kimg), str(squares))
    resumed = config.run_folder() / uninterrupted.name
    assert states_equal(read_state(resumed), read_state(uninterrupted))
    kimg = config.train.kimg
    assert [metrics["kimg"] for metrics in reports][-2:] == [kimg - 0.12, kimg]


@pytest.mark.parametrize("resume", [train_under_torch, train_under_ray])
def test_an_incomplete_checkpoint_is_not_used(squares, tmp_path, reports, monkeypatch, resume):
    config = tiny_config(tmp_path)
    train_under_ray(config, squares)

    def save_half(content, config, target):
        save_content(content, config, target)
        (target / "state.pt").write_bytes((target / "state.pt").read_bytes()[:1000])
        raise Killed

    longer = replace(config, train=replace(config.train, kimg=0.36))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_content", save_half)
        with pytest.raises(Killed):
            train_under_ray(longer, squares)
    resume(longer, squares)
    assert sorted(checkpoint_times(longer)) == [10, 20, 30]
    uninterrupted = launch(tiny_config(tmp_path / "whole", kimg=0.36), str(squares))
    resumed = config.run_folder() / uninterrupted.name
    assert states_equal(read_state(resumed), read_state(uninterrupted))


def test_a_node_without_the_run_folder_is_reported_before_training(tmp_path, reports):
    with pytest.raises(ValueError, match=r"home: .* does not exist on node .*; put --home on"):
        ray_train.RayContext(tiny_config(tmp_path / "elsewhere"))


@pytest.mark.parametrize("use_gpu", [True, False])
def test_gpu_workers_have_nccls_hang_detector_which_acts_before_the_watchdog(
    tmp_path, monkeypatch, use_gpu
):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    ray_train._set_timeouts(tiny_config(tmp_path, hang_timeout=120))
    scaling = ray_train.ray.train.ScalingConfig(num_workers=2, use_gpu=use_gpu)
    callbacks = ray_train._Trainer(print, scaling_config=scaling)._create_default_callbacks()
    detectors = [c for c in callbacks if type(c).__name__ == "NCCLRASCallback"]
    assert len(detectors) == use_gpu
    assert all(detector._confirm_duration_s == 90 for detector in detectors)
