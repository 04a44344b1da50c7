"""Why a request went as it did can be asked afterwards, with the numbers that decided it."""

from __future__ import annotations

import aiohttp
import pytest

from penstock.gateway.call import Call
from penstock.gateway.explain import Recent, explain
from penstock.wire.engine import Finished, Usage, Waits
from penstock.wire.errors import Problem

BODY = {"model": "org/m", "messages": [{"role": "user", "content": "a b"}], "seed": 3, "max_tokens": 8}


async def ask(world, id):
    connector = aiohttp.UnixConnector(path=world.control_socket)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(f"http://gateway/gateway/explain/{id}") as answer,
    ):
        return answer.status, await answer.json()


async def test_a_resumed_request_tells_its_whole_way(start_world, make_behaviour):
    """Where it went and why, that its engine was lost, where it went on, and how it ended; by either id."""
    world = await start_world(2)
    cuts = [make_behaviour(cut_after=3)]
    for engine in world.engines:
        engine.behave = lambda request: cuts.pop() if cuts else make_behaviour()
    headers = {"x-request-id": "mine-1"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{world.url}/v1/chat/completions", json=BODY, headers=headers) as answer,
    ):
        id = (await answer.json())["id"]
    status, told = await ask(world, id)
    assert status == 200 and (told["model"], told["request_id"]) == ("org/m", "mine-1")
    assert [step["stage"] for step in told["steps"]] == ["identify", "route", "retry", "route", "meter"]
    words = [step["why"] for step in told["steps"]]
    assert "fewest outstanding tokens" in words[1]
    assert "engine_lost" in words[2] and "after 3 tokens" in words[2]
    assert words[1].split(":")[0] != words[3].split(":")[0]
    assert "finished with status 200" in words[4] and "8 out" in words[4]
    assert (await ask(world, "mine-1"))[1] == told


async def test_a_refused_request_says_what_was_wrong(start_world):
    """The error's own words are part of the answer."""
    world = await start_world(1)
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{world.url}/v1/chat/completions", json=BODY | {"model": "nope"}, headers={"x-request-id": "mine-2"}
        ) as answer,
    ):
        assert answer.status == 404
    _, told = await ask(world, "mine-2")
    assert "rejected with status 404: model_not_found" in told["steps"][-1]["why"]
    assert (await ask(world, "unheard-of"))[0] == 404


def test_only_the_last_calls_are_remembered():
    """Memory is bounded: the oldest goes first."""
    recent = Recent(max_calls=2)
    for number in range(3):
        recent.add(Call(id=str(number), route="/", started=0.0))
    assert recent.find("2").id == "2" and recent.find("chatcmpl-1").id == "1"
    with pytest.raises(Problem, match="the last 2 requests"):
        recent.find("0")


def test_what_a_sequence_waited_for_in_its_engine_is_told():
    """Each cause with its seconds, the longest first; what is left are others' turns."""
    call = Call(id="1", route="/", started=10.0)
    waits = Waits(queued_s=2.0, held={"blocks": 0.5, "sequences": 1.0}, preemptions=1)
    call.note(0, [Finished(reason="stop", usage=Usage(prompt=1), waits=waits)], 14.0)
    call.note(1, [Finished(reason="stop", usage=Usage(prompt=1))], 15.0)
    told = [step for step in explain(call).steps if step.stage == "batch"]
    assert [(step.at_s, step.why) for step in told] == [
        (
            4.0,
            "waited 2 s in the engine: 1 s for a place among those that run, 0.5 s for KV blocks, "
            "0.5 s for the turns of others; gave its KV blocks back once",
        )
    ]
