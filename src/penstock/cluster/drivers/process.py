"""A child process: how it is spawned, and how it gets its settings.

In: a command line, a log, later one line of settings; out: the process.  Loads no HTTP client, so that a child may be
there before the driver that watches it is.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_LOG_KEEP_BYTES = 4 * 1024 * 1024


def open_log(path: Path) -> BinaryIO:
    """Positioned at its end; a long one is put aside first."""
    if path.exists() and path.stat().st_size > _LOG_KEEP_BYTES:
        path.replace(path.with_suffix(".log.1"))
    output = path.open("ab")
    output.seek(0, os.SEEK_END)
    return output


def spawn(argv: Sequence[str], output: BinaryIO, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """It leads a process group and waits for the first line of its standard input.  Raises ``OSError``."""
    return subprocess.Popen(
        list(argv),
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        pass_fds=pass_fds,
        process_group=0,
        # A crash in native code then leaves the Python stack in the log.
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"},
    )


def hand_over(process: subprocess.Popen[bytes], settings: bytes) -> None:
    """The line that it waits for."""
    assert process.stdin is not None and b"\n" not in settings
    try:
        process.stdin.write(settings + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it ended already; whoever observes it tells how


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """With everything that it started, if it still runs."""
    if process.poll() is None:
        # It leads its group until it is waited for, so the group id cannot be anybody else's.
        os.killpg(process.pid, signal.SIGKILL)


def discard(process: subprocess.Popen[bytes]) -> None:
    """End a process that nobody has a use for; one that has ended is left as it is."""
    kill_group(process)
    process.wait()
    hang_up(process)


def hang_up(process: subprocess.Popen[bytes]) -> None:
    """Close its standard input, which tells a child that still runs that it is on its own."""
    if process.stdin is not None:
        with suppress(BrokenPipeError):  # what it never read is not missed
            process.stdin.close()
