"""The life of a mock engine process: listen, answer, drain, end.

In: a bound socket, the script; out: nothing, until ``stop`` is set.  Children and ports alike: what differs is who
bound the socket.
"""

from __future__ import annotations

import asyncio
import socket

from penstock.config.mock import MockScript
from penstock.mock.engine import MockEngine
from penstock.mock.http.connection import Connection

_DRAIN_POLL_S = 0.02


class _LoopClock:
    def now(self) -> float:
        return asyncio.get_running_loop().time()


async def serve_mock(listener: socket.socket, *, model: str, script: MockScript, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set and what was running has ended, at most the script's ``drain_s`` later."""
    engine = MockEngine(model, script, _LoopClock())
    connections: set[Connection] = set()
    loop = asyncio.get_running_loop()
    listener.setblocking(False)

    def make() -> Connection:
        return Connection(engine, connections)

    if listener.family == socket.AF_UNIX:
        server: asyncio.Server = await loop.create_unix_server(make, sock=listener)
    else:
        server = await loop.create_server(make, sock=listener)
    await stop.wait()
    engine.draining = True
    try:
        async with asyncio.timeout(script.drain_s):
            while engine.num_open:
                await asyncio.sleep(_DRAIN_POLL_S)
    except TimeoutError:
        pass
    server.close()
    for connection in list(connections):
        connection.abort()
