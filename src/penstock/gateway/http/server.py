"""Serving an ASGI application on one socket: uvicorn's protocol with bounds on what it leaves open.

In: a bound socket and an application; out: HTTP/1.1.  Knows no routes.
Bounds here: size of a request's head and trailers, time of a head, and how many requests a client may pipeline.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from email.utils import formatdate
from typing import Any

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from penstock.gateway.http.pipe import PIPE, Pipe
from penstock.gateway.http.presence import PRESENCE, Presence
from penstock.wire.errors import Problem

_MAX_HEAD_BYTES = 64 * 1024
_HEAD_TIMEOUT_S = 30.0
_HANDSHAKE_TIMEOUT_S = 10.0
_LINGER_BYTES = 16 * 1024 * 1024
_LINGER_S = 2.0
_MAX_PIPELINED = 64
_IDLE_CONNECTION_S = 75
_BACKLOG = 4096
_CANCEL_TIMEOUT_S = 1.0
_DATE_INTERVAL_S = 1.0


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_bytes = 0
        self._in_head, self._progressed, self._refused = True, False, False
        self._running: RequestResponseCycle | None = None
        self._presence = Presence()
        self._head_timer: asyncio.TimerHandle | None = self.loop.call_later(_HEAD_TIMEOUT_S, transport.close)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._head_bytes += len(data)
            if self._head_bytes > _LINGER_BYTES:
                self.transport.close()
            return
        self._progressed = False
        super().data_received(data)
        if self._refused or self.transport.is_closing():
            return
        # A head that came whole needs no timer; one that came begun, behind a whole one, has the idle connection's.
        if self._in_head and not self._progressed and self._head_timer is None:
            self._head_timer = self.loop.call_later(_HEAD_TIMEOUT_S, self.transport.close)
        # Counted per read: a bound on memory, not on bytes.  What ends no head and no message and brings no body is
        # part of a head, of a trailer or of a chunk's extension.
        self._head_bytes = 0 if self._progressed else self._head_bytes + len(data)
        if self._head_bytes > _MAX_HEAD_BYTES:
            self._refuse(Problem("headers_too_large", f"The request's head is larger than {_MAX_HEAD_BYTES} bytes."))
        elif len(self.pipeline) > _MAX_PIPELINED:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        # The base class tells only the newest of pipelined requests.
        running = self._running
        super().connection_lost(exc)
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        self._presence.leave()

    def on_headers_complete(self) -> None:
        self._in_head, self._progressed = False, True
        self._stop_head_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._progressed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head = self._progressed = True
        super().on_message_complete()
        if self.cycle is self._running:
            # Nobody waits for more of this request, and unless somebody reads, nobody hears that its client has left.
            self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        self._refuse(Problem("bad_request", msg))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running, self._presence = cycle, Presence()
        cycle.scope["extensions"] = {PRESENCE: self._presence, PIPE: Pipe(cycle)}  # type: ignore[dict-item]  # ours
        super()._start_asgi_task(cycle, app)

    def _refuse(self, problem: Problem) -> None:
        """Answer what never became a request; drop what still comes for a while, lest a reset overtake the answer."""
        self._refused = True
        self._stop_head_timer()
        if not self._abandon_request():
            self.transport.close()
            return
        body = msgspec.json.encode(problem.body())
        head = f"HTTP/1.1 {problem.spec.status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        if self.transport.can_write_eof():  # TLS cannot
            self.transport.write_eof()
        self._head_timer = self.loop.call_later(_LINGER_S, self.transport.close)

    def _abandon_request(self) -> bool:
        """Whether nothing was answered that the refusal would break into; ends the request whose body is at fault."""
        running = self._running
        if self._in_head:
            return running is None or running.response_complete
        if running is None or running is not self.cycle or running.response_started:
            return False
        running.disconnected = True
        running.message_event.set()
        self._presence.leave()
        return True

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class HttpServer:
    """One listening socket.  ``start``, then ``stop`` when no request is wanted any more."""

    def __init__(self, app: Any, tls: ssl.SSLContext | None = None) -> None:
        # Streams that fail are left incomplete on purpose, which uvicorn would log as an error each time;
        # bugs are caught and logged by the application itself.
        self._config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=_IDLE_CONNECTION_S,
        )
        self._config.load()
        self._tls = tls
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self._date_task: asyncio.Task[None] | None = None

    async def start(self, listener: socket.socket) -> None:
        """Accept connections from a bound socket."""
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        self._date_task = asyncio.create_task(self._keep_date())
        self._server = await loop.create_server(
            lambda: BoundedProtocol(self._config, self._state, {}),
            sock=listener,
            backlog=_BACKLOG,
            ssl=self._tls,
            ssl_handshake_timeout=_HANDSHAKE_TIMEOUT_S if self._tls is not None else None,
        )

    async def stop(self) -> None:
        """Accept nothing more, end idle connections, and return when the running requests have ended."""
        assert self._server is not None
        self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        while self._state.tasks:
            await asyncio.wait(list(self._state.tasks))

    async def close(self) -> None:
        """End everything now; running requests see their clients go away."""
        assert self._server is not None and self._date_task is not None
        self._server.close()
        self._date_task.cancel()
        for connection in list(self._state.connections):
            connection.transport.close()
        if self._state.tasks:
            await asyncio.wait(list(self._state.tasks), timeout=_CANCEL_TIMEOUT_S)

    async def _keep_date(self) -> None:
        while True:
            self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
            await asyncio.sleep(_DATE_INTERVAL_S)
