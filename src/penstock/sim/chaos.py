"""The production gateway in a world where engines die: what every stream got, against what it should have got.

In: a seed; out: a report.  Everything follows from the seed: arrivals, prompts, which engine is killed, drained,
stalled or upgraded, and when.  So a seed that fails is the whole report of the failure.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from random import Random  # noqa: TID251 - always made from the seed

import msgspec

from penstock.config.desired import Acknowledgement, Balance, DesiredState, Model, Replica
from penstock.config.mock import MockScript
from penstock.config.tenants import Access, Tenant
from penstock.cost.money import Tariff
from penstock.events.list import Event, RequestEnded, StreamResumed
from penstock.gateway.call import ClientGone
from penstock.gateway.forward import Forwarder
from penstock.gateway.identify import Identify
from penstock.gateway.limit import Limit
from penstock.gateway.limits import Limits
from penstock.gateway.meter import Meter
from penstock.gateway.pipeline import Gateway, Stages
from penstock.gateway.replicas import Replicas
from penstock.gateway.route import Router
from penstock.gateway.watch import Watcher
from penstock.mock import words
from penstock.policy.admit import AdmitRules
from penstock.policy.retry import RetryRules
from penstock.sim.client import Heard, differences, listen
from penstock.sim.fleet import SimulatedFleet
from penstock.sim.loop import LoopClock, run
from penstock.wire.engine import GenerateRequest, Sampling
from penstock.wire.errors import Problem

_MODEL = "mock"


class ChaosRules(msgspec.Struct, frozen=True, kw_only=True):
    """Times in virtual seconds.  A fault strikes every ``fault_every_s`` on average while streams arrive."""

    streams: int = 500
    replicas: int = 4
    arrivals_per_s: float = 40.0
    fault_every_s: float = 0.4
    restart_s: float = 1.5
    max_tokens: int = 60
    leaving_share: float = 0.05
    balance: Balance = "least-tokens"
    script: MockScript = MockScript(ttft_s=0.05, gap_s=0.02, jitter=0.5, slots=16, output_tokens=40, load_s=0.2)


@dataclass(slots=True)
class Report:
    """``wrong`` says of each stream that was lost or differs what it was; empty is what must be."""

    seed: int
    finished: int = 0
    left: int = 0
    resumed: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    in_flight: int = 0
    outstanding: int = 0
    at_engines: int = 0
    seconds: float = 0.0


def chaos(seed: int, rules: ChaosRules | None = None) -> Report:
    """One world from its first arrival until nothing runs any more."""
    return run(_World(seed, rules or ChaosRules()).live())


def _everybody() -> Identify:
    """Nobody has a key, and everybody is let in."""
    identify = Identify(b"", lambda: 0.0, lambda address, why: None, open_without_keys=True)
    identify.adopt(Access(version=1, tenants=(Tenant(name="default"),)))
    return identify


class _World:
    def __init__(self, seed: int, rules: ChaosRules) -> None:
        self.rules = rules
        self.random = Random(seed)
        self.report = Report(seed)
        self.fleet = SimulatedFleet()
        self.events: list[Event] = []
        self.replicas = Replicas()
        self.states: asyncio.Queue[DesiredState] = asyncio.Queue()
        self.wanted = [Replica(id=f"r{number}", socket=f"s{number}") for number in range(rules.replicas)]
        self.version = 0
        self.acknowledged = 0
        clock, ids = LoopClock(), itertools.count()
        retry = RetryRules()
        self.gateway = Gateway(
            self.replicas,
            self.fleet,
            Stages(
                identify=_everybody(),
                limit=Limit(self.replicas, Limits(clock, clock.now, Tariff()), clock, AdmitRules()),
                route=Router(self.replicas, clock),
                forward=Forwarder(self.replicas, self.fleet, retry, clock, self.events.append, Random(seed).random),
                meter=Meter(clock, self.events.append, lambda: f"call-{next(ids)}"),
            ),
        )
        self.watcher = Watcher(
            "gateway", self.replicas, self.fleet, self._acknowledge, lambda: self.gateway.in_flight, clock.now
        )

    async def live(self) -> Report:
        for replica in self.wanted:
            self.fleet.start(replica.socket, self.rules.script)
        following = asyncio.create_task(self.watcher.follow(self._states()))
        watching = asyncio.create_task(self.gateway.stages.forward.stalls.watch())
        self._publish()
        await self._until(lambda: self.replicas.ready)
        breaking = asyncio.create_task(self._break())
        streams = []
        for number in range(self.rules.streams):
            streams.append(asyncio.create_task(self._stream(number)))
            await asyncio.sleep(self.random.expovariate(self.rules.arrivals_per_s))
        await asyncio.gather(*streams)
        breaking.cancel()
        await asyncio.gather(breaking, return_exceptions=True)
        self.report.seconds = asyncio.get_running_loop().time()
        self._audit()
        for task in (following, watching):
            task.cancel()
        await asyncio.gather(following, watching, return_exceptions=True)
        await self.watcher.close()
        return self.report

    async def _stream(self, number: int) -> None:
        """One client: what it hears, up to the end it was told."""
        choices = self._choices(number)
        heard = [Heard() for _ in choices]
        leaves_after = self.random.randrange(20) if self.random.random() < self.rules.leaving_share else None
        left = False
        try:
            await listen(self.gateway, _MODEL, choices, heard, leaves_after)
            self.report.finished += 1
        except ClientGone:
            self.report.left += 1
            left = True
        except Problem as problem:
            self.report.wrong.append(f"stream {number} was lost: {problem.code} {problem.message}")
            return
        for asked, one in zip(choices, heard, strict=True):
            self.report.wrong += [
                f"stream {number}: {what}" for what in differences(asked, one, self.rules.script, left=left)
            ]

    def _choices(self, number: int) -> list[GenerateRequest]:
        """One choice most of the time, with stop strings and log-probabilities now and then."""
        random = self.random
        stop = [words.WORDS[random.randrange(len(words.WORDS))][:3]] if random.random() < 0.3 else []
        first = GenerateRequest(
            id="",
            sampling=Sampling(seed=random.randrange(1 << 30)),
            text=f"prompt {number} " + "x" * random.randrange(200),
            max_tokens=random.randrange(1, self.rules.max_tokens),
            stop=stop,
            logprobs=random.choice([None, None, None, 0, 2]),
        )
        more = random.choice([0, 0, 0, 0, 1, 2])
        seeds = [first.sampling.seed + 1 + other for other in range(more)]
        return [first, *(msgspec.structs.replace(first, sampling=Sampling(seed=seed)) for seed in seeds)]

    async def _break(self) -> None:
        """Faults until cancelled; an upgrade is one fault that takes its time."""
        faults: dict[str, Callable[[], object]] = {
            "kill": self._kill,
            "stall": self._stall,
            "wedge": self._wedge,
            "restart": self._drain_and_restart,
            "upgrade": self._upgrade,
        }
        while True:
            await asyncio.sleep(self.random.expovariate(1.0 / self.rules.fault_every_s))
            kind = self.random.choices(list(faults), weights=[6, 3, 1, 2, 1])[0]
            self.report.faults[kind] = self.report.faults.get(kind, 0) + 1
            waiting = faults[kind]()
            if asyncio.iscoroutine(waiting):
                await waiting

    def _kill(self) -> None:
        replica = self.random.choice(self.wanted)
        if replica.socket in self.fleet.lives:
            self._restart(replica, self.random.uniform(0.1, self.rules.restart_s))

    def _stall(self) -> None:
        life = self.fleet.lives.get(self.random.choice(self.wanted).socket)
        if life is not None:
            life.stalled_until = asyncio.get_running_loop().time() + self.random.uniform(0.1, 2.0)

    def _wedge(self) -> None:
        """It says that it is ready and computes no more, until somebody puts an end to it."""
        replica = self.random.choice(self.wanted)
        life = self.fleet.lives.get(replica.socket)
        if life is None or life.wedged:
            return
        life.wedged = True

        def end() -> None:
            if self.fleet.lives.get(replica.socket) is life:
                self._restart(replica, 0.5)

        asyncio.get_running_loop().call_later(self.random.uniform(1.0, 20.0), end)

    async def _drain_and_restart(self) -> None:
        """Wanted no more, acknowledged, given its time, ended, and started again."""
        place = self.random.randrange(len(self.wanted))
        replica = self.wanted[place]
        self.wanted[place] = msgspec.structs.replace(replica, draining=True)
        self._publish()
        await self._until(lambda: self.acknowledged >= self.version)
        patience_s = self.random.choice([0.0, 0.2, 5.0])
        deadline = asyncio.get_running_loop().time() + patience_s
        life = self.fleet.lives.get(replica.socket)
        if life is not None:
            life.mock.draining = True
            await self._until(lambda: life.mock.num_open == 0 or asyncio.get_running_loop().time() >= deadline)
        self._restart(replica, 0.3)
        self.wanted[place] = replica
        self._publish()

    async def _upgrade(self) -> None:
        """Each replica in turn gets a successor beside it under another id, and is then drained and removed."""
        for place, old in enumerate(list(self.wanted)):
            self.version += 1
            new = Replica(id=f"v{self.version}-{place}", socket=f"v{self.version}-{place}.sock")
            self.fleet.start(new.socket, self.rules.script)
            self.wanted.append(new)
            self._publish()
            await asyncio.sleep(0.5)
            self.wanted[place] = msgspec.structs.replace(old, draining=True)
            self._publish()
            await self._until(lambda: self.acknowledged >= self.version)
            await asyncio.sleep(self.random.choice([0.0, 0.5]))
            self.wanted[place] = self.wanted.pop()
            self._publish()
            self.fleet.kill(old.socket)

    def _restart(self, replica: Replica, after_s: float) -> None:
        self.fleet.kill(replica.socket)

        def start() -> None:
            if replica.socket not in self.fleet.lives and any(r.socket == replica.socket for r in self.wanted):
                self.fleet.start(replica.socket, self.rules.script)

        asyncio.get_running_loop().call_later(after_s, start)

    def _publish(self) -> None:
        self.version += 1
        self.states.put_nowait(DesiredState(version=self.version, models=[self._model()]))

    def _model(self) -> Model:
        return Model(name=_MODEL, replicas=list(self.wanted), balance=self.rules.balance)

    async def _states(self) -> AsyncIterator[DesiredState]:
        while True:
            yield await self.states.get()

    def _acknowledge(self, said: Acknowledgement) -> None:
        self.acknowledged = max(self.acknowledged, said.version)

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await asyncio.sleep(0.01)

    def _audit(self) -> None:
        """What must be zero when nobody asks for anything any more."""
        report = self.report
        ended = [event for event in self.events if isinstance(event, RequestEnded)]
        report.resumed = sum(isinstance(event, StreamResumed) for event in self.events)
        report.in_flight = self.gateway.in_flight
        report.outstanding = sum(
            state.outstanding_requests + state.outstanding_tokens + abs(state.outstanding_prefill) + abs(state.decoding)
            for model in self.replicas.models
            for state in model.replicas
        )
        report.at_engines = self.fleet.num_open
        if len(ended) != self.rules.streams or len({event.id for event in ended}) != self.rules.streams:
            report.wrong.append(f"{len(ended)} ends of {self.rules.streams} requests")
