"""A replica that says it is ready and breaks whatever it takes up is left out."""

from __future__ import annotations

import aiohttp

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
