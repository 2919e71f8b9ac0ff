"""Record of some steps by torch's profiler."""

import gzip
import json
from dataclasses import replace

import pytest
import torch

from ganray.training.launch import launch
from ganray.training.profiling import profile_files, profile_steps
from ganray.training.run_folder import RunFolder
from tests.conftest import tiny_config


@pytest.mark.parametrize(("asked", "recorded"), [(3, 3), (100, 8)])
def test_the_steps_after_the_first_twelve_are_recorded(squares, tmp_path, capfd, asked, recorded):
    """A run of 20 steps has 8 after the first 12; its end is recorded like one more."""
    config = replace(tiny_config(tmp_path), profile=asked)
    launch(config, str(squares))
    assert "Profiler" not in capfd.readouterr().err
    summary, trace = profile_files(config.run_folder())
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = {e["name"] for e in events if e["name"].startswith("ProfilerStep#")}
    assert steps - {"ProfilerStep#20"} == {f"ProfilerStep#{12 + i}" for i in range(recorded)}
    assert "aten::convolution_backward" in summary.read_text()


def test_a_run_is_not_profiled_by_default(tmp_path):
    config = tiny_config(tmp_path)
    folder = RunFolder(config.run_folder())
    with profile_steps(config.profile, torch.device("cpu"), folder) as end_step:
        end_step()
    assert profile_files(config.run_folder()) == []
