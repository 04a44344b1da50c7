"""How much memory this process could still use.

In: the kernel's files; out: bytes.  What to do with them is decided in cost/memory.py.
"""

from __future__ import annotations

import os
from pathlib import Path

from penstock.engine.cpu.cgroup import groups


def free_memory_bytes(root: Path = Path("/")) -> int:
    """The least of what the machine has available and what is left under each of this process's cgroup limits.

    ``root`` is the file system's, for tests.
    """
    rooms = [_available(root)]
    for group in groups(root):
        rooms += _room(group / "memory.max", group / "memory.current", group / "memory.stat")
    for group in groups(root, "memory"):
        rooms += _room(group / "memory.limit_in_bytes", group / "memory.usage_in_bytes", group / "memory.stat")
    return max(0, min(rooms))


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


def _room(limit: Path, usage: Path, stat: Path) -> list[int]:
    """Limit less usage, where file cache that nobody reads counts as free; empty when there is no limit."""
    try:
        room = int(limit.read_text()) - int(usage.read_text())
        counters = dict(line.split() for line in stat.read_text().splitlines())
    except (OSError, ValueError):
        return []
    return [room + int(counters.get("inactive_file", 0))]
