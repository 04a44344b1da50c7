"""One attempt at one replica: its events on their way from the engine to whoever wants them.

In: events as the upstream pushes them; out: those that are news, within the same call, and a record in ``Progress``.
No coroutine per event: where the other side has to wait, it says so with an awaitable, which the upstream awaits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from penstock.gateway.prefixes import Chain
from penstock.gateway.replica import Lease
from penstock.gateway.stalls import Watched
from penstock.gateway.upstream import Push
from penstock.policy.resume import Origin
from penstock.policy.retry import RetryMemory, RetryVerdict
from penstock.ports import Clock
from penstock.wire.engine import Accepted, Delta, Event, Failed, Finished, problem_of
from penstock.wire.errors import Problem


class TurnedAwayError(Exception):
    """Whoever was given events raised ``problem``: the stream ends by it, and its engine has not failed."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


@dataclass(slots=True)
class Progress:
    """What one sequence has behind it.  ``origin``: what it was begun on; ``lost_at``: the gap it is in
    began then.

    ``fruitful``: the last attempt's replica was at work, on this sequence or on others, when it failed.
    Not ``patient``: until an engine has taken it up, it waits for no replica; another model would have it.
    """

    emitted: list[int] = field(default_factory=list)
    accepted: bool = False
    origin: Origin | None = None
    attempts: int = 0
    lost_at: float | None = None
    memory: RetryMemory = field(default_factory=RetryMemory)
    verdict: RetryVerdict | None = None
    problem: Problem | None = None
    patient: bool = True
    fruitful: bool = False
    chain: Chain | None = None


@dataclass(slots=True, eq=False)
class Attempt:
    """``taken_up`` is told that the engine has accepted it, and says what news that is; ``None``: none.

    ``failure``: how it ended, if not well.
    """

    lease: Lease
    progress: Progress
    watched: Watched
    clock: Clock
    push: Push
    taken_up: Callable[[Accepted], Event | None]
    failure: Problem | None = None

    def take(self, batch: list[Event]) -> Awaitable[None] | None:
        """Record a batch and hand on what is news: no later attempt's ``Accepted``, and no end that is none.

        Raises :class:`TurnedAwayError`, and whatever else ``push`` raises.
        """
        self.watched.accepted = True
        emitted = self.progress.emitted
        for event in batch:
            if isinstance(event, Delta):
                emitted.extend(event.token_ids)
                if self.lease.first_at is None:
                    self.lease.first_token(self.clock.now())
        events = self._news(batch)
        last = batch[-1]
        if isinstance(last, Failed) or (isinstance(last, Finished) and last.reason == "cancelled"):
            self.failure = _problem_of_end(last)
            events = events[:-1]
        if not events:
            return None
        try:
            wait = self.push(events)
        except Problem as problem:
            raise TurnedAwayError(problem) from problem
        return None if wait is None else self._pause(wait)

    def _news(self, batch: list[Event]) -> list[Event]:
        first = batch[0]
        if not isinstance(first, Accepted):
            return batch
        news = self.taken_up(first)
        return batch[1:] if news is None else [news, *batch[1:]]

    async def _pause(self, wait: Awaitable[None]) -> None:
        """Until it is done, silence is not the engine's."""
        self.watched.reading = False
        try:
            await wait
        except Problem as problem:
            raise TurnedAwayError(problem) from problem
        finally:
            self.watched.reading = True


def _problem_of_end(event: Failed | Finished) -> Problem:
    """A stream that did not end well.  An engine that cancels what we did not cancel is going away."""
    if isinstance(event, Finished):
        return Problem("draining", "The engine cancelled the sequence.")
    return problem_of(event)
