"""Waiting for a turn at engines that have no room."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from gateways import Engines, House

from penstock.config.desired import DesiredState
from penstock.gateway.call import ClientGone
from penstock.gateway.identify import Credentials
from penstock.gateway.queue import Queue
from penstock.policy.admit import AdmitRules
from penstock.wire.errors import Problem

COST = 5 + 10
"""Estimated tokens of a request of 20 bytes that may answer 10."""


def busy(num_at_a_time: int, **rules: Any) -> House:
    """Room for so many requests at a time."""
    kv_tokens = num_at_a_time * COST // 2 + 1
    return House(kv_tokens=kv_tokens, engines=Engines(num_tokens=10), admit=AdmitRules(**rules))


async def ask(house: House, key: str, **changes):
    return await house.ask(body_bytes=20, max_tokens=10, key=key, **changes)


async def test_no_more_run_than_there_is_room_for() -> None:
    """However many come, the engines hold what their caches have room for, and all are answered."""
    house = busy(4)
    most = 0

    def watch(call: object) -> None:
        nonlocal most
        most = max(most, sum(state.outstanding_requests for state in house.replicas.models[0].replicas))

    await asyncio.gather(*[ask(house, "a", watch=watch) for _ in range(40)])
    assert 3 <= most <= 4
    assert [ended.outcome for ended in house.ended] == ["finished"] * 40
    assert house.gateway.in_flight == 0


async def test_tenants_share_by_weight() -> None:
    """While both wait, a tenant of three times the weight has about three times as many answers."""
    house = busy(2)
    order: list[str] = []

    async def one(key: str) -> None:
        await ask(house, key)
        order.append(key)

    await asyncio.gather(*[one("a") for _ in range(40)], *[one("b") for _ in range(40)])
    first = order[:40]
    assert 26 <= first.count("b") <= 34, first


async def test_a_client_that_leaves_the_queue_holds_nobody_up() -> None:
    """Cancelled while it waits or at the moment of its turn, a request leaves its room to the next."""
    house = busy(1)
    tasks = [asyncio.create_task(ask(house, "a")) for _ in range(30)]
    for number, task in enumerate(tasks):
        for _ in range(number % 7):
            await asyncio.sleep(0)
        if number % 3:
            task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, dict | asyncio.CancelledError) for result in results)
    async with asyncio.timeout(5):
        await ask(house, "a")
        with pytest.raises(ClientGone):
            await ask(house, "a", leave_after=2)
        await ask(house, "a")
    assert house.gateway.in_flight == 0


async def test_a_full_queue_refuses_with_the_time_to_wait() -> None:
    """What the queue has no place for is refused at once, and may be tried again."""
    house = busy(1, max_waiting=3)
    results = await asyncio.gather(*[ask(house, "a") for _ in range(6)], return_exceptions=True)
    refused = [result for result in results if isinstance(result, Problem)]
    assert [problem.code for problem in refused] == ["overloaded"] * 2
    assert all(problem.retry_after_s is not None and problem.retry_after_s >= 1 for problem in refused)
    assert [ended.outcome for ended in house.ended].count("rejected") == 2


async def test_a_tenant_that_floods_makes_room_for_another() -> None:
    """Of a full queue the flood's last request is told to come later, as its tenant's own doing."""
    house = busy(1, max_waiting=4)
    tasks = [asyncio.create_task(ask(house, "a")) for _ in range(5)]
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(ask(house, "b")))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[5], dict)
    [shed] = [result for result in results[:5] if isinstance(result, Problem)]
    assert shed.code == "rate_limit_exceeded" and shed.retry_after_s is not None


async def test_nobody_waits_longer_than_the_bound() -> None:
    """A request whose turn does not come in time is refused, and leaves nothing behind."""
    house = busy(1, max_wait_s=0.05)
    gate = asyncio.Event()

    async def hold() -> None:
        with house.gateway.open("/v1/chat/completions", Credentials(authorization=b"a")) as call:
            house.gateway.find(call, "m")
            await house.gateway.stages.limit.enter(call, COST)
            await gate.wait()

    holder = asyncio.create_task(hold())
    await asyncio.sleep(0)
    with pytest.raises(Problem, match=r"no room within 0\.05 s"):
        await ask(house, "a")
    gate.set()
    await holder
    await ask(house, "a")


async def test_a_model_that_is_served_no_more_leaves_nobody_waiting() -> None:
    """Whoever waited for it is told that it is not there, and whoever runs ends in peace."""
    house = busy(1)
    tasks = [asyncio.create_task(ask(house, "a")) for _ in range(5)]
    for _ in range(4):
        await asyncio.sleep(0)
    house.replicas.adopt(DesiredState(version=2, models=[]))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], dict)
    assert {result.code for result in results[1:] if isinstance(result, Problem)} == {"model_not_found"}
    assert house.gateway.in_flight == 0


async def test_idle_time_says_nothing_of_the_speed() -> None:
    """After an hour with a request a minute, a burst is queued: what left was all that was asked for."""
    house = busy(1)
    for _ in range(60):
        house.clock.pass_time(60)
        await ask(house, "a")
    await asyncio.gather(*[ask(house, "a") for _ in range(30)])
    assert {ended.outcome for ended in house.ended} == {"finished"}


async def test_the_speed_is_known_from_the_first_seconds_on() -> None:
    """After two seconds of a full queue, what is refused is told the time that the queue takes at that speed."""
    house = busy(1)
    queue = Queue(lambda: 100, house.clock, AdmitRules(max_wait_s=10.0))
    entering = [asyncio.create_task(queue.enter(str(number), house.principal, 100)) for number in range(4)]
    for number in range(2):
        await asyncio.sleep(0)
        house.clock.pass_time(1.0)
        queue.leave(str(number))
    await asyncio.sleep(0)
    more = [asyncio.create_task(queue.enter(str(number), house.principal, 100)) for number in range(4, 13)]
    await asyncio.sleep(0)
    with pytest.raises(Problem, match="its turn would come in 11 s") as refused:
        await queue.enter("last", house.principal, 100)
    assert refused.value.retry_after_s == pytest.approx(10.0)
    for task in (*entering, *more):
        task.cancel()
    await asyncio.gather(*entering, *more, return_exceptions=True)
