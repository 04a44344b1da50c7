"""How much memory this process could still use.

In: the kernel's files; out: bytes.  What to do with them is decided in cost/memory.py.
"""

from __future__ import annotations

import os
from pathlib import Path


def free_memory_bytes(root: Path = Path("/")) -> int:
    """The least of what the machine has available and what is left under each of this process's cgroup limits.

    ``root`` is the file system's, for tests.
    """
    return max(0, min([_available(root), *_cgroup_v2(root), *_cgroup_v1(root)]))


def _available(root: Path) -> int:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    except OSError:
        pass
    # No Linux: half of what is built in, since nothing portable tells what others use.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _cgroup_v2(root: Path) -> list[int]:
    """Room under memory.max of the process's group and of every group above it."""
    base = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    rooms = []
    for line in lines:
        if line.startswith("0::"):
            group = base / line[3:].lstrip("/")
            for folder in [group, *group.parents]:
                rooms.extend(_room(folder / "memory.max", folder / "memory.current", folder / "memory.stat"))
                if folder == base:
                    break
    return rooms


def _cgroup_v1(root: Path) -> list[int]:
    folder = root / "sys/fs/cgroup/memory"
    return _room(folder / "memory.limit_in_bytes", folder / "memory.usage_in_bytes", folder / "memory.stat")


def _room(limit: Path, usage: Path, stat: Path) -> list[int]:
    """Limit less usage, where file cache that nobody reads counts as free; empty when there is no limit."""
    try:
        room = int(limit.read_text()) - int(usage.read_text())
        counters = dict(line.split() for line in stat.read_text().splitlines())
    except (OSError, ValueError):
        return []
    return [room + int(counters.get("inactive_file", 0))]
