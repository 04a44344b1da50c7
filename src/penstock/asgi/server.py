"""Run an ASGI application on a Unix socket or an inherited listening socket, until told to stop.

In: an application and where to listen; out: nothing, until ``stop`` is set.  Signals stay with the caller.
For callers of our own on this machine: clients meet the stricter server of ``gateway/http``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, Literal

import uvicorn

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_BACKLOG = 4096
_IDLE_CONNECTION_S = 75
_GRACE_S = 1


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, stop: asyncio.Event) -> None:
        super().__init__(config)
        self._stop = stop

    async def main_loop(self) -> None:
        """Serve until told to stop; uvicorn's own wakes an idle process ten times a second to look."""
        await self.on_tick(0)
        await self._stop.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: a process of ours drains before its listeners stop."""
        yield


def bind_unix(path: str) -> socket.socket:
    """A listening Unix socket that only this user can connect to; a stale one at ``path`` is replaced."""
    Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    Path(path).chmod(0o600)
    listener.listen(_BACKLOG)
    return listener


async def serve_app(
    app: Application,
    listener: socket.socket,
    stop: asyncio.Event,
    *,
    parser: Literal["httptools", "h11"] = "httptools",
    tls: ssl.SSLContext | None = None,
) -> None:
    """Serve until ``stop`` is set; connections that are still open a second later are cut.

    ``parser``: h11 is slower and bounds a request's head, which a port that others can reach needs.
    """
    config = uvicorn.Config(
        app,
        loop="none",
        http=parser,
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_IDLE_CONNECTION_S,
        timeout_graceful_shutdown=_GRACE_S,
    )
    config.load()
    config.ssl = tls
    await _Server(config, stop).serve(sockets=[listener])
