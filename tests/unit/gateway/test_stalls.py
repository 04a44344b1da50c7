"""Engines that say they are ready and do nothing more: production's gateway over simulated engines, on virtual time."""

from __future__ import annotations

import asyncio

import pytest
from forwarding import REQUEST, World, in_world

from penstock.config.mock import MockScript
from penstock.events.list import StreamResumed
from penstock.gateway.call import Trail
from penstock.sim.client import Heard, differences
from penstock.wire.embedding import EmbedRequest
from penstock.wire.errors import Problem


@pytest.mark.parametrize("after_s", [0.05, 0.35])
def test_a_stalled_stream_goes_on_elsewhere(after_s: float) -> None:
    """Before its first token or in the middle: within 12 s another engine goes on, and the text has no seam."""

    async def act(world: World) -> None:
        heard = Heard()
        listening = asyncio.create_task(world.listen(heard))
        await asyncio.sleep(after_s)
        world.wedge_the_one_that_runs()
        began = asyncio.get_running_loop().time()
        await listening
        assert asyncio.get_running_loop().time() - began < 12
        assert differences(REQUEST, heard, world.script, left=False) == []

    world = in_world(2, MockScript(ttft_s=0.1, gap_s=0.05), act)
    assert [event.gap_s < 1 for event in world.events if isinstance(event, StreamResumed)] == [True]
    assert [life.mock.num_open for life in world.fleet.lives.values()] == [0, 0]


def test_a_long_prefill_is_waited_for() -> None:
    """A prompt that takes two minutes, as its engine says, is computed once and nowhere else."""

    async def act(world: World) -> None:
        heard = Heard()
        await world.listen(heard)
        assert differences(REQUEST, heard, world.script, left=False) == []

    world = in_world(2, MockScript(ttft_s=120.0, gap_s=0.05), act)
    assert sum(life.mock.num_attempts for life in world.fleet.lives.values()) == 1


def test_a_client_that_reads_slowly_is_no_stall() -> None:
    """Half a minute between two reads is the client's silence, and its engine is left alone."""

    async def act(world: World) -> None:
        await world.listen(Heard(), pace_s=30.0)

    world = in_world(2, MockScript(gap_s=0.05), act)
    assert sum(life.mock.num_attempts for life in world.fleet.lives.values()) == 1


def test_engines_that_all_stall_end_the_stream_with_an_error() -> None:
    """Where no engine gets any further, the stream ends within its time as lost, and the reason is told."""

    async def act(world: World) -> None:
        for life in world.fleet.lives.values():
            life.wedged = True
        with pytest.raises(Problem, match="no progress") as raised:
            await world.listen(Heard())
        assert raised.value.code == "engine_lost"
        assert asyncio.get_running_loop().time() < 75

    in_world(2, MockScript(gap_s=0.05), act)


def test_a_client_that_leaves_a_stalled_stream_is_gone() -> None:
    """Its task is cancelled by the client and by nobody else: no attempt is begun for it."""

    async def act(world: World) -> None:
        for life in world.fleet.lives.values():
            life.wedged = True
        listening = asyncio.create_task(world.listen(Heard()))
        await asyncio.sleep(3)
        listening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await listening
        assert world.fleet.num_open == 0

    in_world(1, MockScript(gap_s=0.05), act)


def test_a_call_without_a_stream_is_watched_too() -> None:
    """Vectors that an engine never comes to are asked for elsewhere in bounded time."""

    async def act(world: World) -> None:
        frozen = world.fleet.lives["e0"]
        frozen.stalled_until = 1e6
        request = EmbedRequest(id="a", texts=["x"])
        trail: Trail = []
        found = await world.forwarder.call(
            "m", lambda socket: world.fleet.embed(socket, request, lambda accepted: None), trail, 1, "a"
        )
        assert len(found.vectors) == 1
        assert asyncio.get_running_loop().time() < 30

    in_world(2, MockScript(), act)


def test_nobody_waits_long_for_engines_that_are_gone() -> None:
    """A call whose only engine is neither running nor being started gets its error in 10 s, not in 60."""

    async def act(world: World) -> None:
        listening = asyncio.create_task(world.listen(Heard()))
        await asyncio.sleep(0.3)
        world.publish()
        world.fleet.kill("e0")
        with pytest.raises(Problem) as raised:
            await listening
        assert raised.value.code == "engine_lost" and raised.value.retry_after_s is not None
        assert asyncio.get_running_loop().time() < 11

    in_world(1, MockScript(gap_s=0.1), act)
