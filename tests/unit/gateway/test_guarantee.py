"""A response says what happens to it where an engine is lost on the way."""

from __future__ import annotations

import aiohttp
import pytest

BODY = {"model": "org/m", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}


@pytest.mark.parametrize("stream", [True, False])
async def test_the_guarantee_is_the_weakest_replica_s(start_world, script, stream):
    """``exact`` only while every replica is; else what was sent is kept and a valid continuation follows."""
    world = await start_world(2)
    seen = []
    async with aiohttp.ClientSession() as session:
        for exact in ([True, True], [True, False]):
            for engine, one in zip(world.engines, exact, strict=True):
                engine.exact = one
            wanted = "exact" if all(exact) else "prefix-preserved"

            async def says(wanted: str = wanted) -> bool:
                async with session.post(f"{world.url}/v1/chat/completions", json=BODY | {"stream": stream}) as answer:
                    seen.append(answer.headers["x-penstock-resume"])
                    await answer.read()
                return bool(seen[-1] == wanted)

            await script.until(says)
    assert set(seen) == {"exact", "prefix-preserved"}
