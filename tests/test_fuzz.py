"""Every reader of files survives spoilt ones: it returns, or raises UserError. See fuzzing.py."""

import logging
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzzing import TARGETS, Subject


@pytest.mark.parametrize("name", TARGETS)
def test_a_spoilt_file_is_read_or_rejected(name: str, tmp_path: Path, caplog):
    caplog.set_level(logging.CRITICAL)  # damaged lines are named, thousands of them
    subject = Subject(TARGETS[name], tmp_path / "files")

    @settings(
        max_examples=500,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**32))
    def read(seed: int) -> None:
        subject.read(seed)

    read()
