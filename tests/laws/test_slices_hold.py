"""Laws of limits that gateways share: in a simulated world, with the production machines and a store in memory."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest
from slices import World, true_time

from penstock.config.tenants import Limit
from penstock.gateway.limits import Used
from penstock.policy.limit import Amounts
from penstock.sim.loop import run

LIMITS = (
    Limit(unit="requests", amount=300, window="minute"),
    Limit(unit="tokens", amount=9_000, window="minute"),
    Limit(unit="tokens", amount=25_000, window="day"),
    Limit(unit="concurrency", amount=9),
)


def seeds(quick: int, more: int) -> list[Any]:
    """The first are quick; the others are left out of `make test`."""
    return [*range(quick), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(quick, quick + more))]


async def traffic(world: World, seconds: float, calls_per_s: float) -> None:
    """Random calls at random gateways; more than the limits allow."""
    dice = world.dice
    end = true_time() + seconds
    while true_time() < end:
        gateway = dice.choice(world.gateways)
        want = Amounts(requests=1, tokens=dice.randrange(1, 300), concurrency=1)
        gateway.call(world.scopes, want, dice.expovariate(3.0), dice.choice([0.0, 0.3, 1.0]))
        await asyncio.sleep(dice.expovariate(calls_per_s))


async def trouble(world: World, *, forgets: bool) -> None:
    """The store is slow, away, loses answers or restarts; gateways die and others begin, with wrong clocks."""
    dice = world.dice
    while True:
        await asyncio.sleep(dice.expovariate(0.4))
        match dice.choice(["slow", "lose", "kill", "restart", *(["forget"] if forgets else [])]):
            case "slow":
                for gateway in world.gateways:
                    gateway.road.delay_s = dice.choice([0.001, 0.05, 0.4])
            case "lose":
                dice.choice(world.gateways).road.loses = dice.choice([0.0, 0.3])
            case "kill":
                place = dice.randrange(len(world.gateways))
                await world.gateways[place].kill()
                world.gateways[place] = world.gateway(wall_error_s=dice.choice([0, 90_000, -90_000]))
                world.gateways[place].start()
            case "restart":
                world.store.restart()
            case "forget":
                world.store.forget()


async def live(seed: int, seconds: float, *, troubled: bool, forgets: bool = False) -> tuple[World, list[str]]:
    world = World(seed, *LIMITS)
    for gateway in world.gateways:
        gateway.start()
    await asyncio.sleep(1.5)
    found: list[str] = []
    tasks = [asyncio.create_task(world.watch(found))]
    if troubled:
        tasks.append(asyncio.create_task(trouble(world, forgets=forgets)))
    await traffic(world, seconds, 25.0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for gateway in world.gateways:
        await gateway.kill()
    return world, found


@pytest.mark.parametrize("seed", seeds(2, 20))
def test_shared_limits_are_never_exceeded(seed: int) -> None:
    """Whatever is lost, slow or killed: no 60 s, no day and no instant hold more than the limits, over all gateways."""
    world, found = run(live(seed, 120.0, troubled=True))
    assert not found
    assert len(world.book) > 50
    assert any(gateway.refused for gateway in world.gateways)


@pytest.mark.parametrize("seed", seeds(1, 5))
def test_shared_limits_are_reached(seed: int) -> None:
    """Without trouble, who asks for more than there is gets nearly all of it, and seldom waits for the store."""
    world, found = run(live(seed, 100.0, troubled=False))
    assert not found
    requests = [entry.at for entry in world.book]
    fullest = max(sum(begin <= at < begin + 60 for at in requests) for begin in requests)
    tokens = [(entry.at, entry.amounts.tokens) for entry in world.book]
    most = max(sum(n for at, n in tokens if begin <= at < begin + 60) for begin, _ in tokens)
    assert fullest >= 0.9 * 300 or most >= 0.9 * 9_000
    assert {what for gateway in world.gateways for what in gateway.refused} <= {"refused"}


@pytest.mark.parametrize("seed", range(3))
def test_a_store_that_forgets_is_told_again(seed: int) -> None:
    """A restart without memory, while all gateways live, frees nothing: each states what it holds before any gets
    more.
    """

    async def main() -> tuple[World, list[str]]:
        world = World(seed, *LIMITS)
        for gateway in world.gateways:
            gateway.start()
        await asyncio.sleep(1.5)
        found: list[str] = []
        watching = asyncio.create_task(world.watch(found))
        for _ in range(6):
            await traffic(world, world.dice.uniform(1, 6), 25.0)
            world.store.forget()
        await traffic(world, 5, 25.0)
        watching.cancel()
        return world, found

    world, found = run(main())
    assert not found and len(world.book) > 50


def test_a_call_whose_slice_has_room_waits_for_nobody() -> None:
    """At a steady pace nearly no call waits for the store, and the store is asked far less often than calls come."""

    async def main() -> World:
        world = World(1, Limit(unit="tokens", amount=10_000_000, window="minute"), gateways=1)
        [gateway] = world.gateways
        gateway.start()
        await asyncio.sleep(1.5)
        for _ in range(2000):
            gateway.call(world.scopes, Amounts(tokens=300), 0.05, 0.5)
            await asyncio.sleep(0.01)
        return world

    world = run(main())
    [gateway] = world.gateways
    assert len(world.book) == 2000 and gateway.waited < 40
    assert gateway.road.asked < 400


def test_a_store_that_is_away_leaves_the_slices_that_are_held() -> None:
    """Then calls are refused, at once after a second, and taken again as soon as the store is back."""

    async def main() -> None:
        world = World(2, Limit(unit="requests", amount=600, window="minute"), gateways=2)
        one, other = world.gateways
        for gateway in world.gateways:
            gateway.start()
        await asyncio.sleep(1.5)
        for _ in range(100):
            one.call(world.scopes, Amounts(requests=1), 0.01, 1)
            await asyncio.sleep(0.02)
        assert len(world.book) == 100
        one.road.away = other.road.away = True
        for _ in range(300):
            one.call(world.scopes, Amounts(requests=1), 0.01, 1)
            await asyncio.sleep(0.02)
        held = len(world.book) - 100
        assert 0 < held <= 110 and set(one.refused) == {"away"}
        began = true_time()
        one.call(world.scopes, Amounts(requests=1), 0.01, 1)
        await asyncio.gather(*one.calls)
        assert true_time() - began < 0.001
        one.road.away = other.road.away = False
        await asyncio.sleep(0.5)
        before = len(world.book)
        one.call(world.scopes, Amounts(requests=1), 0.01, 1)
        await asyncio.sleep(0.1)
        assert len(world.book) == before + 1
        assert not world.over()
        for gateway in world.gateways:
            await gateway.stop()

    run(main())


def test_a_gateway_that_dies_loses_at_most_its_slice() -> None:
    """What it had granted counts for its minute, and what it had not for little longer; then all is whole again."""

    async def main() -> None:
        world = World(3, Limit(unit="tokens", amount=10_000, window="minute"), Limit(unit="concurrency", amount=5))
        for gateway in world.gateways:
            gateway.start()
        await asyncio.sleep(1.5)
        victim = world.gateways[0]
        for _ in range(5):
            victim.call(world.scopes, Amounts(tokens=100, concurrency=1), 1000, 1)
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)
        await victim.kill()
        one = world.gateways[1]
        one.call(world.scopes, Amounts(tokens=1, concurrency=1), 0.1, 1)
        await asyncio.sleep(0.05)
        assert one.refused == ["refused"], "its running calls still count"
        await asyncio.sleep(11)
        for _ in range(5):
            one.call(world.scopes, Amounts(tokens=1, concurrency=1), 1000, 1)
        await asyncio.sleep(0.1)
        assert one.refused == ["refused"]
        await asyncio.sleep(75)
        assert world.store.held("tenant:t|tokens|minute|") <= 100
        for gateway in world.gateways[1:]:
            await gateway.kill()

    run(main())


def test_what_the_ledger_knows_is_told_once() -> None:
    """A store that began within a day is told what was used before by writers that are gone, and told it only once."""

    async def main() -> None:
        world = World(4, Limit(unit="tokens", amount=1000, window="day"), gateways=2)
        for gateway in world.gateways:
            gateway.start([Used("gone", "tenant:t", "m", Amounts(tokens=700))])
        await asyncio.sleep(1.5)
        for gateway in world.gateways * 4:
            gateway.call(world.scopes, Amounts(tokens=100), 0.01, 1)
            await asyncio.sleep(0.2)
        assert sum(entry.amounts.tokens for entry in world.book) == 300
        late = world.gateway()
        late.start(
            [Used("gone", "tenant:t", "m", Amounts(tokens=700)), Used("g1", "tenant:t", "m", Amounts(tokens=99))]
        )
        late.call(world.scopes, Amounts(tokens=100), 0.01, 1)
        await asyncio.sleep(1.5)
        assert late.refused == ["refused"]
        world.store.forget()
        await asyncio.sleep(2.5)
        late.call(world.scopes, Amounts(tokens=100), 0.01, 1)
        await asyncio.sleep(1.5)
        assert late.refused == ["refused", "refused"]
        for gateway in [*world.gateways, late]:
            await gateway.stop()

    run(main())


def test_a_world_is_replayed_by_its_seed() -> None:
    """So that a failing seed is the whole report of the failure."""
    one, _ = run(live(7, 10.0, troubled=True, forgets=True))
    other, _ = run(live(7, 10.0, troubled=True, forgets=True))
    assert [entry.at for entry in one.book] == [entry.at for entry in other.book]
    assert isinstance(one.dice, Random)
