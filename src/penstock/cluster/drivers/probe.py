"""Asking a process on this machine how it is: one GET over its Unix socket.

In: a socket path and a route; out: the body of a 200, or ``None`` when there is none within the time.
"""

from __future__ import annotations

import aiohttp

_MAX_BYTES = 16 * 1024 * 1024
"""More than any process has to say of itself; one that says more is broken."""


class Probe:
    """Keeps one connection to one socket.  Close it."""

    def __init__(self, socket: str) -> None:
        self._session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=socket, limit=1))

    async def get(self, route: str, timeout_s: float) -> bytes | None:
        """The body, or ``None``: nobody listens, the answer is no 200, or it does not come in time or is endless."""
        try:
            timeout = aiohttp.ClientTimeout(total=timeout_s)
            async with self._session.get(f"http://localhost{route}", timeout=timeout) as response:
                if response.status != 200:
                    return None
                body = b""
                async for part in response.content.iter_any():
                    body += part
                    if len(body) > _MAX_BYTES:
                        return None
                return body
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None

    async def close(self) -> None:
        """Hang up."""
        await self._session.close()


async def ask(socket: str, route: str, timeout_s: float) -> bytes | None:
    """:meth:`Probe.get` on a connection of its own."""
    probe = Probe(socket)
    try:
        return await probe.get(route, timeout_s)
    finally:
        await probe.close()
