"""A request's connection in plain calls, where the ASGI way is a coroutine and a write for each part of an answer.

In: answers and frames; out: bytes on the wire, a head in one write with what follows it at once.  Its server offers one
per request, in the request's scope; only what is refused before it was read is answered the ASGI way.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Sequence

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from penstock.asgi.respond import Header

PIPE = "penstock.pipe"
"""Its name among the extensions of a request's scope."""

_FORBIDDEN = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
"""In a header's value: what ends its line would begin another."""
_CHUNKED = (b"transfer-encoding", b"chunked")
_CLOSE = (b"connection", b"close")


class Pipe:
    """Of one request.  A client that has left takes everything, and nothing is written.

    What gives an awaitable has been written: nothing more should be before it is done, since the client reads slowly.
    """

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    def body(self, most: int) -> bytes | None:
        """The request's, once, where all of it is there, within ``most`` bytes; ``None``: ask for its parts."""
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected or len(cycle.body) > most:
            return None
        cycle.flow.resume_reading()  # unless somebody reads, nobody hears that the client has left
        body = bytes(cycle.body)
        cycle.body = bytearray()
        return body

    async def answer(self, headers: Sequence[Header], body: bytes, status: int = 200) -> None:
        """A whole response."""
        cycle = self._cycle
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()  # of the answer before it, which a client has not read that sends many at once
        if cycle.disconnected:
            return
        head = self._head(status, headers, (b"content-length", b"%d" % len(body)))
        cycle.transport.write(head if cycle.scope["method"] == "HEAD" else head + body)
        self._complete()

    def begin(self, headers: Sequence[Header], frames: bytes) -> Awaitable[None] | None:
        """The head of a stream, and its first frames."""
        if self._cycle.disconnected:
            return None
        self._cycle.chunked_encoding = True  # for whoever goes on the ASGI way
        return self._write(self._head(200, headers, _CHUNKED) + (_chunk(frames) if frames else b""))

    def write(self, frames: bytes) -> Awaitable[None] | None:
        """Some of a stream's frames, at least one."""
        return None if self._cycle.disconnected else self._write(_chunk(frames))

    async def end(self, frames: bytes) -> None:
        """The last frames of a stream, and its clean end."""
        cycle = self._cycle
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if not cycle.disconnected:
            cycle.transport.write(_chunk(frames) + b"0\r\n\r\n")
            self._complete()

    def _write(self, data: bytes) -> Awaitable[None] | None:
        cycle = self._cycle
        cycle.transport.write(data)
        return cycle.flow.drain() if cycle.flow.write_paused else None

    def _head(self, status: int, headers: Sequence[Header], framing: Header) -> bytes:
        cycle = self._cycle
        cycle.response_started, cycle.waiting_for_100_continue = True, False
        said = [*cycle.default_headers, *headers, framing]
        if _FORBIDDEN.search(b"".join([value for _, value in said])):
            raise RuntimeError("a header's value would end its line")
        if _CLOSE in said:
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            said.append(_CLOSE)
        return STATUS_LINE[status] + b"".join([b"%b: %b\r\n" % header for header in said]) + b"\r\n"

    def _complete(self) -> None:
        cycle = self._cycle
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()


def _chunk(frames: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(frames), frames)
