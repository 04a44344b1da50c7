"""More work than there is room for, at a real gateway before a mock engine: shares, classes, honest refusals."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from shared_fleet import Answer, SharedFleet, shared_fleet

from penstock.config.mock import MockScript
from penstock.config.tenants import Limit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@asynccontextmanager
async def one_gateway(tmp_path: Path, script: MockScript, **tenants: float) -> AsyncIterator[SharedFleet]:
    """A gateway by itself; ``tenants`` with their weights."""
    async with shared_fleet(tmp_path, "", gateways=1, script=script) as fleet:
        for name, weight in tenants.items():
            fleet.issue(name, weight=weight)
        fleet.gateways[0].start()
        await fleet.ready(fleet.gateways[0])
        yield fleet


def room_for(num_at_a_time: int, seconds: float) -> MockScript:
    """An engine that holds so many requests of 20 tokens, each for so long."""
    return MockScript(ttft_s=seconds, kv_tokens=num_at_a_time * 24, output_tokens=1000)


async def ask(fleet: SharedFleet, tenant: str, **fields) -> Answer:
    return await fleet.ask(fleet.gateways[0], fleet.keys[tenant], max_tokens=20, **fields)


async def test_tenants_share_by_weight(tmp_path: Path) -> None:
    """While both have something waiting, a tenant of three times the weight gets three times the answers."""
    async with one_gateway(tmp_path, room_for(4, 0.1), light=1.0, heavy=3.0) as fleet:
        order: list[str] = []

        async def one(tenant: str) -> None:
            assert (await ask(fleet, tenant)).status == 200
            order.append(tenant)

        await asyncio.gather(*[one("light") for _ in range(60)], *[one("heavy") for _ in range(60)])
        heavy = order[8:68].count("heavy")
        print(f"of 60 answers while both waited, {heavy} were the heavy tenant's")
        assert 40 <= heavy <= 50


async def test_the_less_urgent_wait_and_are_not_starved(tmp_path: Path) -> None:
    """Under a flood of class 0, a request of class 1 waits longer than one of class 0, and no longer than its age
    allows; nobody asks for a class above their key's.
    """
    async with one_gateway(tmp_path, room_for(4, 0.1), flood=1.0, other=1.0) as fleet:
        stopped = False

        async def flood() -> None:
            while not stopped:
                assert (await ask(fleet, "flood")).status == 200

        flooding = [asyncio.create_task(flood()) for _ in range(20)]
        await asyncio.sleep(1)
        urgent = await ask(fleet, "other")
        later = await ask(fleet, "other", priority=1)
        stopped = True
        await asyncio.gather(*flooding)
        print(f"class 0 took {urgent.ended - urgent.began:.2f} s, class 1 {later.ended - later.began:.2f} s")
        assert urgent.status == later.status == 200
        assert urgent.ended - urgent.began < 2.5
        assert 3.0 < later.ended - later.began < 10.0
        refused = await ask(fleet, "other", priority=-1)
        assert (refused.status, refused.code) == (403, "permission_denied")


async def test_a_refusal_says_when_the_queue_will_be_gone(tmp_path: Path) -> None:
    """What would wait too long is refused at once with 503, and its retry-after is about what the queue then takes."""
    async with one_gateway(tmp_path, room_for(4, 0.2), busy=1.0) as fleet:
        await asyncio.gather(*[ask(fleet, "busy") for _ in range(60)])  # the speed is learned
        waiting = [asyncio.create_task(ask(fleet, "busy")) for _ in range(900)]
        while not any(task.done() and task.result().status == 503 for task in waiting):
            await asyncio.sleep(0.05)
        refused = next(task.result() for task in waiting if task.done() and task.result().status == 503)
        answers = await asyncio.gather(*waiting)
        assert {answer.status for answer in answers} == {200, 503}
        assert {answer.code for answer in answers if answer.status == 503} == {"overloaded"}
        took = max(answer.ended for answer in answers if answer.status == 200) - refused.ended
        said = int(refused.retry_after or 0)
        print(f"retry-after {said} s, the queue was gone after {took:.1f} s")
        assert refused.ended - refused.began < 5 and 0.5 * took <= said <= 2 * took
        assert (await ask(fleet, "busy")).status == 200


async def test_limits_catch_up_when_the_store_comes_back(tmp_path: Path) -> None:
    """A gateway that starts while the store is away admits known keys, and counts what the ledger knows of the day as
    soon as the store is back.
    """
    async with shared_fleet(tmp_path, "", gateways=1) as fleet:
        key = fleet.issue("team", Limit(unit="tokens", amount=1000, window="day"))
        [gateway] = fleet.gateways
        gateway.start()
        await fleet.ready(gateway)
        while sum(answer.tokens for answer in fleet.answers) < 600:
            assert (await fleet.ask(gateway, key, max_tokens=20)).status == 200
        before = sum(answer.tokens for answer in fleet.answers)
        while any((tmp_path / "usage").rglob("*.usage")):
            await asyncio.sleep(0.1)
        gateway.kill()
        database = tmp_path / "penstock.sqlite"
        aside = tmp_path / "aside"
        aside.mkdir()
        for file in tmp_path.glob("penstock.sqlite*"):
            shutil.move(file, aside)
        database.write_text("this is no database" * 1000)
        began = time.monotonic()
        gateway.start()
        await fleet.ready(gateway)
        assert time.monotonic() - began > 3
        away = await fleet.ask(gateway, key, max_tokens=20)
        assert away.status == 200 and int(away.headers["x-ratelimit-remaining-tokens"]) > 1000 - before
        database.unlink()
        for file in aside.iterdir():
            shutil.move(file, tmp_path)
        deadline = time.monotonic() + 20
        while True:
            answer = await fleet.ask(gateway, key, max_tokens=1)
            used = sum(answer.tokens for answer in fleet.answers)
            if int(answer.headers["x-ratelimit-remaining-tokens"]) <= 1000 - before:
                break
            assert time.monotonic() < deadline, json.dumps(answer.headers)
            await asyncio.sleep(0.2)
        while (await fleet.ask(gateway, key, max_tokens=20)).status == 200:
            pass
        used = sum(answer.tokens for answer in fleet.answers)
        assert 900 <= used <= 1000
