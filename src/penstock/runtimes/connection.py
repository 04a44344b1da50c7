"""One HTTP/1.1 connection to an engine: a request out, a response in, then the next request.

In: a request's bytes; out: the response's status, and the parts of its body, read or handed over as they come.
httptools parses.
Bounded: what nobody reads stays in the socket, and a head, a trailer or a chunk's extension has a largest size.
What is no HTTP, or comes unasked, breaks the connection: it carries no other exchange.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httptools

_MAX_HEAD_BYTES = 64 * 1024
_MAX_UNREAD_BYTES = 256 * 1024
_END_TIMEOUT_S = 0.1
"""How long a response whose last event is known may take to its last byte before its connection is given up."""


class BrokenConnectionError(ConnectionError):
    """It ended before its response did, or what came was none."""


class Connection(asyncio.Protocol):
    """``freed(connection)`` is called when it can take another request, ``lost(connection)`` when it never will."""

    def __init__(self, freed: Callable[[Connection], None], lost: Callable[[Connection], None]) -> None:
        self.status = 0
        self.free_since = 0.0
        self._freed = freed
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._complete = True
        self._reusable = False
        self._broken = False
        self._parts: list[bytes] = []
        self._unread_bytes = 0
        self._paused = False
        self._head_bytes = 0
        self._progressed = False
        self._waiter: asyncio.Future[bool] | None = None
        self._take: Callable[[bytes], bool] | None = None
        self._release_timer: asyncio.TimerHandle | None = None

    @property
    def alive(self) -> bool:
        """It has not ended, as far as is known."""
        return not (self._broken or self._transport.is_closing())

    def send(self, request: bytes) -> None:
        """Begin an exchange."""
        assert self._complete, "one exchange at a time"
        self.status, self._complete, self._head_bytes = 0, False, 0
        self._transport.write(request)

    async def head(self) -> int:
        """The response's status.  Raises :class:`BrokenConnectionError`."""
        while not self.status:
            await self._news()
        return self.status

    async def read(self) -> bytes:
        """What came of the body since the last time; empty: it is over.  Raises :class:`BrokenConnectionError`."""
        while not self._parts:
            if self._complete:
                return b""
            await self._news()
        return self._taken()

    async def relay(self, take: Callable[[bytes], bool]) -> bool:
        """Hand every part of the body to ``take``, within the read that brings it, until it says that this is enough.

        False: the body is over.  Raises :class:`BrokenConnectionError`, and what ``take`` raises.
        """
        if self._parts and take(self._taken()):
            return True
        self._take = take
        try:
            while not self._complete:
                if await self._news():
                    return True
            return False
        finally:
            self._take = None

    def release(self) -> None:
        """Nothing more of this response is wanted, and it is as good as over."""
        self._drop_parts()
        if self._complete:
            self._free()
        else:
            self._release_timer = self._loop.call_later(_END_TIMEOUT_S, self.abort)

    def abort(self) -> None:
        """Cut it, which is what tells an engine to stop."""
        self._broken = True
        self._transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._parser: Any = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        self._progressed = False
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.abort()
        else:
            self._head_bytes = 0 if self._progressed else self._head_bytes + len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self.abort()
            elif self._unread_bytes > _MAX_UNREAD_BYTES and not self._paused:
                self._paused = True
                self._transport.pause_reading()
        if self._take is None:
            self._wake()
        else:
            self._hand_over(self._take)

    def connection_lost(self, exc: Exception | None) -> None:
        self._broken = True
        if self._release_timer is not None:
            self._release_timer.cancel()
        self._wake()
        self._lost(self)

    # What httptools calls.

    def on_message_begin(self) -> None:
        if self._complete:
            raise BrokenConnectionError("a response that nobody asked for")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            raise BrokenConnectionError("no engine answers in two steps")
        self._progressed, self.status = True, status

    def on_body(self, body: bytes) -> None:
        self._progressed = True
        self._parts.append(body)
        self._unread_bytes += len(body)

    def on_message_complete(self) -> None:
        self._progressed = self._complete = True
        self._reusable = self._parser.should_keep_alive()  # it forgets with the next byte
        if self._release_timer is not None:
            self._release_timer.cancel()
            self._release_timer = None
            self._drop_parts()
            self._free()

    def _hand_over(self, take: Callable[[bytes], bool]) -> None:
        """Whoever waits for the relay is woken by its end alone."""
        enough = False
        if self._parts:
            try:
                enough = take(self._taken())
            except Exception as refusal:
                self._take = None
                self._wake(refusal)
                return
        if enough:
            self._take = None
        if enough or self._complete or self._broken:
            self._wake(enough)

    def _free(self) -> None:
        if not (self.alive and self._reusable):
            self.abort()
            return
        self.free_since = self._loop.time()
        self._freed(self)

    def _taken(self) -> bytes:
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._drop_parts()
        return data

    def _drop_parts(self) -> None:
        self._parts.clear()
        self._unread_bytes = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    async def _news(self) -> bool:
        """Whether a relay has come to its end."""
        if self._broken:
            raise BrokenConnectionError("the connection ended before the response did")
        self._waiter = self._loop.create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def _wake(self, how: bool | Exception = False) -> None:
        if self._waiter is None or self._waiter.done():
            return
        if isinstance(how, Exception):
            self._waiter.set_exception(how)
        else:
            self._waiter.set_result(how)
