"""Answer with JSON, with bytes, or with a problem from the error table.

In: values; out: one complete response each.  Streams are written by whoever has one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec

from penstock.asgi.server import Send
from penstock.wire.errors import Problem

Header = tuple[bytes, bytes]
JSON: Header = (b"content-type", b"application/json")

_encode = msgspec.json.Encoder().encode


async def send_bytes(
    send: Send, body: bytes, *, content_type: bytes, status: int = 200, headers: Iterable[Header] = ()
) -> None:
    """One complete response."""
    length = (b"content-length", str(len(body)).encode())
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", content_type), length, *headers],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, value: Any, *, status: int = 200, headers: Iterable[Header] = ()) -> None:
    """One complete JSON response."""
    await send_bytes(send, _encode(value), content_type=b"application/json", status=status, headers=headers)


async def send_problem(send: Send, problem: Problem, *, headers: Iterable[Header] = ()) -> None:
    """OpenAI's error body with the table's status, and ``retry-after`` where there is one."""
    headers = [*headers, *retry_after(problem)]
    await send_json(send, problem.body(), status=problem.spec.status, headers=headers)


def retry_after(problem: Problem) -> list[Header]:
    """The ``retry-after`` header in whole seconds, where the problem says when to try again.

    Clients try again after every 429 and 5xx, unless ``x-should-retry`` says that it is of no use.
    """
    if problem.spec.status in (429, 503) and not problem.spec.retryable:
        return [(b"x-should-retry", b"false")]
    if problem.retry_after_s is None:
        return []
    return [(b"retry-after", str(math.ceil(problem.retry_after_s)).encode())]
