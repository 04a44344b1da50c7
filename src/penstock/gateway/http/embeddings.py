"""The embeddings route: decode, hand to the pipeline, write the vectors.

In: a body that was read and its exchange; out: one response.  The dialect is ``wire.openai``'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from penstock.gateway.http.data import Exchange
from penstock.wire.openai import embeddings as dialect

T = TypeVar("T")

_LONG_BYTES = 64 * 1024
"""From here on reading or writing a body takes longer than handing it to a thread."""


async def embeddings(exchange: Exchange, body: bytes) -> None:
    """POST /v1/embeddings"""
    call = exchange.call
    request = await _beside(lambda: dialect.decode(body), len(body))
    exchange.find(request.model, request.user)
    embedded = await exchange.gateway.embed(call, dialect.engine_request(request, call.id), len(body))
    answer = await _beside(lambda: dialect.answer(request, embedded), sum(map(len, embedded.vectors)))
    await exchange.answer(answer)


async def _beside(work: Callable[[], T], num_bytes: int) -> T:
    """``work()``, in a thread where it is long: what other requests wait for is then one item, not thousands."""
    return work() if num_bytes < _LONG_BYTES else await asyncio.to_thread(work)
