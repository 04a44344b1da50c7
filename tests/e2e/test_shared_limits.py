"""Limits of three gateway processes that share a real Redis, while gateways and Redis are killed, slow or away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
from redis_server import RedisServer, SlowProxy, redis_server
from shared_fleet import Answer, GatewayLife, SharedFleet, shared_fleet

from penstock.cluster.drivers.probe import ask
from penstock.config.mock import MockScript
from penstock.config.tenants import Limit
from penstock.observe.samples import decode
from penstock.wire.gateway import METRICS

pytestmark = [pytest.mark.debian, pytest.mark.slow, pytest.mark.timeout(300)]
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
AT_A_TIME = 8
LESS_THAN_A_REQUEST = 120
"""Tokens: a request of ``fleet.ask`` is reserved by its some 100 bytes and 20 tokens of output, and uses fewer."""
SCRIPT = MockScript(ttft_s=0.01, gap_s=0.001)


def per(window: str, amount: float, unit: str = "tokens") -> Limit:
    return Limit(unit=unit, amount=amount, window=window)  # type: ignore[arg-type]


@asynccontextmanager
async def running(tmp_path: Path, *limits: Limit, **more) -> AsyncIterator[tuple[SharedFleet, RedisServer, SlowProxy]]:
    """Everything started; a proxy lies between the gateways and Redis."""
    with redis_server(tmp_path) as server:
        proxy = SlowProxy(server.port)
        port = await proxy.start()
        async with shared_fleet(tmp_path, f"redis://127.0.0.1:{port}/0", script=SCRIPT, **more) as fleet:
            fleet.issue("team", *limits)
            for gateway in fleet.gateways:
                gateway.start()
            for gateway in fleet.gateways:
                await fleet.ready(gateway)
            try:
                yield fleet, server, proxy
            finally:
                await proxy.stop()


async def until(condition: Callable[[], bool], within_s: float, what: str) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.05)


async def traffic(fleet: SharedFleet, dice: Random, per_s: float) -> None:
    """Until cancelled: requests at random gateways."""
    asking: set[asyncio.Task[Answer]] = set()
    try:
        while True:
            gateway = dice.choice(fleet.gateways)
            task = asyncio.create_task(
                fleet.ask(
                    gateway, fleet.keys["team"], max_tokens=dice.randrange(1, 40), content="x" * dice.randrange(60)
                )
            )
            asking.add(task)
            task.add_done_callback(asking.discard)
            await asyncio.sleep(dice.expovariate(per_s))
    finally:
        await asyncio.gather(*asking)


async def trouble(fleet: SharedFleet, server: RedisServer, proxy: SlowProxy, dice: Random, kinds: str) -> int:
    """Some of it; how many requests may be in no book: those that ran at a gateway when it was killed."""
    unbooked = 0
    for number in range(6):
        await asyncio.sleep(dice.uniform(0.3, 1.2))
        kind = kinds.split()[number % len(kinds.split())]
        if kind == "gateway":
            gateway = dice.choice(fleet.gateways)
            unbooked += AT_A_TIME
            gateway.kill()
            gateway.start()
            await fleet.ready(gateway)
        elif kind == "slow":
            proxy.delay_s = dice.choice([0.0, 0.02, 0.15])
        elif kind == "redis":
            server.kill()
            await asyncio.sleep(dice.uniform(0, 1.5))
            server.start()
    proxy.delay_s = 0.0
    return unbooked if "redis" in kinds else 0


def used_up(fleet: SharedFleet) -> bool:
    """The last answers are refusals for what a minute may have, at every gateway.

    Refusals for too many at a time say nothing: places of killed gateways stay taken until their lease ends.
    """
    last = fleet.answers[-40:]
    spent = (a.code == "rate_limit_exceeded" and "minute" in a.message for a in last)
    return len({a.life for a in last}) == 3 and all(spent)


@pytest.mark.parametrize("kinds", ["gateway slow gateway", "redis slow redis", "gateway redis slow"])
async def test_no_limit_is_exceeded_whoever_dies(tmp_path: Path, kinds: str) -> None:
    """Requests, tokens and running requests over three gateways stay within their limits and reach them, while
    processes are killed and Redis is slow, restarts empty, or is gone.
    """
    dice = Random(kinds)
    requests, tokens = 300, 40_000
    limits = per("minute", requests, "requests"), per("minute", tokens), Limit(unit="concurrency", amount=AT_A_TIME)
    async with running(tmp_path, *limits, per("day", 200_000)) as (fleet, server, proxy):
        watching = asyncio.create_task(fleet.watch_engine())
        asking = asyncio.create_task(traffic(fleet, dice, 40.0))
        unbooked = await trouble(fleet, server, proxy, dice, kinds)
        await until(lambda: used_up(fleet), 60, "the limit is used up")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        over = fleet.over(requests, lambda answer: 1)
        print(f"{kinds}: {len(fleet.answers)} asked, {over:+d} of {requests}, {unbooked} may be in no book")
        assert over <= unbooked and fleet.over(tokens, lambda answer: answer.tokens) <= 0
        # A gateway that is killed keeps its slice for a minute, at most an eighth of what was left.
        kept = 1 - (7 / 8) ** (2 * kinds.split().count("gateway"))
        assert over >= -max(0.15, kept) * requests
        assert 0 < fleet.most_running <= AT_A_TIME
        assert {answer.status for answer in fleet.answers} <= {0, 200, 429, 503}
        refused = [answer for answer in fleet.answers if answer.status in (429, 503)]
        assert all(answer.retry_after and int(answer.retry_after) >= 1 for answer in refused)


async def test_without_redis_requests_are_refused_honestly_and_taken_again(tmp_path: Path) -> None:
    """What the slices hold is answered, then 503 with a reason; the gateway stays ready, and who has no limits goes
    on; once Redis is back, all do.
    """
    async with running(tmp_path, per("minute", 5000, "requests")) as (fleet, server, _):
        free = fleet.issue("free")
        key, gateway = fleet.keys["team"], fleet.gateways[0]
        await until_status(fleet, gateway, free, 200)
        for _ in range(40):
            assert (await fleet.ask(gateway, key)).status == 200
        server.kill()
        answers = [await fleet.ask(gateway, key) for _ in range(400)]
        refused = [answer for answer in answers if answer.status != 200]
        assert refused and {(a.status, a.code) for a in refused} == {(503, "limits_unavailable")}
        assert all(answer.retry_after == "1" for answer in refused)
        assert len(answers) - len(refused) <= 200
        late = await fleet.ask(gateway, key)
        assert late.ended - late.began < 0.5, "it is known that Redis is away, and not waited for"
        assert (await fleet.ask(gateway, free)).status == 200
        await fleet.ready(gateway)
        assert await shared(gateway) == [0.0]
        server.start()
        await until_status(fleet, gateway, key, 200)
        assert await shared(gateway) == [1.0]
        log = (fleet.home / "g0.log").read_text()
        assert "limits go by the slices that are held" in log and "limits are shared again" in log


async def shared(gateway: GatewayLife) -> list[float]:
    """What the gateway says of whether it shares its limits."""
    body = await ask(str(gateway.fleet.home / f"{gateway.name}.sock"), METRICS, 5.0)
    assert body is not None
    return [sample.value for sample in decode(body) if sample.name == "penstock_limits_shared"]


async def until_status(fleet: SharedFleet, gateway, key: str, status: int) -> None:
    deadline = time.monotonic() + 20
    while (await fleet.ask(gateway, key)).status != status:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def test_a_wrong_clock_begins_no_new_day(tmp_path: Path) -> None:
    """A gateway whose machine is two days ahead takes from the same day as the others, which is Redis'."""
    if not FAKETIME.exists():
        pytest.skip("libfaketime is not installed")
    ahead = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": "+2d", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    async with running(tmp_path, per("day", 1000), env=ahead) as (fleet, _, _):
        key = fleet.keys["team"]
        for _ in range(60):
            for gateway in fleet.gateways:
                await fleet.ask(gateway, key, max_tokens=20)
        used = sum(answer.tokens for answer in fleet.answers)
        assert 1000 - 3 * LESS_THAN_A_REQUEST <= used <= 1000, "a rest too small for one more at each gateway"
        assert {answer.life for answer in fleet.answers if answer.status == 200} == {"g0.1", "g1.1", "g2.1"}


async def test_a_redis_without_memory_learns_the_day_from_the_ledger(tmp_path: Path) -> None:
    """All gateways and Redis end after a part of the day's limit was used; new ones grant only what was left."""
    async with running(tmp_path, per("day", 1000)) as (fleet, server, _):
        key = fleet.keys["team"]
        while sum(answer.tokens for answer in fleet.answers) < 500:
            assert (await fleet.ask(fleet.gateways[0], key, max_tokens=20)).status == 200
        before = sum(answer.tokens for answer in fleet.answers)
        for gateway in fleet.gateways:
            gateway.kill()
        server.kill()
        server.start()
        for gateway in fleet.gateways:
            gateway.start()
        for gateway in fleet.gateways:
            await fleet.ready(gateway)
        for _ in range(60):
            await fleet.ask(fleet.gateways[1], key, max_tokens=20)
        after = sum(answer.tokens for answer in fleet.answers)
        assert before < after <= 1000 and after >= 1000 - LESS_THAN_A_REQUEST
