"""Watches attempts that have fallen silent, and breaks off those that are stalled.

In: attempts as they begin and end; out: the cancellation of one whose engine does nothing more for it, which
``forward`` turns into a loss like any other.  ``policy.stall`` decides.  Costs a chunk one assignment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from penstock.gateway.upstream import Upstream
from penstock.policy.stall import Silence, StallMemory, StallRules, decide
from penstock.ports import Clock
from penstock.wire.errors import Problem
from penstock.wire.load import ProgressRequest

_INTERVAL_S = 1.0
_MAX_ASKED = 256
"""Ids in one question: thousands that wait in a queue take turns."""


@dataclass(slots=True, eq=False)
class Watched:
    """One attempt under way.  ``emitted`` grows with it.

    ``reading``: its task waits for its engine just now, so that silence is the engine's and not a slow client's.
    ``stalled``: why it was broken off.
    """

    id: str
    socket: str
    emitted: Sequence[int]
    task: asyncio.Task[Any]
    silent_since: float
    accepted: bool = False
    reading: bool = True
    stalled: str = ""
    num_seen: int = -1
    asked_at: float = 0.0
    memory: StallMemory | None = None

    def speaks(self) -> bool:
        """Whether it got tokens since the last look, or nobody waits for any."""
        news = not self.reading or len(self.emitted) != self.num_seen
        self.num_seen = len(self.emitted)
        return news


class Stalls:
    """All attempts of a gateway.  ``watch`` runs beside them."""

    def __init__(self, upstream: Upstream, clock: Clock, rules: StallRules | None = None) -> None:
        self._upstream = upstream
        self._clock = clock
        self._rules = rules or StallRules()
        self._attempts: dict[Watched, None] = {}

    @contextmanager
    def watching(self, id: str, socket: str, emitted: Sequence[int] = ()) -> Iterator[Watched]:
        """Watch what the running task does within.  Raises ``Problem`` ``engine_lost`` where it was broken off."""
        task = asyncio.current_task()
        assert task is not None
        attempt = Watched(id, socket, emitted, task, self._clock.now())
        self._attempts[attempt] = None
        try:
            yield attempt
        except asyncio.CancelledError:
            # A client that went away at the same moment has cancelled the task, too, and that counts.
            if attempt.stalled and task.uncancel() == 0:
                raise Problem("engine_lost", f"The engine made no progress: {attempt.stalled}.") from None
            raise
        finally:
            del self._attempts[attempt]

    async def watch(self) -> None:
        """Look around once a second; ends by cancellation."""
        asking: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                await asyncio.sleep(_INTERVAL_S)
                for socket, silent in self._silent().items():
                    if socket not in asking or asking[socket].done():
                        asking[socket] = asyncio.create_task(self._ask(socket, silent))
                asking = {socket: task for socket, task in asking.items() if not task.done()}
        finally:
            for task in asking.values():
                task.cancel()

    def _silent(self) -> dict[str, list[Watched]]:
        """Who has been silent for long enough to be asked about, by engine; the longest unasked first."""
        now = self._clock.now()
        found: dict[str, list[Watched]] = {}
        for attempt in self._attempts:
            if attempt.speaks():
                attempt.silent_since, attempt.memory = now, None
            elif now - attempt.silent_since >= self._rules.ask_after_s and not attempt.stalled:
                found.setdefault(attempt.socket, []).append(attempt)
        for silent in found.values():
            silent.sort(key=lambda attempt: attempt.asked_at)
            del silent[_MAX_ASKED:]
        return found

    async def _ask(self, socket: str, silent: list[Watched]) -> None:
        said = None
        try:
            said = await self._upstream.progress(socket, ProgressRequest(ids=[attempt.id for attempt in silent]))
        except Problem as problem:
            if problem.code == "not_found":
                return  # an engine of another release, or a foreign one, which cannot say
        now = self._clock.now()
        for attempt in silent:
            if attempt not in self._attempts or attempt.speaks():
                attempt.memory = None
                continue
            attempt.asked_at = now
            view = Silence(id=attempt.id, accepted=attempt.accepted, said=said)
            verdict, attempt.memory = decide(view, self._rules, attempt.memory, now)
            if verdict.stalled:
                attempt.stalled = verdict.why
                attempt.task.cancel()
