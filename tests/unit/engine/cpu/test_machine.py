"""What the machine offers: threads and free memory, read from a file system made for the test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from penstock.engine.cpu.cgroup import cpu_quota
from penstock.engine.cpu.cores import available_cores
from penstock.engine.cpu.memory import free_memory_bytes
from penstock.engine.cpu.spinning import PAUSES, bound_spinning
from penstock.engine.cpu.threads import use_threads


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\n"}


def test_without_limits_the_available_memory_is_free(tmp_path: Path) -> None:
    """Outside any cgroup limit the kernel's MemAvailable counts."""
    files = MEMINFO | {"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "5\n"}
    assert free_memory_bytes(_write(tmp_path, files)) == 8_000_000 * 1024


def test_a_limit_of_any_group_above_counts(tmp_path: Path) -> None:
    """The tightest limit on the way up decides, and file cache that nobody reads does not count as used."""
    group = "sys/fs/cgroup/machine.slice/box"
    files = MEMINFO | {
        "proc/self/cgroup": "0::/machine.slice/box\n",
        f"{group}/memory.max": "max\n",
        f"{group}/memory.current": "100\n",
        f"{group}/memory.stat": "inactive_file 0\n",
        "sys/fs/cgroup/machine.slice/memory.max": "1000000\n",
        "sys/fs/cgroup/machine.slice/memory.current": "700000\n",
        "sys/fs/cgroup/machine.slice/memory.stat": "anon 1\ninactive_file 50000\n",
    }
    assert free_memory_bytes(_write(tmp_path, files)) == 350_000


def test_a_group_over_its_limit_has_nothing_free(tmp_path: Path) -> None:
    """Free memory is never negative."""
    files = MEMINFO | {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "2000\n",
        "sys/fs/cgroup/memory/memory.stat": "inactive_file 0\n",
    }
    assert free_memory_bytes(_write(tmp_path, files)) == 0


def test_hyper_threads_of_one_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four hardware threads on two cores give two compute threads."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    root = _write(tmp_path, {topology.format(cpu): f"{cpu % 2},{cpu % 2 + 2}\n" for cpu in range(4)})
    assert available_cores(root) == 2


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, 4),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({}, 4),
    ],
)
def test_a_quota_bounds_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    """Whole CPUs of the cgroup's quota, at least one, and all cores where nothing limits them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    assert available_cores(_write(tmp_path, files)) == cores


def test_a_stated_number_of_threads_is_what_torch_uses() -> None:
    """An explicit number wins over what the machine offers."""
    before = torch.get_num_threads()
    try:
        assert use_threads(3) == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_quota_of_any_group_above_counts(tmp_path: Path) -> None:
    """A pod's bound holds for its containers, whatever theirs is."""
    files = {
        "proc/self/cgroup": "0::/pod/container\n",
        "sys/fs/cgroup/pod/cpu.max": "250000 100000\n",
        "sys/fs/cgroup/pod/container/cpu.max": "max 100000\n",
    }
    assert cpu_quota(_write(tmp_path, files)) == 2.5


def test_version_1_has_a_tree_per_controller(tmp_path: Path) -> None:
    """The older interface is read in the tree of its controller; -1 is no bound."""
    files = {
        "proc/self/cgroup": "4:memory:/box\n1:cpu,cpuacct:/box\n0::/\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "150000\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "1000\n",
        "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "400\n",
        "sys/fs/cgroup/memory/box/memory.stat": "inactive_file 0\n",
    }
    assert cpu_quota(_write(tmp_path, files)) == 1.5
    assert free_memory_bytes(tmp_path) == 600


@pytest.mark.parametrize("membership", ["", "0::/\n", "0::/../elsewhere\n", "4:memory:/gone\n"])
def test_no_bound_is_none(tmp_path: Path, membership: str) -> None:
    """No groups, unbounded ones, or ones that this process cannot see."""
    assert cpu_quota(_write(tmp_path, {"proc/self/cgroup": membership})) is None


def test_a_system_without_groups_has_no_quota(tmp_path: Path) -> None:
    """macOS has none of the files."""
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, str(PAUSES)), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
    ids=["nothing said", "a count", "a policy"],
)
def test_threads_spin_for_a_bounded_time_unless_the_user_says_how_long(
    given: dict[str, str], spins: str | None
) -> None:
    """What stands in the environment already outranks us."""
    environment = dict(given)
    bound_spinning(environment)
    assert environment.get("GOMP_SPINCOUNT") == spins
