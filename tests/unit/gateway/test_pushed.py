"""Events that are pushed: who takes them ends the stream, and the engine is not blamed."""

from __future__ import annotations

import pytest
from gateways import Engines, House

from penstock.config.tenants import Limit
from penstock.policy.eject import HEALTHY, Health
from penstock.policy.route import RouteVerdict
from penstock.wire.engine import Finished, GenerateRequest
from penstock.wire.errors import Problem


@pytest.mark.parametrize("code", ["engine_lost", "internal_error"])
async def test_what_the_taker_raises_is_no_failure_of_the_engine(code: str) -> None:
    """Not even what would be one: nothing is tried again, no replica is doubted, and the call ends by it."""
    house = House()
    calls = []

    def refuse(call) -> None:
        calls.append(call)
        raise Problem(code, "Not this.")

    with pytest.raises(Problem) as caught:
        await house.ask(watch=refuse)
    assert caught.value.message == "Not this."
    [call] = calls
    assert len([verdict for _, verdict in call.trail if isinstance(verdict, RouteVerdict)]) == 1
    assert all(state.health == HEALTHY and not state.losses for state in house.replicas.models[0].replicas)
    assert all(state.outstanding_requests == 0 for state in house.replicas.models[0].replicas)
    assert house.ended[-1].code == code


class Watched(Engines):
    """Counts the sequences that ended before they were finished."""

    cut: int = 0

    async def batches(self, request: GenerateRequest):
        whole = False
        try:
            async for events in super().batches(request):
                whole = isinstance(events[-1], Finished)
                yield events
        finally:
            self.cut += not whole


async def test_a_choice_that_its_limits_end_leaves_its_engine_at_once() -> None:
    """The engine computes no token more for it, though the other choices may go on."""
    engines = Watched(num_tokens=10_000)
    house = House(Limit(unit="tokens", amount=600, window="minute"), engines=engines)
    answered = await house.ask(n=2)
    ends = [events[-1] for events in answered.values()]
    assert [isinstance(end, Finished) and end.reason for end in ends] == ["length", "length"]
    assert all(isinstance(end, Finished) and end.limit for end in ends)
    assert engines.cut == 2 and not engines.finished


async def test_a_stream_that_came_to_its_end_clears_its_replica() -> None:
    """Failures before it are no row of failures any more."""
    house = House()
    replicas = house.replicas.models[0].replicas
    for state in replicas:
        state.health = Health(incidents=2, failed_at=house.clock.now())
    await house.ask()
    assert [state.health == HEALTHY for state in replicas] == [state.worked_at > 0 for state in replicas]
    assert any(state.health == HEALTHY for state in replicas)
