"""The GPU benchmark runs on the CPU, so that the first run on a lent GPU does not fail early."""

from pathlib import Path

import pytest

from tests.benchmarks import gpu


@pytest.mark.skipif(gpu.HAS_GPU, reason="for the CPU")
def test_rows_of_steps_and_parity(tmp_path: Path):
    rows = list(gpu.steps(tmp_path, 0.1))
    assert [row["case"] for row in rows] == ["cpu32", "mnist"]
    for row in rows:
        assert row["kernels"] > 100
        assert all(row[f"{name}_ms"] > 0 for name in ("ganray", "lean", "example"))
    assert list(gpu.parity(tmp_path, 0.1)) == [
        {"twice_bit_for_bit": True, "resumed_bit_for_bit": True}
    ]
