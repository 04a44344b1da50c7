"""No retry storm: where every replica fails, the engines see at most 1.2 times the requests."""

from __future__ import annotations

import asyncio
import random

import pytest

from penstock.config.desired import DesiredState, Model, Replica
from penstock.config.mock import MockScript
from penstock.events.list import Event as HouseEvent
from penstock.gateway.forward import Forwarder
from penstock.gateway.replicas import Replicas
from penstock.gateway.upstream import Push
from penstock.gateway.watch import Watcher
from penstock.policy.budget import BudgetRules, BudgetVerdict
from penstock.policy.retry import RetryRules
from penstock.sim.fleet import SimulatedFleet
from penstock.sim.loop import LoopClock, run
from penstock.wire import engine as protocol
from penstock.wire.errors import Problem

REQUESTS, PER_S = 500, 100.0


class Failing(SimulatedFleet):
    """Says that it is ready, and breaks whatever it is sent: before or after it has taken it up."""

    def __init__(self, *, accepts: bool) -> None:
        super().__init__()
        self.accepts = accepts
        self.attempts = 0

    async def generate(self, socket: str, request: protocol.GenerateRequest, push: Push) -> None:
        self.attempts += 1
        await asyncio.sleep(0.002)
        if self.accepts:
            push([protocol.Accepted(prompt_tokens=1)])
            await asyncio.sleep(0.01)
        raise Problem("engine_lost", "It breaks.")


async def ask_all(fleet: Failing, budget: BudgetRules) -> tuple[list[str], float]:
    """Codes that the requests failed with, and when the last one did, of a gateway whose four replicas all fail."""
    replicas, clock, dice = Replicas(), LoopClock(), random.Random(1)
    events: list[HouseEvent] = []
    forward = Forwarder(replicas, fleet, RetryRules(), clock, events.append, dice.random, budget)
    watcher = Watcher("g", replicas, fleet, lambda said: None, lambda: 0, clock.now)
    served = [Replica(id=f"r{number}", socket=f"s{number}") for number in range(4)]
    for replica in served:
        fleet.start(replica.socket, MockScript())

    async def states():
        yield DesiredState(version=1, models=[Model(name="m", replicas=served)])

    await watcher.follow(states())
    await replicas.changed(1.0)
    codes: list[str] = []
    trails: list[list] = []

    async def ask(number: int) -> None:
        trail: list = []
        trails.append(trail)
        request = protocol.GenerateRequest(id=str(number), sampling=protocol.Sampling(seed=1), text="x")
        try:
            await forward.stream("m", request, 1, trail, lambda events: None)
        except Problem as problem:
            codes.append(problem.code)

    asking = []
    for number in range(REQUESTS):
        asking.append(asyncio.create_task(ask(number)))
        await asyncio.sleep(dice.expovariate(PER_S))
    await asyncio.gather(*asking)
    ended_at = clock.now()
    await watcher.close()
    assert any(isinstance(verdict, BudgetVerdict) and not verdict.granted for trail in trails for _, verdict in trail)
    return codes, ended_at


@pytest.mark.parametrize("accepts", [False, True], ids=["refused at once", "lost after it was taken up"])
@pytest.mark.parametrize("least_per_s", [0.0, 10.0])
def test_failures_do_not_multiply(accepts: bool, least_per_s: float) -> None:
    """Five seconds in which every attempt fails: all requests are told so, after 1.2 attempts each at most.

    And, for a gateway that is asked little, ten a second that are always free: while nobody asks, only those.
    """
    fleet = Failing(accepts=accepts)
    codes, seconds = run(ask_all(fleet, BudgetRules(least_per_s=least_per_s)))
    assert len(codes) == REQUESTS and set(codes) <= {"engine_lost", "not_ready"}
    idle_s = seconds - REQUESTS / PER_S + 10.0  # and one window in which it does not know yet how much is asked
    assert REQUESTS * 1.05 <= fleet.attempts <= 1.2 * REQUESTS + least_per_s * idle_s
