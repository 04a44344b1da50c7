"""Streams that push, for tests that would rather pull them, and the other way round.

In: a coroutine that is given what to push into, or a generator; out: batches one at a time, the stream waiting
meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from penstock.gateway.upstream import Push
from penstock.wire.engine import Event


async def pulled(begin: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> AsyncGenerator[list[Event], None]:
    """What ``begin(*args, push)`` pushes, and what it raises.  Closing the generator cancels it."""
    batches: asyncio.Queue[list[Event] | None] = asyncio.Queue()

    async def give(events: list[Event]) -> None:
        batches.put_nowait(events)
        await batches.join()

    task = asyncio.create_task(begin(*args, give))
    task.add_done_callback(lambda done: batches.put_nowait(None))
    try:
        while (events := await batches.get()) is not None:
            yield events
            batches.task_done()
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def given(wait: Awaitable[None] | None) -> None:
    """Await what a push has left to await."""
    if wait is not None:
        await wait


async def push_all(batches: AsyncGenerator[list[Event], None], push: Push) -> None:
    """Push what a generator yields, and close it."""
    async with aclosing(batches):
        async for events in batches:
            await given(push(events))
