"""The last step of a stream: frames to the client's socket in one plain call, where the ASGI way is a coroutine each.

In: frames of a response that has begun; out: chunks on the wire.  Its server offers one per request.
"""

from __future__ import annotations

from collections.abc import Awaitable

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

PIPE = "penstock.pipe"
"""Its name among the extensions of a request's scope."""


class Pipe:
    """Of one response, whose head and end go the ASGI way."""

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    def write(self, frames: bytes) -> Awaitable[None] | None:
        """An awaitable: the client reads slowly, and nothing more should be written before it is done."""
        cycle = self._cycle
        if not cycle.disconnected:
            cycle.transport.write(b"%x\r\n%b\r\n" % (len(frames), frames))
        return cycle.flow.drain() if cycle.flow.write_paused else None
