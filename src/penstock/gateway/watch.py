"""Keeps the view of the replicas fresh: follows the desired states and asks every replica how it is.

In: desired states and an upstream; out: calls on ``Replicas`` and acknowledgements.  Decides nothing.
A ready replica is asked every half second, another ten times as often: a restarted engine is wanted at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from penstock.config.desired import Acknowledgement, DesiredState
from penstock.gateway.replica import ReplicaState
from penstock.gateway.replicas import Replicas
from penstock.gateway.upstream import Upstream
from penstock.wire.errors import Problem

_READY_INTERVAL_S = 0.5
_OTHER_INTERVAL_S = 0.05
_ACKNOWLEDGE_INTERVAL_S = 1.0
_log = logging.getLogger(__name__)


class Watcher:
    """Adopts desired states as they come and runs one asking task per replica."""

    def __init__(
        self,
        gateway: str,
        replicas: Replicas,
        upstream: Upstream,
        acknowledge: Callable[[Acknowledgement], None],
        in_flight: Callable[[], int],
        wall_clock: Callable[[], float],
    ) -> None:
        self._gateway = gateway
        self._replicas = replicas
        self._upstream = upstream
        self._acknowledge = acknowledge
        self._in_flight = in_flight
        self._wall_clock = wall_clock
        self._askers: dict[ReplicaState, asyncio.Task[None]] = {}
        self._retired: dict[ReplicaState, None] = {}
        self._acknowledged = (-1, -1)

    async def follow(self, states: AsyncIterator[DesiredState]) -> None:
        """Adopt and acknowledge every state; ends with the iterator, or by cancellation."""
        async for desired in states:
            self._replicas.adopt(desired)
            await self._align_askers()
            self.acknowledge()

    async def acknowledge_regularly(self) -> None:
        """Say the version and what is in flight once a second, and at once when the count changes while draining."""
        waited = 0.0
        while True:
            pause = _ACKNOWLEDGE_INTERVAL_S if self._replicas.admitting else _OTHER_INTERVAL_S
            await self._replicas.changed(pause)
            waited += pause
            news = (self._replicas.version, self._in_flight()) != self._acknowledged
            if waited >= _ACKNOWLEDGE_INTERVAL_S or (news and not self._replicas.admitting):
                waited = 0.0
                self.acknowledge()

    def acknowledge(self) -> None:
        """Version 0 is nobody's statement and is not acknowledged."""
        if self._replicas.version == 0:
            return
        self._acknowledged = (self._replicas.version, self._in_flight())
        version, in_flight = self._acknowledged
        try:
            self._acknowledge(
                Acknowledgement(gateway=self._gateway, version=version, in_flight=in_flight, at=self._wall_clock())
            )
        except Exception:
            # The store may be locked or full for a moment; the next second says it again.
            _log.exception("could not acknowledge version %d", version)

    async def close(self) -> None:
        await _cancel(list(self._askers.values()))
        self._askers.clear()

    async def _align_askers(self) -> None:
        # In their order, not a set's: the same world has to take the same turns.
        wanted = [state for model in self._replicas.models for state in model.replicas]
        for state in wanted:
            if state not in self._askers:
                self._askers[state] = asyncio.create_task(self._ask(state))
        gone = [state for state in self._askers if state not in wanted]
        await _cancel([self._askers.pop(state) for state in gone])
        self._retired |= dict.fromkeys(gone)
        # What still runs at a replica that is wanted no more runs to its end.
        for state in [state for state in self._retired if state.outstanding_requests == 0]:
            del self._retired[state]
            if state.replica.socket not in {other.replica.socket for other in wanted}:
                await self._upstream.forget(state.replica.socket)

    async def _ask(self, state: ReplicaState) -> None:
        while True:
            losses = state.losses
            try:
                load = await self._upstream.load(state.replica.socket)
            except Problem:
                load = None
            self._replicas.observe(state, load, losses)
            if state.losses == losses:
                # A loss or any other change meanwhile makes it time to ask again.
                await self._replicas.changed(_READY_INTERVAL_S if state.ready else _OTHER_INTERVAL_S)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
