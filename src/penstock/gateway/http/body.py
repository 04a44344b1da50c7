"""Reading a data request's body within bounds, and getting rid of one that is not wanted.

In: ASGI's receive, or what is there already; out: bytes, or a ``Problem`` (too large, too slow, compressed), or
``ClientGone``.
"""

from __future__ import annotations

import asyncio

import msgspec

from penstock.asgi.body import ClientGoneError, read_body
from penstock.asgi.respond import Header
from penstock.asgi.server import Receive, Scope, Send
from penstock.gateway.call import ClientGone
from penstock.gateway.http.pipe import Pipe
from penstock.wire.errors import Problem

_LINGER_S = 2.0
_LINGER_BYTES = 64 * 1024 * 1024


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of that (lower-case) name."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None


async def read_data_body(scope: Scope, receive: Receive, pipe: Pipe, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body.

    Raises ``Problem``: ``body_too_large`` as soon as that is known, ``request_timeout``, ``invalid_value`` for a
    compressed body; and ``ClientGone``.
    """
    encoding = header(scope, b"content-encoding")
    if encoding is not None and encoding.lower() != b"identity":
        raise Problem("invalid_value", "Compressed bodies are not taken; send it as it is.", param="content-encoding")
    body = pipe.body(max_bytes)
    if body is not None:
        return body  # as nearly always; a clock for what need not be waited for costs a twentieth of a request
    try:
        return await read_body(scope, receive, max_bytes=max_bytes, timeout_s=timeout_s)
    except ClientGoneError:
        raise ClientGone from None


async def refuse_unread(send: Send, receive: Receive, problem: Problem, headers: list[Header]) -> None:
    """Answer before the body was read, drop what the client still sends for a while, and end the connection.

    Closing a socket with unread bytes resets it, and the client would lose the answer it was sent.
    """
    body = msgspec.json.encode(problem.body())
    head = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *headers,
    ]
    await send({"type": "http.response.start", "status": problem.spec.status, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    if problem.code != "request_timeout":
        await _drop(receive, _LINGER_BYTES)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drop(receive: Receive, remaining: int) -> None:
    try:
        async with asyncio.timeout(_LINGER_S):
            while remaining > 0:
                message = await receive()
                remaining -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
