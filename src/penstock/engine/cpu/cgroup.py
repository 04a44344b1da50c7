"""What this process's control group grants, by version 2 or version 1 of the interface.

In: the kernel's files; out: the groups that bind this process, and its share of the cores.
A bound on any ancestor binds, so whoever reads one looks at the whole chain.  ``root`` is the file system's, for tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def groups(root: Path, controller: str = "") -> Iterator[Path]:
    """This process's group and its ancestors, as far up as they are visible.

    ``controller`` names one of version 1's trees; "" is the one tree of version 2.
    """
    top = root / "sys/fs/cgroup" / controller
    group = top
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            group = top / path.lstrip("/")
    while group != top and top in group.parents:
        yield group
        group = group.parent
    yield top


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of time per second; ``None`` where nothing is bounded or the system has no such groups."""
    quotas = []
    for group in groups(root):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            quotas.append(int(quota) / int(period))
    for group in groups(root, "cpu"):
        quota, period = (_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))
        if quota.isdigit() and period.isdigit():  # -1, which is not a digit, means no bound
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
