"""A terminal that is closed while another program leads its session.

In: what to do then; out: nothing.  The kernel tells the session's leader, and its group once that leader has ended; one
that waits for us first, as ``make`` does, never ends.
Whoever a shell gave a group of its own is left alone: the shell says itself which of its jobs are to hear of it.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress

_POLL_S = 0.5
_TERMINAL = "/dev/tty"


async def at_hang_up(act: Callable[[], None]) -> None:
    """Wait for it, act once, and end; at once where nobody is to be told."""
    terminal = _terminal()
    if terminal is None:
        return
    try:
        watched = select.poll()
        watched.register(terminal, 0)  # a hang-up is told whatever else is asked for
        # Where a system cannot watch a terminal (macOS) it says POLLNVAL, at once and ever again.
        while not any(told & select.POLLHUP for _, told in watched.poll(0)):
            await asyncio.sleep(_POLL_S)
        act()
    finally:
        os.close(terminal)


def _terminal() -> int | None:
    """The controlling one, where its hang-up is ours to hear: neither led by us nor by a shell that gave us a group."""
    leader = os.getsid(0)
    if os.getpid() == leader or os.getpgrp() != leader or signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        return None
    with suppress(OSError):  # there is none
        return os.open(_TERMINAL, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    return None
