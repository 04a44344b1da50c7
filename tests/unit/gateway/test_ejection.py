"""A replica that says it is ready and breaks whatever it takes up is left out."""

from __future__ import annotations

import asyncio

import aiohttp
import msgspec

BODY = {"model": "org/m", "messages": [{"role": "user", "content": "a"}], "max_tokens": 6}


async def test_a_replica_that_keeps_failing_is_left_out(start_world, make_behaviour):
    """Every answer is whole, and after its third failure in a row the bad replica is asked no more for a while."""
    world = await start_world(2)
    bad, good = world.engines
    bad.behave = lambda request: make_behaviour(cut_after=1)
    async with aiohttp.ClientSession() as session:

        async def ask() -> None:
            async with session.post(f"{world.url}/v1/chat/completions", json=BODY) as answer:
                assert answer.status == 200
                assert (await answer.json())["usage"]["completion_tokens"] == 6

        for _ in range(200):
            await ask()
            if len(bad.requests) == 3:
                break
        assert len(bad.requests) == 3
        before = len(good.requests)
        for _ in range(15):
            await ask()
    assert len(bad.requests) <= 4 and len(good.requests) >= before + 15


async def test_a_replica_on_trial_gets_one_sequence_until_its_first_token(start_world, make_behaviour, script):
    """After its time out, one request tries it; while that one waits for its first token, the others go elsewhere."""
    world = await start_world(2)
    bad, good = world.engines
    bad.behave = lambda request: make_behaviour(cut_after=1)
    async with aiohttp.ClientSession() as session:

        async def ask() -> None:
            async with session.post(f"{world.url}/v1/chat/completions", json=BODY) as answer:
                assert answer.status == 200

        for _ in range(200):
            await ask()
            if len(bad.requests) == 3:
                break
        bad.behave = lambda request: make_behaviour(first_s=2.0)
        while bad.running == 0:
            trying = [asyncio.create_task(ask()) for _ in range(4)]
            await asyncio.sleep(0.1)
        assert bad.running == 1
        await asyncio.gather(*[ask() for _ in range(12)])
        assert len(bad.requests) == 4
        bad.behave = lambda request: make_behaviour()
        await asyncio.gather(*trying)

        async def is_well() -> bool:
            await asyncio.gather(ask(), ask())
            return len(bad.requests) > 5

        await script.until(is_well)


async def test_no_replica_has_more_than_its_most(start_world, make_behaviour, script):
    """Sequences beyond the most wait until one has ended; where that takes too long, the service is overloaded."""
    world = await start_world(1)
    engine = world.engines[0]
    model = world.desired(2).models[0]
    world.states.put_nowait(world.desired(2, models=[msgspec.structs.replace(model, max_concurrent=2)]))
    await script.until(lambda: world.acknowledged[-1].version == 2)
    engine.behave = lambda request: make_behaviour(first_s=0.2)
    most = 0

    async def ask(session: aiohttp.ClientSession) -> int:
        nonlocal most
        async with session.post(f"{world.url}/v1/chat/completions", json=BODY) as answer:
            most = max(most, engine.running)
            await answer.read()
            return answer.status

    async with aiohttp.ClientSession() as session:
        assert await asyncio.gather(*[ask(session) for _ in range(8)]) == [200] * 8
        assert most <= 2
        engine.behave = lambda request: make_behaviour(first_s=30.0)
        holding = [asyncio.create_task(ask(session)) for _ in range(2)]
        await script.until(lambda: engine.running == 2)
        async with session.post(f"{world.url}/v1/chat/completions", json=BODY) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (503, "overloaded")
        for task in holding:
            task.cancel()
