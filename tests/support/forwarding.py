"""Production's forwarder over simulated engines, on virtual time.

In: scripts and what happens to the engines; out: what a client hears.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from penstock.config.desired import DesiredState, Model, Replica
from penstock.config.mock import MockScript
from penstock.events.list import Event
from penstock.gateway.call import Trail
from penstock.gateway.forward import Forwarder
from penstock.gateway.replicas import Replicas
from penstock.gateway.watch import Watcher
from penstock.policy.retry import RetryRules
from penstock.sim.client import Heard
from penstock.sim.fleet import SimulatedFleet
from penstock.sim.loop import LoopClock, run
from penstock.wire.engine import Event as StreamEvent
from penstock.wire.engine import GenerateRequest, Sampling

REQUEST = GenerateRequest(id="a", sampling=Sampling(seed=5), text="prompt", max_tokens=30)


class World:
    """A forwarder over so many simulated engines."""

    def __init__(self, num_engines: int, script: MockScript) -> None:
        self.script = script
        self.fleet = SimulatedFleet()
        self.replicas = Replicas()
        self.events: list[Event] = []
        self.forwarder = Forwarder(self.replicas, self.fleet, RetryRules(), LoopClock(), self.events.append)
        self.names = [f"e{number}" for number in range(num_engines)]
        self.said: list[StreamEvent] = []
        self._states: asyncio.Queue[DesiredState] = asyncio.Queue()
        self._version = 0
        for name in self.names:
            self.fleet.start(name, script)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[World]:
        watcher = Watcher("g", self.replicas, self.fleet, lambda said: None, lambda: 0, LoopClock().now)
        watching = [
            asyncio.create_task(watcher.follow(self._published())),
            asyncio.create_task(self.forwarder.stalls.watch()),
        ]
        self.publish(*self.names)
        while not self.replicas.ready:
            await asyncio.sleep(0.01)
        yield self
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        await watcher.close()

    def publish(self, *names: str) -> None:
        """These replicas are wanted from now on."""
        self._version += 1
        replicas = [Replica(id=name, socket=name) for name in names]
        self._states.put_nowait(DesiredState(version=self._version, models=[Model(name="m", replicas=replicas)]))

    async def _published(self) -> AsyncIterator[DesiredState]:
        while True:
            yield await self._states.get()

    async def listen(self, heard: Heard, pace_s: float = 0.0) -> None:
        trail: Trail = []

        def push(events: list[StreamEvent]) -> Awaitable[None]:
            for event in events:
                heard.take(event)
                self.said.append(event)
            return asyncio.sleep(pace_s)

        await self.forwarder.stream("m", REQUEST, 3, trail, push)

    def wedge_the_one_that_runs(self) -> None:
        [life] = [life for life in self.fleet.lives.values() if life.mock.num_open]
        life.wedged = True


def in_world(num_engines: int, script: MockScript, act: Callable[[World], Awaitable[None]]) -> World:
    async def live() -> World:
        async with World(num_engines, script).watched() as world:
            await act(world)
        return world

    return run(live())
