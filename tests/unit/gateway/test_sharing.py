"""Whether a gateway shares its limits, as its events tell."""

from __future__ import annotations

import asyncio

from slices import World

from penstock.config.tenants import Limit
from penstock.events.list import SharingChanged
from penstock.sim.loop import run


def test_a_store_that_goes_and_comes_is_told_once_each_time() -> None:
    """Also one that is away from the start; nothing is told again while nothing changes."""

    async def main() -> list[bool]:
        world = World(1, Limit(unit="requests", amount=100, window="minute"), gateways=1)
        [gateway] = world.gateways
        gateway.road.away = True
        gateway.start()
        for away in (True, False, True, False):
            gateway.road.away = away
            await asyncio.sleep(3)
        await gateway.stop()
        return [event.shared for event in gateway.events if isinstance(event, SharingChanged)]

    assert run(main()) == [False, True, False, True]
