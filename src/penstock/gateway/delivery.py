"""One call's events through the last stages and to the client: limited, metered, handed over in one plain call.

In: events of each choice, as ``forward`` pushes them; out: what the call's limits cover of them.
Only what has to wait is a coroutine: more that has to be fetched of a limit, or a client that reads slowly.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from penstock.gateway.call import Call
from penstock.gateway.limit import Limit
from penstock.gateway.meter import Meter
from penstock.wire.engine import Event

Give = Callable[[int, list[Event]], Awaitable[None] | None]
"""Takes events of a choice; an awaitable: no more of that choice before it is done.  What it raises ends the call."""


class CutError(Exception):
    """The caller's limits have ended a choice, which was told so: nothing more of it is wanted."""


class Delivery:
    """Of one call.  ``give`` is told every choice's events, each choice's last batch ending in its ``Finished``."""

    __slots__ = ("_call", "_give", "_limit", "_meter")

    def __init__(self, call: Call, limit: Limit, meter: Meter, give: Give) -> None:
        self._call = call
        self._limit = limit
        self._meter = meter
        self._give = give

    def push(self, index: int, events: list[Event]) -> Awaitable[None] | None:
        """Raises ``Problem`` where the input is larger than what is left of a limit, and :class:`CutError`."""
        covered = self._limit.cover(self._call, index, events)
        if covered is None:
            return self._fetch(index, events)
        return self._hand_over(index, events, covered)

    async def _fetch(self, index: int, events: list[Event]) -> None:
        covered = None
        while covered is None:
            assert self._call.hold is not None
            fetched = await self._call.hold.fetch()
            covered = self._limit.cover(self._call, index, events, None if fetched.granted else fetched)
        wait = self._hand_over(index, events, covered)
        if wait is not None:
            await wait

    def _hand_over(self, index: int, events: list[Event], covered: list[Event]) -> Awaitable[None] | None:
        self._meter.note(self._call, index, covered)
        wait = self._give(index, covered)
        return wait if covered is events else self._cut(wait)

    @staticmethod
    async def _cut(wait: Awaitable[None] | None) -> None:
        if wait is not None:
            await wait
        raise CutError
