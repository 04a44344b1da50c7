"""An adapter's requests go where its very content is, from the first token to the last; on virtual time."""

from __future__ import annotations

import asyncio

import pytest
from forwarding import REQUEST, World, in_world

from penstock.config.desired import DesiredState, Model, Replica
from penstock.config.mock import MockScript
from penstock.config.tenants import ANONYMOUS, Principal
from penstock.gateway.prefixes import chain_of
from penstock.gateway.replicas import Replicas
from penstock.gateway.route import Router
from penstock.mock import words
from penstock.mock.answer import Answer
from penstock.sim.client import Heard, differences
from penstock.sim.loop import LoopClock
from penstock.wire.engine import Accepted, GenerateRequest
from penstock.wire.errors import Problem

SCRIPT = MockScript(gap_s=0.05, weights="fp", exact=False)


def adapted(digest: str) -> GenerateRequest:
    return GenerateRequest(**{name: getattr(REQUEST, name) for name in REQUEST.__struct_fields__} | {"adapter": digest})


def publish(world: World, *names: str, adapter: str = "d1") -> None:
    """The adapter ``tuned`` of ``m`` at these replicas."""
    world.publish(*names)
    replicas = [Replica(id=name, socket=name) for name in names]
    models = [Model(name="m", replicas=replicas)]
    if adapter:
        models.append(Model(name="tuned", replicas=replicas, parent="m", adapter=adapter))
    world._states.get_nowait()
    world._states.put_nowait(DesiredState(version=world._version, models=models))


def give(world: World, digest: str, *names: str) -> None:
    for name in names:
        world.fleet.lives[name].mock.adapters.append(digest)


async def listen(world: World, heard: Heard, model: str = "tuned") -> None:
    def push(events: list) -> None:
        for event in events:
            heard.take(event)
            world.said.append(event)

    await world.forwarder.stream(model, REQUEST, 3, [], push)


async def begun(world: World) -> tuple[Heard, asyncio.Task[None]]:
    """A stream of which some tokens were heard, and the listening to the rest."""
    heard = Heard()
    listening = asyncio.create_task(listen(world, heard))
    while len(heard.tokens) < 5:
        await asyncio.sleep(0.01)
    return heard, listening


def test_only_replicas_that_have_it_are_asked() -> None:
    """Of three replicas one has it: all its requests go there, and the base model's to any."""

    async def act(world: World) -> None:
        give(world, "d1", "e1")
        publish(world, *world.names)
        await asyncio.sleep(1)
        for _ in range(4):
            heard = Heard()
            await listen(world, heard)
            assert differences(adapted("d1"), heard, SCRIPT, left=False) == []
        assert [world.fleet.lives[name].mock.num_attempts for name in world.names] == [0, 4, 0]
        for _ in range(6):
            await listen(world, Heard(), "m")
        assert min(world.fleet.lives[name].mock.num_attempts for name in world.names) >= 2
        prints = {event.weights for event in world.said if isinstance(event, Accepted)}
        assert prints == {"fp-d1", "fp"}

    in_world(3, SCRIPT, act)


def test_a_stream_goes_on_where_its_adapter_is() -> None:
    """Its engine is killed: the idle replica that lacks the adapter is passed over for a busy one that has it."""

    async def act(world: World) -> None:
        give(world, "d1", "e0", "e1")
        publish(world, *world.names)
        await asyncio.sleep(1)
        heard, listening = await begun(world)
        [running] = [name for name in ("e0", "e1") if world.fleet.lives[name].mock.num_open]
        world.fleet.kill(running)
        await listening
        assert differences(adapted("d1"), heard, SCRIPT, left=False) == []
        assert world.fleet.lives["e2"].mock.num_attempts == 0

    in_world(3, SCRIPT, act)


def test_a_stream_waits_for_an_engine_that_is_given_its_adapter_again() -> None:
    """The only replica starts again, is ready without the adapter first, and has it a while later."""

    async def act(world: World) -> None:
        give(world, "d1", "e0")
        publish(world, "e0")
        await asyncio.sleep(1)
        heard, listening = await begun(world)
        world.fleet.kill("e0")
        world.fleet.start("e0", SCRIPT)
        await asyncio.sleep(3)
        give(world, "d1", "e0")
        await listening
        assert differences(adapted("d1"), heard, SCRIPT, left=False) == []

    in_world(1, SCRIPT, act)


def test_a_stream_never_goes_on_with_another_content_of_its_name() -> None:
    """The name was loaded again with other content, and the engine dies: the stream ends with the reason."""

    async def act(world: World) -> None:
        give(world, "d1", "e0")
        give(world, "d2", "e1")
        publish(world, *world.names)
        await asyncio.sleep(1)
        heard, listening = await begun(world)
        publish(world, *world.names, adapter="d2")
        await asyncio.sleep(0.1)
        world.fleet.kill("e0")
        with pytest.raises(Problem, match="another adapter now") as raised:
            await listening
        assert raised.value.code == "weights_changed"
        key = Answer(adapted("d1"), SCRIPT).key
        assert heard.tokens == [words.token_of(key, i) for i in range(len(heard.tokens))]
        heard = Heard()
        await listen(world, heard)
        assert differences(adapted("d2"), heard, SCRIPT, left=False) == []

    in_world(2, SCRIPT, act)


def test_once_unloaded_it_is_not_served() -> None:
    """New requests find no such model; a stream that runs ends as it would."""

    async def act(world: World) -> None:
        give(world, "d1", "e0")
        publish(world, "e0")
        await asyncio.sleep(1)
        heard, listening = await begun(world)
        publish(world, "e0", adapter="")
        await asyncio.sleep(0.1)
        with pytest.raises(Problem) as refused:
            await listen(world, Heard())
        assert refused.value.code == "model_not_found"
        await listening
        assert differences(adapted("d1"), heard, SCRIPT, left=False) == []

    in_world(1, SCRIPT, act)


def test_an_adapter_shares_its_parents_replicas_and_is_granted_by_its_own_name() -> None:
    """One state per replica, whoever asks for it; no model is no adapter; rights go by names."""
    replicas = Replicas()
    at = [Replica(id="e0", socket="s")]
    models = [Model(name="m", replicas=at), Model(name="tuned", replicas=at, parent="m", adapter="d1")]
    replicas.adopt(DesiredState(version=1, models=models))
    assert replicas.find("tuned").replicas[0] is replicas.find("m").replicas[0]
    assert (replicas.base("tuned"), replicas.base("m")) == ("m", "m")
    router = Router(replicas, LoopClock())
    assert [offer.name for offer in router.visible(ANONYMOUS)] == ["m", "tuned"]
    base_only = Principal(tenant="t", key_id="k", models=frozenset({"m"}))
    assert [offer.name for offer in router.visible(base_only)] == ["m"]


def test_beginnings_are_told_apart_by_adapter() -> None:
    """What is cached for one adapter is no reason to send another's prompt there."""
    long = GenerateRequest(id="a", sampling=REQUEST.sampling, text="word " * 1000)
    with_one = GenerateRequest(id="a", sampling=REQUEST.sampling, text="word " * 1000, adapter="d1")
    assert not set(chain_of(long).names) & set(chain_of(with_one).names)
