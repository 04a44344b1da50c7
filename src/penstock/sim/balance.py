"""How well requests are spread over replicas: a recorded trace, replayed under each way to balance.

In: demands of a trace; out: one ``Spread`` per way.  Each decision is ``gateway.replicas`` and ``policy.route`` as in
production, with what a gateway knows: estimates, its own leases, loads half a second old.  The engines are modelled.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from random import Random  # noqa: TID251 - always made from the seed
from typing import Literal, get_args

import msgspec

from penstock.config.desired import Balance, DesiredState, Model, Replica
from penstock.gateway.prefixes import Chain
from penstock.gateway.replica import Lease, ModelState
from penstock.gateway.replicas import Replicas
from penstock.loadgen.workloads import PREFIX_BLOCK_TOKENS, Demand
from penstock.sim.replica import EngineSize, Job, SimulatedReplica
from penstock.wire.load import Load

Way = Literal["random", "round-robin", "least-tokens", "prefix-hash", "marginal-time"]
WAYS: tuple[Way, ...] = get_args(Way)
"""Two that know nothing, for comparison, and the three of production."""

_NAMES_PER_BLOCK = 4
"""A gateway names 512 bytes of a prompt at a time, which it takes for 128 tokens; a block of a trace has 512."""
_OBSERVED_S = 0.5
_EXPECTED_OUTPUT = 256
"""What a gateway expects of a request that does not bound its output."""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """One replay.  ``hit_share``: prompt tokens found in caches; ``imbalance``: the busiest replica over the mean.

    ``good_share``: requests within ``BalanceRules``' objectives.  Times in seconds.
    """

    way: str
    requests: int
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p99_s: float
    hit_share: float
    imbalance: float
    good_share: float


class BalanceRules(msgspec.Struct, frozen=True, kw_only=True):
    """What is simulated, and what counts as good."""

    replicas: int = 8
    engine: EngineSize = EngineSize()
    good_ttft_s: float = 2.0
    good_tpot_s: float = 0.06
    seed: int = 0


def replay_balance(demands: Sequence[Demand], way: Way, rules: BalanceRules) -> Spread:
    """The whole trace under one way to balance.  The same arguments give the same spread."""
    return _World(way, rules).run(demands)


class _World:
    def __init__(self, way: Way, rules: BalanceRules) -> None:
        self.way: Way = way
        self.rules = rules
        self.engines = {f"r{number}": SimulatedReplica(rules.engine) for number in range(rules.replicas)}
        self.replicas = Replicas()
        balance: Balance = "least-tokens" if way == "random" or way == "round-robin" else way
        model = Model(name="m", replicas=[Replica(id=id, socket=id) for id in self.engines], balance=balance)
        self.replicas.adopt(DesiredState(version=1, models=[model]))
        self.model: ModelState = self.replicas.find("m")
        self.pick = self._picker()
        self.leases: dict[Job, Lease] = {}
        self.jobs: list[Job] = []

    def run(self, demands: Sequence[Demand]) -> Spread:
        dues: list[tuple[float, int, str]] = []
        order = itertools.count()
        observed = float("-inf")
        for number, demand in enumerate(demands):
            self._advance(dues, order, demand.at_s)
            if demand.at_s - observed >= _OBSERVED_S:
                observed = demand.at_s
                self._observe()
            id = self._send(number, demand)
            due = self.engines[id].due
            assert due is not None
            heapq.heappush(dues, (due, next(order), id))
        self._advance(dues, order, float("inf"))
        return self._spread()

    def _advance(self, dues: list[tuple[float, int, str]], order: itertools.count[int], until: float) -> None:
        """Everything that happens before ``until``.  A due that was moved forward is passed over when it comes."""
        while dues and dues[0][0] <= until:
            due, _, id = heapq.heappop(dues)
            engine = self.engines[id]
            if engine.due != due:
                continue
            first, ended = engine.finish_step()
            for job in first:
                self.leases[job].first_token(due)
            for job in ended:
                lease = self.leases.pop(job)
                lease.succeeded()
                lease.end(due, job.output_tokens)
            if engine.due is not None:
                heapq.heappush(dues, (engine.due, next(order), id))

    def _send(self, number: int, demand: Demand) -> str:
        chain = _chain(number, demand)
        size = (demand.prompt_tokens, _EXPECTED_OUTPUT)
        lease = self.replicas.lease(self.model, size, demand.at_s, avoid=self.pick(), chain=chain)
        assert lease is not None, "every simulated replica is ready"
        job = Job(demand.prompt_tokens, demand.output_tokens, demand.prefix_blocks, demand.at_s)
        self.jobs.append(job)
        self.leases[job] = lease
        self.engines[lease.state.id].submit(job, demand.at_s)
        return lease.state.id

    def _observe(self) -> None:
        for state in self.model.replicas:
            engine = self.engines[state.id]
            load = Load(
                phase="ready",
                waiting=engine.num_waiting,
                kv_blocks_total=1000,
                kv_blocks_used=round(engine.kv_use * 1000),
                kv_block_tokens=self.rules.engine.kv_tokens // 1000,
            )
            self.replicas.observe(state, load, state.losses)

    def _picker(self) -> Callable[[], frozenset[str]]:
        """Which replicas the next decision is to avoid: all but one, where the way is to know nothing."""
        ids = list(self.engines)
        if self.way == "random":
            dice = Random(self.rules.seed)
            return lambda: frozenset(ids) - {dice.choice(ids)}
        if self.way == "round-robin":
            turns = itertools.cycle(ids)
            return lambda: frozenset(ids) - {next(turns)}
        return frozenset

    def _spread(self) -> Spread:
        ttfts = sorted(_ttft(job) for job in self.jobs)
        tpots = sorted(_tpot(job) for job in self.jobs if job.output_tokens > 1) or [0.0]
        busy = [engine.busy_s for engine in self.engines.values()]
        rules = self.rules
        good = sum(_ttft(job) <= rules.good_ttft_s and _tpot(job) <= rules.good_tpot_s for job in self.jobs)
        return Spread(
            way=self.way,
            requests=len(self.jobs),
            ttft_p50_s=_quantile(ttfts, 0.5),
            ttft_p99_s=_quantile(ttfts, 0.99),
            tpot_p50_s=_quantile(tpots, 0.5),
            tpot_p99_s=_quantile(tpots, 0.99),
            hit_share=sum(job.cached for job in self.jobs) / sum(job.prompt_tokens for job in self.jobs),
            imbalance=max(busy) * len(busy) / sum(busy),
            good_share=good / len(self.jobs),
        )


def _chain(number: int, demand: Demand) -> Chain:
    """What a gateway would name the prompt's beginnings; without blocks in the trace, no other prompt's."""
    count = demand.prompt_tokens * _NAMES_PER_BLOCK // PREFIX_BLOCK_TOKENS
    if demand.prefix_blocks:
        names = [block * _NAMES_PER_BLOCK + part for block in demand.prefix_blocks for part in range(_NAMES_PER_BLOCK)]
        return Chain(tuple(names[:count]))
    return Chain(tuple(-1 - (number << 20) - part for part in range(count)))


def _ttft(job: Job) -> float:
    assert job.first_at is not None
    return job.first_at - job.arrived


def _tpot(job: Job) -> float:
    assert job.first_at is not None
    assert job.ended_at is not None
    return (job.ended_at - job.first_at) / (job.output_tokens - 1) if job.output_tokens > 1 else 0.0


def _quantile(values: list[float], share: float) -> float:
    return values[min(int(share * len(values)), len(values) - 1)]
