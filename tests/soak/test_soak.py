"""A minute of faults in quick succession; `python -m tests.soak` has two hours of them, on Ray."""

import logging
from pathlib import Path

import pytest

from tests.soak.supervisor import soak


@pytest.mark.ray  # not for the inner loop: it takes minutes
@pytest.mark.timeout(900)
def test_faults_lose_nothing(tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    assert "weights equal bit for bit" in soak(tmp_path, 1, "torch", seed=1, longest_pause_s=3)
