"""Whether a gateway shares its limits, as its events tell."""

from __future__ import annotations

import asyncio

from slices import World

from penstock.config.tenants import Limit
from penstock.events.list import Event
from penstock.events.metrics import LIMITS_SHARED
from penstock.observe.folds import Folds
from penstock.observe.samples import decode, encode
from penstock.sim.loop import run


def test_a_store_that_goes_and_comes_is_told_once_each_time() -> None:
    """Also one that is away from the start; nothing is told again while nothing changes.  The metric follows."""

    folds = Folds()

    def metric(event: Event) -> list[float]:
        folds(event)
        return [sample.value for sample in decode(encode(folds.samples())) if sample.name == LIMITS_SHARED.name]

    async def main() -> list[Event]:
        world = World(1, Limit(unit="requests", amount=100, window="minute"), gateways=1)
        [gateway] = world.gateways
        gateway.road.away = True
        gateway.start()
        for away in (True, False, True, False):
            gateway.road.away = away
            await asyncio.sleep(3)
        await gateway.stop()
        return gateway.events

    assert [metric(event) for event in run(main())] == [[0.0], [1.0], [0.0], [1.0]]
