"""What the operating system says a process has used, with everything it started: CPU time and memory.

In: a process id; out: seconds and bytes.  Nothing is asked of the process itself, so any program can be measured.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil


class Account:
    """Of one process and its descendants.  Raises ``psutil.NoSuchProcess`` for one that has ended."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)

    def cpu_s(self) -> float:
        """User and system time so far.  Of processes that ended in between nothing is known."""
        return sum(map(_cpu_s, self._tree()))

    def memory_bytes(self) -> int:
        """What is resident; pages that several of them share count once for each."""
        total = 0
        for process in self._tree():
            with suppress(psutil.NoSuchProcess):
                total += int(process.memory_info().rss)
        return total

    def _tree(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]


def _cpu_s(process: psutil.Process) -> float:
    """The scheduler counts nanoseconds per thread, the classic account ticks of 10 ms, also of threads that ended."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        times = process.cpu_times()
        return max(_scheduled_s(process.pid), float(times.user + times.system))
    return 0.0


def _scheduled_s(pid: int) -> float:
    total = 0
    with suppress(OSError):  # not Linux, or it has just ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError, ValueError):
                total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9
