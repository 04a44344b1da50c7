"""The last stage: what it was.

In: a call from its first to its last moment; out: one ``RequestReceived`` and one ``RequestEnded``.
What it has used so far is kept where a killed process leaves it behind.
``in_flight`` is the number of open calls, exactly.
"""

from __future__ import annotations

from typing import Protocol

from penstock.cost.money import Rate
from penstock.events.list import RequestEnded, RequestReceived
from penstock.gateway.call import Call
from penstock.gateway.explain import Recent
from penstock.ports import Clock, Emit, Ids
from penstock.wire.embedding import Embedded
from penstock.wire.engine import Delta, Event, Finished
from penstock.wire.errors import Problem


class Running(Protocol):
    """Keeps what a call has used so far, for whoever comes after a kill.  Never blocks, never raises."""

    def begin(self, so_far: RequestEnded, rate: Rate) -> int | None:
        """Where its counts go; ``None`` where they cannot be kept."""

    def count(self, slot: int, prompt: int, cached: int, output: int, reasoning: int) -> None: ...

    def count_output(self, slot: int, output: int) -> None:
        """The same where only that has grown: this is done for every chunk."""

    def end(self, slot: int) -> None: ...


class Meter:
    """Counts calls and what they deliver.  ``running``: ``None`` where nobody comes after a kill, in a simulation."""

    def __init__(self, clock: Clock, emit: Emit, ids: Ids, running: Running | None = None) -> None:
        self.in_flight = 0
        self.recent = Recent()
        self._clock = clock
        self._emit = emit
        self._ids = ids
        self._running = running

    def begin(self, route: str) -> Call:
        """A request's head was read."""
        self._emit(RequestReceived(route=route))
        self.in_flight += 1
        call = Call(id=self._ids(), route=route, started=self._clock.now())
        self.recent.add(call)
        return call

    def note(self, call: Call, index: int, events: list[Event]) -> None:
        call.note(index, events, self._clock.now())
        if self._running is None:
            return
        if call.running_slot is not None and type(events[0]) is Delta and type(events[-1]) is Delta:
            self._running.count_output(call.running_slot, sum(call.num_tokens.values()))
        # An answer that came as one has nothing that a kill could take.
        elif call.is_kept or not isinstance(events[-1], Finished):
            self._keep(call, self._running)

    def note_embedded(self, call: Call, embedded: Embedded) -> None:
        call.note_embedded(embedded)

    def end(self, call: Call, error: BaseException | None) -> RequestEnded:
        """The call has ended, early if there is an ``error``."""
        self.in_flight -= 1
        ended = call.ended_as = call.ended(error, self._clock.now())
        if isinstance(error, Problem):
            call.refusal = error.message
        self._emit(ended)
        if self._running is not None and call.running_slot is not None:
            self._running.end(call.running_slot)
        return ended

    def _keep(self, call: Call, running: Running) -> None:
        if not call.is_kept:
            call.is_kept = True
            call.running_slot = running.begin(call.ended(Problem("gateway_lost", ""), self._clock.now()), call.rate)
        if call.running_slot is not None:
            prompt, cached = call.once_per_prompt(call.num_prompt_tokens), call.once_per_prompt(call.num_cached_tokens)
            output = sum(call.num_tokens.values())
            running.count(call.running_slot, prompt, cached, output, call.num_reasoning_tokens)
