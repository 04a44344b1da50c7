"""How long what a process runs goes on: beside its serving, and after it was asked to stop.

In: coroutines; out: their end, within bounds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

END_S = 8.0
"""What a child gets for running requests after SIGTERM; less than the controller waits before it kills."""


@asynccontextmanager
async def beside(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run works beside the block; those that still go on are cancelled when it ends, however it ends."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def serve_until(stop: asyncio.Event, serving: Coroutine[Any, Any, None]) -> None:
    """Until ``serving`` ends; what still goes on ``END_S`` after ``stop`` is cancelled.  Raises what it raises."""
    task = asyncio.create_task(serving)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    _, unfinished = await asyncio.wait([task], timeout=END_S)
    if unfinished:
        task.cancel()
    with suppress(asyncio.CancelledError):
        await task
