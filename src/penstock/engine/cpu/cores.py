"""Which cores this process may compute on.

In: its affinity, the kernel's topology, its cgroup's quota; out: numbers.  Loads no torch: the controller asks, too.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from penstock.engine.cpu.cgroup import cpu_quota


def usable_cpus() -> set[int]:
    """The hardware threads that this process may run on, by number."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def available_cores(root: Path = Path("/")) -> int:
    """Physical cores within this process's affinity, and no more than its cgroup's quota; at least one.

    Matrix products and memory reads saturate a core with one thread: a hyper-thread's twin only adds to the barrier
    that ends each operation.  A quota below the number of cores would stop threads inside such a barrier while the
    others spin, which costs far more than the thread gains.  ``root`` is the file system's, for tests.
    """
    cores = {_siblings(root, cpu) for cpu in usable_cpus()}
    quota = cpu_quota(root)
    return max(1, len(cores) if quota is None else math.floor(min(len(cores), quota)))


def _siblings(root: Path, cpu: int) -> str:
    """Hyper-threads of the same core have the same list; where the kernel does not tell, each is a core."""
    try:
        return (root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)
