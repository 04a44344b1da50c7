"""An event loop whose time jumps: when nothing is ready, the next timer is due now.

In: a coroutine; out: its result, after as many virtual seconds as it took.  ``asyncio.sleep``, timeouts and timers of
the production code run unchanged, in an order that depends on nothing but what they do: no thread, no socket, no wait.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from penstock.sim.clock import VirtualClock

T = TypeVar("T")


class _Jump(selectors.SelectSelector):
    """Waits by moving the clock."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everything waits and nothing will ever happen")
        if timeout > 0:
            self._clock.advance(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """``clock`` is its time.  Raises ``RuntimeError`` where a real loop would wait for ever."""

    def __init__(self, clock: VirtualClock | None = None) -> None:
        self.clock = clock or VirtualClock()
        super().__init__(_Jump(self.clock))

    def time(self) -> float:
        return self.clock.now()


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on virtual time, from 0 seconds on."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class LoopClock:
    """The running loop's time as a :class:`penstock.ports.Clock`."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()
