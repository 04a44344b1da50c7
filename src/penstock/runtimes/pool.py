"""The connections to one engine: lent to one exchange at a time, kept for the next, never counted.

In: the path of its Unix socket; out: open connections.  What was used last is lent first, what idles is closed.
"""

from __future__ import annotations

import asyncio

from penstock.runtimes.connection import BrokenConnectionError, Connection

_CONNECT_TIMEOUT_S = 5.0
_IDLE_S = 30.0


class Pool:
    """``lend``, then ``release`` or ``abort`` the connection.  Raises ``OSError`` where nobody answers the socket."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._free: dict[Connection, None] = {}
        self._all: set[Connection] = set()
        self._closed = False

    async def lend(self) -> Connection:
        """One that carries no exchange.  Raises ``OSError``, ``TimeoutError`` among them."""
        while self._free:
            connection, _ = self._free.popitem()
            if connection.alive:
                return connection
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_unix_connection(lambda: Connection(self._freed, self._lost), self._path)
        if self._closed:
            connection.abort()
        if not connection.alive:
            raise BrokenConnectionError("it ended at once")
        self._all.add(connection)
        return connection

    def close(self) -> None:
        """Cut them all; running exchanges see theirs break."""
        self._closed = True
        for connection in list(self._all):
            connection.abort()

    def _freed(self, connection: Connection) -> None:
        self._free[connection] = None
        # The first was given back before all the others; one look per exchange keeps up with what is too many.
        first = next(iter(self._free))
        if connection.free_since - first.free_since > _IDLE_S:
            del self._free[first]
            first.abort()

    def _lost(self, connection: Connection) -> None:
        self._all.discard(connection)
        self._free.pop(connection, None)
