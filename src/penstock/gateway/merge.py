"""Several sequences as one stream of (index, events), as they come.

In: one generator per choice; out: their items, tagged.  Holds at most one item per choice: whoever reads slowly slows
every choice down, and nothing piles up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress

from penstock.wire.engine import Event

Batches = AsyncGenerator[list[Event], None]


async def merge(sources: Sequence[Batches]) -> AsyncGenerator[tuple[int, list[Event]], None]:
    """Yield from every source until all are exhausted; the first error ends them all."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as source:
            async for events in source:
                yield 0, events
        return
    queue: asyncio.Queue[tuple[int, list[Event] | BaseException | None]] = asyncio.Queue(maxsize=1)
    pumps = [asyncio.create_task(_pump(index, source, queue)) for index, source in enumerate(sources)]
    try:
        running = len(pumps)
        while running:
            index, item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield index, item
    finally:
        for pump in pumps:
            pump.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(
    index: int, source: Batches, queue: asyncio.Queue[tuple[int, list[Event] | BaseException | None]]
) -> None:
    async with aclosing(source):
        try:
            async for events in source:
                await queue.put((index, events))
        except Exception as error:
            await queue.put((index, error))
            return
    await queue.put((index, None))
