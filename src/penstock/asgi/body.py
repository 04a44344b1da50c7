"""Reading a request's body within bounds of size and time.

In: ASGI's receive; out: bytes, or a ``Problem``.  Decodes nothing, and never waits for more than it was told.
"""

from __future__ import annotations

import asyncio

from penstock.asgi.server import Receive, Scope
from penstock.wire.errors import Problem


class ClientGoneError(Exception):
    """The client closed the connection before its request was complete: nobody is left to answer."""


async def read_body(scope: Scope, receive: Receive, *, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body.

    Raises ``body_too_large`` (as soon as the declared or the received length shows it), ``request_timeout``, and
    :class:`ClientGoneError`.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > max_bytes:
            raise _too_large(max_bytes)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                part: bytes = message.get("body", b"")
                size += len(part)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise Problem("request_timeout", f"The body was not complete after {timeout_s:g} s.") from None


def _too_large(max_bytes: int) -> Problem:
    return Problem("body_too_large", f"The body is larger than the {max_bytes} bytes that this server takes.")
