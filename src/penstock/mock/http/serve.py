"""The life of a mock engine process: listen, answer, drain, end.

In: bound sockets, the script; out: nothing, until ``stop`` is set.  Who bound them does not matter.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

from penstock.config.mock import MockScript
from penstock.mock.engine import MockEngine
from penstock.mock.http.connection import Connection
from penstock.observe.folds import Folds
from penstock.ports import Clock

_BACKLOG = 4096
_DRAIN_POLL_S = 0.02


async def serve_mock(
    listeners: Sequence[socket.socket], *, model: str, script: MockScript, clock: Clock, stop: asyncio.Event
) -> None:
    """Serve until ``stop`` is set and what was running has ended, at most the script's ``drain_s`` later."""
    folds = Folds()
    engine = MockEngine(model, script, clock, folds)
    connections: set[Connection] = set()
    servers = [await _listen(listener, lambda: Connection(engine, connections, folds)) for listener in listeners]
    await stop.wait()
    engine.draining = True
    try:
        async with asyncio.timeout(script.drain_s):
            while engine.num_open:
                await asyncio.sleep(_DRAIN_POLL_S)
    except TimeoutError:
        pass
    for server in servers:
        server.close()
    for connection in list(connections):
        connection.abort()


async def _listen(listener: socket.socket, make: Callable[[], Connection]) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    listener.setblocking(False)
    if listener.family == socket.AF_UNIX:
        return await loop.create_unix_server(make, sock=listener, backlog=_BACKLOG)
    return await loop.create_server(make, sock=listener, backlog=_BACKLOG)
