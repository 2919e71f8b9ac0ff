from pathlib import Path

import psutil
import pytest

from ganray.data.mapping import free_bytes

GIB = 2**30


def machine(root: Path, groups: str, limits: dict[str, str]) -> Path:
    files = {"proc/self/cgroup": groups} | {f"sys/fs/cgroup/{k}": v for k, v in limits.items()}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.fixture(autouse=True)
def much_memory(monkeypatch: pytest.MonkeyPatch):
    class Memory:
        available = 64 * GIB

    monkeypatch.setattr(psutil, "virtual_memory", Memory)


@pytest.mark.parametrize(
    ("groups", "limits", "free"),
    [
        ("0::/", {"memory.max": str(8 * GIB)}, 8),
        ("0::/", {"memory.max": "max"}, 64),
        ("0::/", {}, 64),
        ("0::/job/step", {"job/memory.max": str(9 * GIB), "job/step/memory.max": "max"}, 9),
        ("0::/unseen", {"memory.max": str(7 * GIB), "other/memory.max": "1"}, 7),
        ("4:memory:/a\n0::/", {"memory/a/memory.limit_in_bytes": str(6 * GIB)}, 6),
        ("4:memory:/unseen", {"memory/memory.limit_in_bytes": str(5 * GIB)}, 5),
        ("4:memory:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, 64),
        ("3:cpu:/a", {"a/memory.max": "1", "memory/a/memory.limit_in_bytes": "1"}, 64),
    ],
)
def test_a_container_has_what_its_cgroup_allows(tmp_path: Path, groups, limits, free):
    assert free_bytes(machine(tmp_path, groups, limits)) == free * GIB


def test_a_machine_without_cgroups_has_what_it_has(tmp_path: Path):
    assert free_bytes(tmp_path) == 64 * GIB
