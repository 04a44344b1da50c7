"""Embeddings through the gateway: an engine that is lost, a client that leaves, and what is counted."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

BODY = {"model": "org/m", "input": ["ab", "abc"]}


async def embed(world, **changes):
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{world.url}/v1/embeddings", json=BODY | changes) as response,
    ):
        return response.status, await response.json()


def sizes(body):
    return [item["embedding"] for item in body["data"]]


async def test_vectors_and_counts_come_through(start_world):
    """Every input's vector in order, the usage, and one terminal event with the same counts."""
    world = await start_world(1)
    status, body = await embed(world)
    assert (status, sizes(body)) == (200, [[2.0], [3.0]])
    assert body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    [ended] = world.ended
    assert (ended.route, ended.outcome, ended.status) == ("/v1/embeddings", "finished", 200)
    assert (ended.prompt_tokens, ended.cached_tokens, ended.output_tokens, ended.ttft_s) == (5, 1, 0, None)


@pytest.mark.parametrize("how", [{"cut_after": 0}, {"refuse": "draining"}, {"refuse": "overloaded"}])
async def test_a_request_goes_on_at_another_engine(start_world, make_behaviour, how):
    """An engine that breaks off, drains or is full does not end an embedding while another one can take it."""
    world = await start_world(2)
    failing = [make_behaviour(**how)]
    for engine in world.engines:
        engine.behave_embed = lambda request: failing.pop() if failing else make_behaviour()
    status, body = await embed(world)
    assert (status, sizes(body), failing) == (200, [[2.0], [3.0]], [])
    assert [len(engine.embedded) for engine in world.engines] == [1, 1]
    assert [event.outcome for event in world.ended] == ["finished"]


async def test_a_killed_engine_is_waited_for(start_world, make_behaviour, script):
    """With a single engine, killed in the middle and started again, the answer comes all the same."""
    world = await start_world(1)
    [engine] = world.engines
    slow = [make_behaviour(first_s=30)]
    engine.behave_embed = lambda request: slow.pop() if slow else make_behaviour()
    asked = asyncio.create_task(embed(world))
    await script.until(lambda: engine.running == 1)
    await engine.kill()
    await engine.start()
    status, body = await asked
    assert (status, sizes(body)) == (200, [[2.0], [3.0]])


async def test_an_error_of_the_engine_is_the_answer(start_world, make_behaviour):
    """What would be the same anywhere is not tried again."""
    world = await start_world(2)
    for engine in world.engines:
        engine.behave_embed = lambda request: make_behaviour(refuse="not_finite")
    status, body = await embed(world)
    assert (status, body["error"]["code"]) == (500, "not_finite")
    assert sum(len(engine.embedded) for engine in world.engines) == 1
    assert [event.outcome for event in world.ended] == ["failed"]


async def test_a_client_that_leaves_aborts_its_request(start_world, make_behaviour, script):
    """The engine sees the connection go, and the request ends as cancelled, with the tokens that were taken on."""
    world = await start_world(1)
    [engine] = world.engines
    engine.behave_embed = lambda request: make_behaviour(first_s=30)
    asked = asyncio.create_task(embed(world))
    await script.until(lambda: engine.running == 1)
    asked.cancel()
    await script.until(lambda: engine.running == 0 and len(world.ended) == 1)
    assert (world.ended[0].outcome, world.ended[0].status, world.ended[0].prompt_tokens) == ("cancelled", 499, 5)
    assert await world.in_flight() == 0


async def test_a_draining_gateway_refuses_embeddings_too(start_world, script):
    """New embeddings meet the same admission as chats."""
    world = await start_world(1)
    world.states.put_nowait(world.desired(2, admitting=False))
    await script.until(lambda: any(note.version == 2 for note in world.acknowledged))
    status, body = await embed(world)
    assert (status, body["error"]["code"]) == (503, "draining")
