"""Memory available to this process, within the limits of machine, container and scheduler."""

from pathlib import Path

import psutil


def free_bytes(root: Path = Path("/")) -> int:
    """Return how many bytes are free at most: those of the machine, or all that its cgroup allows.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    return min([psutil.virtual_memory().available, *_limits(root)])


def _limits(root: Path) -> list[int]:
    """Return the limits of this process's cgroup and of those around it, of version 1 or 2."""
    groups, limits = root / "proc/self/cgroup", []
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        top = root / "sys/fs/cgroup" / controllers
        group = top / path.lstrip("/")  # not to be seen from inside of a container, but its top is
        around = [folder for folder in (group, *group.parents) if folder.is_relative_to(top)]
        files = [folder / name for folder in around if (folder / name).exists()]
        limits += [file.read_text().strip() for file in files]
    return [int(limit) for limit in limits if limit.isdecimal()]  # or "max"
