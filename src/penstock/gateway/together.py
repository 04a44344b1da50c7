"""Several sequences at once, each on its own way to the same caller.

In: one coroutine per choice; out: nothing, when all have ended; the first error ends them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any


async def together(choices: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run them to their ends; none goes on once this has returned or raised."""
    if len(choices) == 1:
        await choices[0]
        return
    tasks = [asyncio.create_task(choice) for choice in choices]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
