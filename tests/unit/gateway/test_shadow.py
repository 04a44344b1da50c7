"""Copies leave as soon as somebody has to wait, and when the gateway goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from gateways import Engines, House

from penstock.config.names import Shadow
from penstock.config.tenants import LEAST_URGENT
from penstock.events.list import ShadowEnded
from penstock.gateway.call import Call
from penstock.gateway.shadow import Shadows
from penstock.wire.engine import Event, GenerateRequest, Sampling


class Recorder(Engines):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[GenerateRequest] = []

    async def batches(self, request: GenerateRequest) -> AsyncGenerator[list[Event], None]:
        self.asked.append(request)
        async for events in super().batches(request):
            yield events


def start_copies(house: House, count: int) -> Shadows:
    stages = house.gateway.stages
    shadows = Shadows(stages.forward, house.replicas, stages.limit, house.clock, house.events.append)
    for number in range(count):
        call = Call(id=str(number), route="/v1/completions", started=0.0, model="m", shadow=Shadow(model="m"))
        request = GenerateRequest(id=call.id, sampling=Sampling(seed=1), text="x")
        shadows.copy(call, [request], 1)
        shadows.copy(call, [request], 1)
    return shadows


async def test_a_request_that_has_to_wait_ends_every_copy() -> None:
    """Before the first request waits, three copies run, one per call; once it does, none; and each says so once."""
    house = House(kv_tokens=100, engines=Engines(num_tokens=10**9))
    shadows = start_copies(house, 3)
    await asyncio.sleep(0.01)
    assert shadows.in_flight == 3
    limit = house.gateway.stages.limit
    calls = [Call(id=f"c{number}", route="/", started=0.0, model="m") for number in range(2)]
    await limit.enter(calls[0], 10_000)
    assert shadows.in_flight == 3
    waiting = asyncio.create_task(limit.enter(calls[1], 10_000))
    await asyncio.sleep(0.01)
    assert shadows.in_flight == 0 and limit.num_waiting == 1
    ended = [event for event in house.events if isinstance(event, ShadowEnded)]
    assert [event.outcome for event in ended] == ["cancelled"] * 3
    assert all(state.outstanding_requests == 0 for state in house.replicas.models[0].replicas)
    waiting.cancel()


async def test_a_request_counts_by_its_choices() -> None:
    """Of eight choices at a time one request has five; the next one's five are too many, three more are not."""
    house = House(engines=Engines(num_tokens=10**9))
    stages = house.gateway.stages
    shadows = Shadows(stages.forward, house.replicas, stages.limit, house.clock, house.events.append)
    copied = []
    for number, count in enumerate((5, 5, 3, 1)):
        call = Call(id=str(number), route="/", started=0.0, model="m", shadow=Shadow(model="m", max_in_flight=8))
        choices = [GenerateRequest(id=f"{number}.{i}", sampling=Sampling(seed=1), text="x") for i in range(count)]
        shadows.copy(call, choices, 1)
        copied.append(shadows.in_flight)
    assert copied == [1, 1, 2, 2]
    await shadows.close()


async def test_a_gateway_that_ends_leaves_no_copy_behind() -> None:
    """Closing waits until every copy has given its replica back."""
    house = House(engines=Engines(num_tokens=10**9))
    shadows = start_copies(house, 2)
    await asyncio.sleep(0.01)
    await shadows.close()
    assert shadows.in_flight == 0
    assert all(state.outstanding_requests == 0 for state in house.replicas.models[0].replicas)


async def test_a_copy_has_nobodys_place_at_its_engine() -> None:
    """Whatever its request was allowed, the copy is of the least urgent class and takes nothing of its tenant's share.

    Its prefixes are still cached apart from those of other tenants.
    """
    engines = Recorder()
    house = House(engines=engines)
    stages = house.gateway.stages
    shadows = Shadows(stages.forward, house.replicas, stages.limit, house.clock, house.events.append)
    call = Call(id="1", route="/v1/completions", started=0.0, model="m", shadow=Shadow(model="m"))
    request = GenerateRequest(
        id="1", sampling=Sampling(seed=1), text="x", tenant="t", cache_salt="tenant:t", weight=50.0, priority=-3
    )
    shadows.copy(call, [request], 1)
    while shadows.in_flight:
        await asyncio.sleep(0)
    [copy] = engines.asked
    assert (copy.priority, copy.tenant, copy.weight, copy.cache_salt) == (LEAST_URGENT, "", 1.0, "tenant:t")
