"""One event stream to one client: head, frames, keep-alives in silences, a true end.

In: frames as bytes; out: ASGI messages.  A stream that fails is told so in-band and then left incomplete: the server
closes the connection inside the chunked body, which no client can take for a clean end.
"""

from __future__ import annotations

import asyncio

from penstock.asgi.respond import Header
from penstock.asgi.server import Send
from penstock.wire import sse
from penstock.wire.errors import Problem

_HOLD_UP_TO_BYTES = 65_536


class EventStream:
    """Holds the first frames back until ``begin``, so that an early problem still gets its own status.

    ``send`` waits while the client does not read: back-pressure reaches the engine through it.
    """

    def __init__(self, send: Send, headers: list[Header], keep_alive_s: float) -> None:
        self._send = send
        self._headers = headers
        self._keep_alive_s = keep_alive_s
        self._loop = asyncio.get_running_loop()
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._sending = False
        self._last_sent = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._keep_alive_task: asyncio.Task[None] | None = None
        self.begun = False

    @property
    def holds_enough(self) -> bool:
        return self._held_bytes >= _HOLD_UP_TO_BYTES

    def hold(self, frames: bytes) -> None:
        """Keep frames for ``begin``."""
        self._held.append(frames)
        self._held_bytes += len(frames)

    async def begin(self) -> None:
        """Send the head and what was held."""
        self.begun = True
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await self.send(b"".join(self._held))
        self._held.clear()
        self._arm(self._keep_alive_s)

    async def send(self, frames: bytes) -> None:
        if not frames:
            return
        self._last_sent = self._loop.time()
        self._sending = True
        await self._send({"type": "http.response.body", "body": frames, "more_body": True})
        self._sending = False

    async def end(self, frames: bytes) -> None:
        """The last frames and a clean end."""
        self.stop()
        await self._send({"type": "http.response.body", "body": frames, "more_body": False})

    async def fail(self, problem: Problem) -> None:
        """The in-band error, and no end."""
        self.stop()
        await self._send({"type": "http.response.body", "body": sse.error_frame(problem), "more_body": True})

    def stop(self) -> None:
        """No more keep-alives."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._keep_alive_task is not None:
            self._keep_alive_task.cancel()

    def _arm(self, delay_s: float) -> None:
        self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        # One lazy timer per stream costs nothing per chunk; it looks back when it fires.
        silence_s = self._loop.time() - self._last_sent
        if silence_s < self._keep_alive_s:
            self._arm(self._keep_alive_s - silence_s)
            return
        if not self._sending:
            self._keep_alive_task = asyncio.ensure_future(self.send(sse.KEEP_ALIVE))
        self._arm(self._keep_alive_s)
