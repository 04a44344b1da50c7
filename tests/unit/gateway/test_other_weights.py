"""What becomes of a stream whose weights are replaced under it: production's forwarder, on virtual time."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from forwarding import REQUEST, World, in_world

from penstock.config.mock import MockScript
from penstock.mock import words
from penstock.mock.answer import Answer
from penstock.sim.client import Heard, differences
from penstock.wire.engine import Accepted, Delta, Moved
from penstock.wire.errors import Problem

OLD = MockScript(gap_s=0.05, weights="fp_old", vocabulary="v")
NEW = msgspec.structs.replace(OLD, weights="fp_new")


def loosely(script: MockScript) -> MockScript:
    return msgspec.structs.replace(script, exact=False)


async def replaced(world: World, heard: Heard, script: MockScript, *, keep: bool = False) -> None:
    """A stream under way on ``e0`` loses it; ``n0`` of ``script`` is idle, and ``e1`` stays, busy, where ``keep``."""
    listening = asyncio.create_task(world.listen(heard))
    await asyncio.sleep(0)
    busy = [asyncio.create_task(world.listen(Heard()))] if keep else []
    while len(heard.tokens) < 5:
        await asyncio.sleep(0.01)
    world.fleet.start("n0", script)
    stay = ["e1"] if keep else []
    world.publish("e0", *stay, "n0")
    await asyncio.sleep(0.2)
    world.publish(*stay, "n0")
    world.fleet.kill("e0")
    await asyncio.gather(listening, *busy)


def moved(world: World) -> list[str]:
    return [event.weights for event in world.said if isinstance(event, Moved)]


def test_a_stream_stays_on_its_weights_while_a_replica_has_them() -> None:
    """With replicas of both sources ready, it goes on where the tokens are its own, and nobody is told anything."""

    async def act(world: World) -> None:
        heard = Heard()
        await replaced(world, heard, loosely(NEW), keep=True)
        assert differences(REQUEST, heard, world.script, left=False) == []

    world = in_world(2, loosely(OLD), act)
    assert moved(world) == []
    assert world.fleet.lives["n0"].mock.num_attempts == 0


def test_other_weights_go_on_where_that_was_the_promise_and_say_so() -> None:
    """Prefix-preserved: what was sent stays, the rest is the new weights' own, and the change is told in between."""
    heard = Heard()

    async def act(world: World) -> None:
        await replaced(world, heard, loosely(NEW))

    world = in_world(1, loosely(OLD), act)
    assert moved(world) == ["fp_new"]
    assert [event.weights for event in world.said if isinstance(event, Accepted)] == ["fp_old"]
    place = next(i for i, event in enumerate(world.said) if isinstance(event, Moved))
    before = [t for event in world.said[:place] if isinstance(event, Delta) for t in event.token_ids]
    keys = [Answer(REQUEST, script).key for script in (OLD, NEW)]
    num_old = len(before)
    drawn = [words.token_of(keys[i >= num_old], i) for i in range(30)]
    assert heard.tokens == drawn and 5 <= num_old < 15
    assert heard.text == words.text_of(drawn) and heard.num_ends == 1
    assert heard.end is not None and heard.end.usage.output == 30


def test_a_stream_that_was_promised_its_tokens_gets_no_others() -> None:
    """Exact: where its weights are gone for good, it ends in seconds with the reason, and never with other tokens."""

    async def act(world: World) -> None:
        heard = Heard()
        with pytest.raises(Problem, match="other weights") as raised:
            await replaced(world, heard, NEW)
        assert raised.value.code == "weights_changed" and raised.value.retry_after_s is not None
        assert asyncio.get_running_loop().time() < 15
        key = Answer(REQUEST, OLD).key
        assert heard.tokens == [words.token_of(key, i) for i in range(len(heard.tokens))]

    assert moved(in_world(1, OLD, act)) == []


def test_a_stream_waits_for_its_own_weights_to_come_back() -> None:
    """A replica of its weights that is started again takes it up, though one of the new source has long been ready."""

    async def act(world: World) -> None:
        heard = Heard()
        listening = asyncio.create_task(world.listen(heard))
        while len(heard.tokens) < 5:
            await asyncio.sleep(0.01)
        world.fleet.start("n0", NEW)
        world.publish("e0", "n0")
        world.fleet.kill("e0")
        await asyncio.sleep(8)
        world.fleet.start("e0", OLD)
        await listening
        assert differences(REQUEST, heard, world.script, left=False) == []

    in_world(1, OLD, act)


def test_another_vocabulary_never_goes_on() -> None:
    """Its ids stand for other text: the stream ends with the reason, whatever was promised."""

    async def act(world: World) -> None:
        with pytest.raises(Problem) as raised:
            await replaced(world, Heard(), msgspec.structs.replace(loosely(NEW), vocabulary="w"))
        assert raised.value.code == "weights_changed"

    in_world(1, loosely(OLD), act)
