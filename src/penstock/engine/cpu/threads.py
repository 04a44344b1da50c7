"""How many threads torch computes with.

In: a wish or none; out: the number set.  Called once, before the first tensor operation of an engine process.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch


def use_threads(wanted: int | None) -> int:
    """Set torch's threads to ``wanted``, else to the cores this process may use; returns the number."""
    num_threads = wanted if wanted is not None else available_cores()
    torch.set_num_threads(num_threads)
    return num_threads


def available_cores(root: Path = Path("/")) -> int:
    """Physical cores within this process's affinity, and no more than its cgroup's quota.

    Matrix products and memory reads saturate a core with one thread: a hyper-thread's twin only adds to the barrier
    that ends each operation.  A quota below the number of cores would stop threads inside such a barrier while the
    others spin, which costs far more than the thread gains.  ``root`` is the file system's, for tests.
    """
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_siblings(root, cpu) for cpu in affinity}
    return max(1, math.floor(min(len(cores), _quota(root))))


def _siblings(root: Path, cpu: int) -> str:
    """Hyper-threads of the same core have the same list; where the kernel does not tell, each is a core."""
    try:
        return (root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota(root: Path) -> float:
    """CPUs per period that cgroup v2 or v1 grants; infinite where there is no limit to read."""
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
        period_us = int((root / "sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 else math.inf
    except (OSError, ValueError):
        return math.inf
