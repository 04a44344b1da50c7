"""The last stage: what it was.

In: a call from its first to its last moment; out: one ``RequestReceived`` and one ``RequestEnded``.
``in_flight`` is the number of open calls, exactly.
"""

from __future__ import annotations

from penstock.events.list import RequestEnded, RequestReceived
from penstock.gateway.call import Call
from penstock.gateway.explain import Recent
from penstock.ports import Clock, Emit, Ids
from penstock.wire.engine import Embedded, Event
from penstock.wire.errors import Problem


class Meter:
    """Counts calls and what they deliver."""

    def __init__(self, clock: Clock, emit: Emit, ids: Ids) -> None:
        self.in_flight = 0
        self.recent = Recent()
        self._clock = clock
        self._emit = emit
        self._ids = ids

    def begin(self, route: str) -> Call:
        """A request's head was read."""
        self._emit(RequestReceived(route=route))
        self.in_flight += 1
        call = Call(id=self._ids(), route=route, started=self._clock.now())
        self.recent.add(call)
        return call

    def note(self, call: Call, index: int, events: list[Event]) -> None:
        call.note(index, events, self._clock.now())

    def note_embedded(self, call: Call, embedded: Embedded) -> None:
        call.note_embedded(embedded)

    def end(self, call: Call, error: BaseException | None) -> RequestEnded:
        """The call has ended, early if there is an ``error``."""
        self.in_flight -= 1
        ended = call.ended_as = call.ended(error, self._clock.now())
        if isinstance(error, Problem):
            call.refusal = error.message
        self._emit(ended)
        return ended
