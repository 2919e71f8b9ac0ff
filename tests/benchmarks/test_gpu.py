"""The GPU benchmark runs on the CPU, so that the first run on a lent GPU does not fail early."""

from pathlib import Path

import pytest

from tests.benchmarks import gpu


@pytest.mark.skipif(gpu.HAS_GPU, reason="for the CPU")
def test_rows_of_steps_and_parity(tmp_path: Path):
    rows = list(gpu.steps(tmp_path, 0.1))
    assert [row["case"] for row in rows] == ["cpu32", "mnist", "r3"]
    for row in rows:
        assert row["kernels"] > 100
        assert all(row[f"{name}_ms"] > 0 for name in ("ganray", "lean", "example"))
    assert list(gpu.parity(tmp_path, 0.1)) == [
        {"deterministic": value, "twice_bit_for_bit": True, "resumed_bit_for_bit": True}
        for value in (False, True)
    ]


def test_the_kernels_that_take_the_most_time_come_first(tmp_path: Path):
    shares = [row["share"] for row in gpu.kernels(tmp_path, 0.1)]
    assert shares == sorted(shares, reverse=True)
    assert 0.5 < sum(shares) <= 1


def test_a_ring_needs_the_time_of_its_messages_and_of_its_bytes():
    link = gpu.Link("", gpus=4, latency_us=10, gigabytes_per_s=1)
    assert gpu.ring_seconds(link, 0) == pytest.approx(60e-6)
    assert gpu.ring_seconds(link, 1e9) == pytest.approx(1.5 + 60e-6)


def test_the_estimate_falls_with_slower_links_and_rises_with_bf16(tmp_path: Path):
    rows = list(gpu.scaling(tmp_path, 0.1))
    values = [row["estimated_efficiency"] for row in rows]
    fp32, bf16 = values[: len(gpu.LINKS)], values[len(gpu.LINKS) :]
    assert fp32 == sorted(fp32, reverse=True)
    assert all(0 < a < b <= 1 for a, b in zip(fp32, bf16, strict=True))
