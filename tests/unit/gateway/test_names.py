"""Names through the real gateway: aliases, splits, fallbacks and copies, over engines on sockets."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from penstock.config.desired import Model, Replica
from penstock.config.names import Name, Shadow
from penstock.config.tenants import TOP, Access, ApiKey, Rights, Tenant
from penstock.events.list import ShadowEnded
from penstock.wire.credentials import digest_of

SECRET = b"s" * 32
BODY = {"model": "assistant", "messages": [{"role": "user", "content": "a b"}], "seed": 3, "max_tokens": 4}
MODELS = ("large", "next", "small")


@pytest.fixture
def start_models(start_world, script):
    """``await start_models(names)``: one engine each for large, next and small."""

    async def start(names, **settings):
        world = await start_world(3, ready=False, **settings)
        world.version = 1

        async def name(names):
            world.version += 1
            models = [
                Model(name=model, replicas=[Replica(id=model, socket=engine.socket)], created=7)
                for model, engine in zip(MODELS, world.engines, strict=True)
            ]
            world.states.put_nowait(world.desired(world.version, models=models, names=names))
            await script.until(lambda: [a.version for a in world.acknowledged][-1:] == [world.version])

        world.name = name
        await name(names)
        await script.until(lambda: script.ready(world))
        return world

    return start


async def post(world, body=BODY, **headers):
    """The status, the headers and the body of an answer; a stream's first chunk as its body."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{world.url}/v1/chat/completions", json=body, headers=headers) as answer,
    ):
        raw = await answer.read()
        if body.get("stream") and answer.status == 200:
            raw = raw.split(b"\n\n")[0].removeprefix(b"data: ")
        return answer.status, answer.headers, json.loads(raw)


async def explained(world, id):
    connector = aiohttp.UnixConnector(path=world.control_socket)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(f"http://gateway/gateway/explain/{id}") as answer,
    ):
        return {step["stage"]: step["why"] for step in (await answer.json())["steps"]}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_alias_answers_as_the_model_that_it_is(start_models, stream):
    """The answer's model and a header say who answered; the name says nothing of itself."""
    world = await start_models({"assistant": Name(to="large")})
    status, headers, said = await post(world, BODY | {"stream": stream})
    assert (status, said["model"], headers["x-penstock-model"]) == (200, "large", "large")
    assert world.ended[-1].model == "large"


async def test_a_user_stays_on_its_side_until_the_weights_leave_it(start_models):
    """Each user always gets the same model; where all weight goes to the other side, the next request is there."""
    world = await start_models({"assistant": Name(to={"large": 1, "next": 1})})
    sides = {user: {(await post(world, BODY | {"user": user}))[2]["model"] for _ in range(3)} for user in "abcdefgh"}
    assert all(len(models) == 1 for models in sides.values()) and len(set.union(*sides.values())) == 2
    session = {"x-session-id": "s1"}
    assert len({(await post(world, BODY | {"user": user}, **session))[2]["model"] for user in "abcdefgh"}) == 1
    await world.name({"assistant": Name(to={"large": 0, "next": 1})})
    assert {(await post(world, BODY | {"user": user}))[2]["model"] for user in "abcdefgh"} == {"next"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("code", ["overloaded", "context_length_exceeded", "not_ready"])
async def test_another_model_answers_where_the_first_cannot(start_models, make_behaviour, script, code, stream):
    """Overloaded, too short or not ready: the next one of the chain answers, says so, and is told why."""
    world = await start_models({"assistant": Name(to="large", fallbacks=("next", "small"))})
    world.engines[0].context_tokens = 4096
    world.engines[1].context_tokens, world.engines[2].context_tokens = 2048, 8192
    world.engines[0].behave = lambda request: make_behaviour(refuse=code)

    async def answers_by(model):
        status, headers, said = await post(world, BODY | {"stream": stream})
        if status != 200:
            return False
        told = await explained(world, said["id"])
        assert said["model"] == headers["x-penstock-model"] == world.ended[-1].model
        return said["model"] == model and f"large answered {code}" in told["fallback"]

    # The gateway hears of the contexts within half a second.
    await script.until(lambda: answers_by("small" if code == "context_length_exceeded" else "next"))


async def test_a_lost_model_is_fallen_back_from_at_once(start_models, script):
    """Nobody waits for an engine that is being restarted while another model is ready."""
    world = await start_models({"assistant": Name(to="large", fallbacks=("small",))})
    assert (await post(world))[2]["model"] == "large"
    await world.engines[0].kill()
    began = asyncio.get_running_loop().time()
    assert (await post(world))[2]["model"] == "small"
    assert asyncio.get_running_loop().time() - began < 4.0


async def test_an_answer_that_has_begun_is_never_another_model_s(start_models, make_behaviour, script):
    """A stream whose engine fails midway ends with the failure, be it one that a fallback would have had before."""
    world = await start_models({"assistant": Name(to="large", fallbacks=("small",))})
    world.engines[2].context_tokens = 8192
    url = f"{world.url}/v1/models/small"

    async def is_known():
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return (await answer.json())["max_model_len"] == 8192

    await script.until(is_known)
    world.engines[0].behave = lambda request: make_behaviour(fail_after=2, fail_code="context_length_exceeded")
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{world.url}/v1/chat/completions", json=BODY | {"stream": True}) as answer,
    ):
        raw = b""
        with pytest.raises(aiohttp.ClientPayloadError):
            async for part in answer.content.iter_any():
                raw += part
    assert b"context_length_exceeded" in raw and not world.engines[2].requests


async def test_the_first_model_s_words_stand_where_none_can(start_models, make_behaviour):
    """All of the chain fail: the answer is what the first one said, and the records are the first one's."""
    world = await start_models({"assistant": Name(to="large", fallbacks=("small",))})
    world.engines[0].behave = lambda request: make_behaviour(refuse="overloaded")
    world.engines[2].behave = lambda request: make_behaviour(refuse="context_length_exceeded")
    status, headers, said = await post(world)
    assert status == 503 and said["error"]["code"] == "overloaded" and "x-penstock-model" not in headers
    assert world.ended[-1].model == "large" and len(world.engines[2].requests) == 1


def keyed(secret: str, models) -> ApiKey:
    rights = Rights(models=None if models is None else frozenset(models))
    return ApiKey(id=f"id-{secret}", tenant=TOP, digest=digest_of(secret.encode(), SECRET), rights=rights)


async def test_rights_hold_for_every_model_of_a_chain(start_models, make_behaviour):
    """Who may not use a model does not get it by a name: not by a split, not as a fallback, not in the listing."""
    keys = (keyed("all", None), keyed("small", ["small"]), keyed("large", ["large"]), keyed("none", ["assistant"]))
    access = Access(version=1, tenants=(Tenant(name=TOP, rights=Rights(role="admin")),), keys=keys)
    names = {"assistant": Name(to={"large": 1, "next": 99}, fallbacks=("small",))}
    world = await start_models(names, access=access)
    world.engines[0].behave = lambda request: make_behaviour(refuse="overloaded")

    async def by(secret):
        status, _, said = await post(world, authorization=f"Bearer {secret}")
        return said["model"] if status == 200 else said["error"]["code"]

    assert [await by(secret) for secret in ("small", "large", "none")] == ["small", "overloaded", "model_not_found"]
    assert len(world.engines[1].requests) == 0
    listed = {}
    async with aiohttp.ClientSession() as session:
        for secret in ("all", "small", "none"):
            headers = {"authorization": f"Bearer {secret}"}
            async with session.get(f"{world.url}/v1/models", headers=headers) as answer:
                listed[secret] = [card["id"] for card in (await answer.json())["data"]]
    assert listed == {"all": [*MODELS, "assistant"], "small": ["small", "assistant"], "none": []}


async def test_a_copy_costs_the_caller_nothing(start_models, make_behaviour, script):
    """A copy goes to the other model and is counted apart: no answer, no time, no usage, no error of the caller's."""
    shadow = Shadow(model="next", share=1.0, max_in_flight=2)
    world = await start_models({"assistant": Name(to="large", shadow=shadow)})
    world.engines[1].behave = lambda request: make_behaviour(first_s=60.0)
    for _ in range(3):
        status, _, said = await post(world)
        assert status == 200 and said["model"] == "large"
    assert "2 of 2 choices are in flight" in (await explained(world, said["id"]))["shadow"]
    await script.until(lambda: world.engines[1].running == 2)
    assert [ended.model for ended in world.ended] == ["large"] * 3
    assert {ended.output_tokens for ended in world.ended} == {4}
    world.engines[1].waiting = 1
    world.engines[1].behave = lambda request: make_behaviour(refuse="overloaded")
    await world.engines[1].kill()
    await script.until(lambda: len([e for e in world.events if isinstance(e, ShadowEnded)]) == 2)
    copies = [event for event in world.events if isinstance(event, ShadowEnded)]
    assert {(copy.model, copy.outcome, copy.code) for copy in copies} == {("next", "failed", "engine_lost")}


async def test_a_copy_that_ends_is_metered_apart(start_models, script):
    """What it took is in its own event."""
    world = await start_models({"assistant": Name(to="large", shadow=Shadow(model="next"))})
    await post(world)
    await script.until(lambda: any(isinstance(event, ShadowEnded) for event in world.events))
    copy = next(event for event in world.events if isinstance(event, ShadowEnded))
    assert (copy.outcome, copy.prompt_tokens, copy.output_tokens) == ("finished", 2, 4) and copy.ttft_s is not None
    assert len(world.engines[1].requests) == 1 and len(world.ended) == 1


async def test_a_copy_ends_where_its_engine_has_others_waiting(start_models, make_behaviour, script):
    """Requests that wait at the engine end the copies there, and no further one is made."""
    world = await start_models({"assistant": Name(to="large", shadow=Shadow(model="next"))})
    world.engines[1].behave = lambda request: make_behaviour(gap_s=0.05)
    await post(world, BODY | {"max_tokens": 2000})
    await script.until(lambda: world.engines[1].running == 1)
    world.engines[1].waiting = 1
    await script.until(lambda: any(isinstance(event, ShadowEnded) for event in world.events))
    assert next(event.outcome for event in world.events if isinstance(event, ShadowEnded)) == "cancelled"
    await script.until(lambda: world.engines[1].running == 0)
    _, _, said = await post(world)
    assert "1 requests wait" in (await explained(world, said["id"]))["shadow"]
