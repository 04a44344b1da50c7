"""A gateway's pipeline over engines in memory: no sockets, so that thousands of calls take a second.

In: how an engine answers; out: the production pipeline with a clock that is set by hand.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

from pulled import push_all

from penstock.config.desired import DesiredState, Model, Replica
from penstock.config.tenants import ANONYMOUS, Limit, Principal, Scope
from penstock.cost.money import Tariff
from penstock.events.list import Event as HouseEvent
from penstock.events.list import RequestEnded
from penstock.gateway.call import Call, ClientGone
from penstock.gateway.forward import Forwarder
from penstock.gateway.identify import Credentials, Identify
from penstock.gateway.limit import Limit as LimitStage
from penstock.gateway.limits import Limits
from penstock.gateway.meter import Meter, Running
from penstock.gateway.pipeline import Gateway, Stages
from penstock.gateway.replicas import Replicas
from penstock.gateway.route import Router
from penstock.gateway.upstream import Accept, Push
from penstock.policy.admit import AdmitRules
from penstock.policy.limit import rules_of
from penstock.policy.retry import RetryRules
from penstock.wire import engine as protocol
from penstock.wire.embedding import Embedded, EmbedRequest
from penstock.wire.errors import Problem
from penstock.wire.load import Load, Progress, ProgressRequest
from penstock.wire.tokenization import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest

BEGIN = 1_798_718_400.0  # 31 December 2026, 12:00 UTC


@dataclass
class HandClock:
    """Both clocks; they go when they are told to."""

    steady: float = 1000.0
    wall: float = BEGIN

    def now(self) -> float:
        return self.steady

    def read_wall(self) -> float:
        return self.wall

    def pass_time(self, seconds: float) -> None:
        self.steady += seconds
        self.wall += seconds


@dataclass
class Engines:
    """Answers every request with ``num_tokens`` tokens and one that ends it, which is counted and not streamed.

    ``prompt_tokens`` and ``lose`` (after how many tokens the engine breaks off) may be functions of the request.
    """

    num_tokens: int = 10
    prompt_tokens: Callable[[protocol.GenerateRequest], int] = lambda request: 5
    lose: Callable[[protocol.GenerateRequest], int | None] = lambda request: None
    batch: Callable[[], int] = lambda: 1
    embedded_tokens: int = 7
    finished: list[protocol.Usage] = field(default_factory=list)

    async def generate(self, socket: str, request: protocol.GenerateRequest, push: Push) -> None:
        await push_all(self.batches(request), push)

    async def batches(self, request: protocol.GenerateRequest) -> AsyncGenerator[list[protocol.Event], None]:
        prompt = self.prompt_tokens(request)
        yield [protocol.Accepted(prompt_tokens=prompt)]
        lose = self.lose(request)
        sent, new = len(request.emitted_token_ids), 0
        most = self.num_tokens if request.max_tokens is None else min(self.num_tokens, request.max_tokens)
        while sent < most:
            await asyncio.sleep(0)
            if lose is not None and new >= lose:
                raise Problem("engine_lost", "scripted")
            count = min(self.batch(), most - sent)
            sent, new = sent + count, new + count
            yield [protocol.Delta(token_ids=[1], text="x") for _ in range(count)]
        ended = most == self.num_tokens and (request.max_tokens is None or request.max_tokens > most)
        usage = protocol.Usage(prompt=prompt, cached=min(2, prompt), output=most + ended)
        self.finished.append(usage)
        yield [protocol.Finished(reason="stop" if ended else "length", usage=usage)]

    async def embed(self, socket: str, request: EmbedRequest, accept: Accept) -> Embedded:
        accept(protocol.Accepted(prompt_tokens=self.embedded_tokens))
        return Embedded(vectors=["AAAA"], prompt_tokens=self.embedded_tokens)

    async def load(self, socket: str) -> Load:
        return Load(phase="ready")

    async def progress(self, socket: str, request: ProgressRequest) -> Progress:
        return Progress(steps=0, step_limit_s=0.0)

    async def tokenize(self, socket: str, request: TokenizeRequest) -> Tokenized:
        return Tokenized(token_ids=[1], token_texts=["x"], context_tokens=100)

    async def detokenize(self, socket: str, request: DetokenizeRequest) -> Detokenized:
        return Detokenized(text="x")

    async def forget(self, socket: str) -> None:
        return


class Known(Identify):
    """Whoever presents ``authorization`` is who ``principals`` says."""

    def __init__(self, principals: dict[bytes, Principal]) -> None:
        self._known = principals

    def arrive(self, credentials: Credentials) -> Principal:
        return self._known.get(credentials.authorization or b"", ANONYMOUS)


class House:
    """The pipeline, its engines and what it said."""

    def __init__(
        self,
        *limits: Limit,
        tariff: Tariff | None = None,
        engines: Engines | None = None,
        kv_tokens: int = 0,
        admit: AdmitRules | None = None,
        running: Running | None = None,
    ) -> None:
        self.engines = engines or Engines()
        self.clock = HandClock()
        self.events: list[HouseEvent] = []
        self.principal = Principal(tenant="t", key_id="k", scopes=(Scope(name="tenant:t", limits=limits),))
        self.limits = Limits(self.clock, self.clock.read_wall, tariff or Tariff())
        replicas = Replicas()
        served = Model(name="m", replicas=[Replica(id=name, socket=name) for name in "ab"])
        replicas.adopt(DesiredState(version=1, models=[served]))
        for state in replicas.models[0].replicas:
            load = Load(phase="ready", kv_blocks_total=kv_tokens // 2, kv_block_tokens=1)
            replicas.observe(state, load, 0)
        self.replicas = replicas
        rules = RetryRules(resume_timeout_s=5.0)
        stages = Stages(
            identify=Known({b"k": self.principal, **{name.encode(): self.tenant(name) for name in "ab"}}),
            limit=LimitStage(replicas, self.limits, self.clock, admit or AdmitRules()),
            route=Router(replicas, self.clock),
            forward=Forwarder(replicas, self.engines, rules, self.clock, self.events.append),
            meter=Meter(self.clock, self.events.append, map("{:032x}".format, itertools.count()).__next__, running),
        )
        self.gateway = Gateway(replicas, self.engines, stages)

    @staticmethod
    def tenant(name: str) -> Principal:
        """A tenant without limits."""
        return Principal(tenant=name, key_id=name, weight={"a": 1.0, "b": 3.0}[name])

    @property
    def ended(self) -> list[RequestEnded]:
        return [event for event in self.events if isinstance(event, RequestEnded)]

    def granted(self, number: int = 0) -> int:
        """What the account of the limit with this number has granted."""
        rules = rules_of(self.principal.scopes, "m")
        return self.limits.account(rules[number]).granted

    def heal(self) -> None:
        """Every replica is ready again."""
        for state in self.replicas.models[0].replicas:
            self.replicas.observe(state, state.load, state.losses)

    async def ask(
        self,
        *,
        body_bytes: int = 20,
        n: int = 1,
        max_tokens: int | None = None,
        leave_after: int | None = None,
        watch: Callable[[Call], None] = lambda call: None,
        key: str = "k",
    ) -> dict[int, list[protocol.Event]]:
        """One call's events by choice.  Raises ``Problem``, or ``ClientGone`` after ``leave_after`` batches."""
        answered: dict[int, list[protocol.Event]] = {}
        sampling = protocol.Sampling(seed=1)
        with self.gateway.open("/v1/chat/completions", Credentials(authorization=key.encode())) as call:
            self.gateway.find(call, "m")
            call.choices_per_prompt = n
            choices = [
                protocol.GenerateRequest(id=f"{call.id}-{i}", sampling=sampling, text="x", max_tokens=max_tokens)
                for i in range(n)
            ]
            batches = 0

            def give(index: int, events: list[protocol.Event]) -> None:
                nonlocal batches
                answered.setdefault(index, []).extend(events)
                batches += 1
                watch(call)
                if batches == leave_after:
                    raise ClientGone

            await self.gateway.generate(call, choices, body_bytes, give)
        return answered


def tokens_of(events: list[protocol.Event]) -> int:
    return sum(len(event.token_ids) for event in events if isinstance(event, protocol.Delta))


def losing(dice: random.Random, share: float) -> Callable[[protocol.GenerateRequest], int | None]:
    """An engine that breaks off so many of its attempts, each after a few tokens."""
    return lambda request: dice.randrange(1, 6) if dice.random() < share else None
