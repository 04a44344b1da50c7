"""Whether a gateway shares its limits, as its events tell."""

from __future__ import annotations

import asyncio

from slices import World

from penstock.config.tenants import Limit, Scope
from penstock.events.list import Event, UnusableLimitsChanged
from penstock.events.metrics import LIMITS_SHARED, UNUSABLE_LIMITS
from penstock.observe.folds import Folds
from penstock.observe.samples import decode, encode
from penstock.policy.limit import Amounts
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


def test_a_limit_whose_book_is_not_ours_holds_up_nobody_else() -> None:
    """Who needs it is refused at once, others are granted; it is told once, by the metric and by an event, and ends."""
    folds = Folds()

    async def main() -> tuple[list[str], list[Event]]:
        world = World(1, Limit(unit="requests", amount=100, window="day"), gateways=1)
        other = [Scope(name="tenant:other", limits=(Limit(unit="requests", amount=100, window="day"),))]
        [gateway] = world.gateways
        gateway.start()
        one = Amounts(requests=1)
        said = []

        async def ask(scopes: list[Scope]) -> str:
            before, granted = len(gateway.refused), len(world.book)
            began = asyncio.get_running_loop().time()
            gateway.call(scopes, one, 0.0, 1.0)
            while len(gateway.refused) == before and len(world.book) == granted:
                await asyncio.sleep(0.001)
            assert asyncio.get_running_loop().time() - began < 0.5, "nobody waits for what will not come"
            return gateway.refused[-1] if len(gateway.refused) > before else "granted"

        await asyncio.sleep(5)
        gateway.road.unusable = frozenset({world.rules[0].key})
        for scopes in (world.scopes, other, world.scopes, other):
            said.append(await ask(scopes))
            await asyncio.sleep(3)
        gateway.road.unusable = frozenset()
        await asyncio.sleep(3)
        said.append(await ask(world.scopes))
        assert world.over() == []
        await gateway.stop()
        return said, gateway.events

    said, events = run(main())
    assert said == ["away", "granted", "away", "granted", "granted"]
    told = [event for event in events if isinstance(event, UnusableLimitsChanged)]
    assert [event.num_limits for event in told] == [1, 0]
    folds(told[0])
    assert [s.value for s in decode(encode(folds.samples())) if s.name == UNUSABLE_LIMITS.name] == [1.0]
