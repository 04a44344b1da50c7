"""What this process's control group grants of the cores, by version 2 or version 1 of the interface.

In: the kernel's files; out: a number, or ``None`` where nothing is bounded or the system has no such groups.
A bound on any ancestor binds, so the tightest of the chain counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def cpu_quota(root: Path = ROOT, membership: Path = MEMBERSHIP) -> float | None:
    """Cores' worth of time per second."""
    quotas = []
    for group in _groups(root, membership, ""):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            quotas.append(int(quota) / int(period))
    for group in _groups(root, membership, "cpu"):
        quota, period = (_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))
        if quota.isdigit() and period.isdigit():  # -1, which is not a digit, means no bound
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _groups(root: Path, membership: Path, controller: str) -> Iterator[Path]:
    """This process's group under ``controller`` ("" is version 2) and its ancestors, as far as they are visible."""
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        top = root / controller if controller else root
        group = top / path.lstrip("/")
        while True:
            yield group
            if group == top or top not in group.parents:
                break
            group = group.parent


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
