"""One event stream to one client: head, frames, keep-alives in silences, a true end.

In: frames as bytes; out: the same through the request's pipe.  A stream that fails is told so in-band and then left
incomplete: the server closes the connection inside the chunked body, which no client can take for a clean end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Protocol

from penstock.asgi.respond import Header
from penstock.wire import sse
from penstock.wire.errors import Problem

_HOLD_UP_TO_BYTES = 65_536


class Writer(Protocol):
    """A response in chunks.  An awaitable: nothing more should be written before it is done."""

    def begin(self, headers: Sequence[Header], frames: bytes) -> Awaitable[None] | None: ...
    def write(self, frames: bytes) -> Awaitable[None] | None: ...
    async def end(self, frames: bytes) -> None: ...


class EventStream:
    """Holds the first frames back until ``begin``, so that an early problem still gets its own status."""

    def __init__(self, pipe: Writer, headers: list[Header], keep_alive_s: float) -> None:
        self._pipe = pipe
        self._headers = headers
        self._keep_alive_s = keep_alive_s
        self._loop = asyncio.get_running_loop()
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._full = False
        self._last_sent = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.begun = False

    @property
    def holds_enough(self) -> bool:
        return self._held_bytes >= _HOLD_UP_TO_BYTES

    def begin(self) -> Awaitable[None] | None:
        """Send the head and what was held; an awaitable as of :meth:`write`."""
        self.begun = True
        self._arm(self._keep_alive_s)
        held = b"".join(self._held)
        self._held.clear()
        self._last_sent = self._loop.time()
        wait = self._pipe.begin(self._headers, held)
        return None if wait is None else self._until(wait)

    def write(self, frames: bytes) -> Awaitable[None] | None:
        """Send frames, or keep them for ``begin``.

        An awaitable: the client reads slowly, and nothing more should come before it is done, which is how
        back-pressure reaches an engine.
        """
        if not frames:
            return None
        if not self.begun:
            self._held.append(frames)
            self._held_bytes += len(frames)
            return None
        self._last_sent = self._loop.time()
        wait = self._pipe.write(frames)
        return None if wait is None else self._until(wait)

    async def end(self, frames: bytes) -> None:
        """The last frames and a clean end."""
        self.stop()
        await self._pipe.end(frames)

    async def fail(self, problem: Problem) -> None:
        """The in-band error, and no end."""
        self.stop()
        wait = self._pipe.write(sse.error_frame(problem))
        if wait is not None:
            await wait

    def stop(self) -> None:
        """No more keep-alives."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _until(self, wait: Awaitable[None]) -> None:
        self._full = True
        await wait
        self._full = False

    def _arm(self, delay_s: float) -> None:
        self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        # One lazy timer per stream costs nothing per chunk; it looks back when it fires.
        silence_s = self._loop.time() - self._last_sent
        if silence_s < self._keep_alive_s:
            self._arm(self._keep_alive_s - silence_s)
            return
        if not self._full:
            self._last_sent = self._loop.time()
            self._pipe.write(sse.KEEP_ALIVE)
        self._arm(self._keep_alive_s)
