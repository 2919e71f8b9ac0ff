"""Three faults in quick succession; `python -m tests.soak` has two hours of them, on Ray.

tests/integrations/test_ray_train.py has a stopped worker and a terminated driver.
"""

import logging
from pathlib import Path

import pytest

from tests.soak.supervisor import soak

FAULTS = ["fill_disk", "kill_worker", "spoil_checkpoint"]


@pytest.mark.ray  # not for the inner loop: it takes minutes
@pytest.mark.timeout(900)
def test_faults_lose_nothing(tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    report = soak(tmp_path, 0, "torch", names=FAULTS, longest_pause_s=3)
    assert "faults: 3 (" in report
    assert "weights equal bit for bit" in report
