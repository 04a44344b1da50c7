"""One replica as this gateway sees it, those of one model, and a lease: what one attempt has outstanding there.

In: loads, and the course of attempts; out: counts, rates and health, which routing decides by.  No I/O.
Which one gets an attempt is ``replicas``' to say.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from penstock.config.desired import Model, Replica
from penstock.gateway.prefixes import PrefixIndex
from penstock.policy.eject import HEALTHY, Health, after_failure
from penstock.policy.rates import Rates, after_first_token, after_stream
from penstock.policy.route import RouteVerdict
from penstock.wire.load import Load

_TELLING_TOKENS = 8
"""A stream of fewer tokens says little about its pace."""


@dataclass(slots=True, eq=False)
class ReplicaState:
    """One replica as this gateway sees it.  ``losses`` counts broken attempts: an older observation is void.

    ``outstanding_then``: tokens that were outstanding when ``load`` was observed.
    ``worked_at``: a sequence had its first token then, or ended with some; ``probe``: the attempt that tries whether
    it is well again.
    """

    replica: Replica
    load: Load | None = None
    ready: bool = False
    losses: int = 0
    outstanding_requests: int = 0
    outstanding_tokens: int = 0
    outstanding_then: int = 0
    outstanding_prefill: int = 0
    decoding: int = 0
    last_routed: int = 0
    worked_at: float = float("-inf")
    rates: Rates = Rates()
    health: Health = HEALTHY
    probe: Lease | None = None
    prefixes: PrefixIndex = field(default_factory=PrefixIndex)

    @property
    def kv_use(self) -> float:
        """0 to 1: what the replica last said, and what this gateway has sent there and seen the end of since."""
        load = self.load
        if load is None or not load.kv_blocks_total:
            return 0.0
        since = self.outstanding_tokens - self.outstanding_then
        used = load.kv_blocks_used + since / max(load.kv_block_tokens, 1)
        return min(max(used / load.kv_blocks_total, 0.0), 1.0)

    @property
    def weights(self) -> str:
        return "" if self.load is None else self.load.weights

    @property
    def vocabulary(self) -> str:
        return "" if self.load is None else self.load.vocabulary

    def has(self, adapter: str) -> bool:
        """The base model, which has no digest, is everywhere."""
        return not adapter or (self.load is not None and adapter in self.load.adapters)

    @property
    def id(self) -> str:
        return self.replica.id

    @property
    def routable(self) -> bool:
        return self.ready and not self.replica.draining


@dataclass(slots=True, eq=False)
class ModelState:
    """One served model.  ``was_ready``: a replica was ready once, so its absence is an interruption."""

    model: Model
    replicas: list[ReplicaState]
    was_ready: bool = False

    @property
    def context_tokens(self) -> int | None:
        return next((state.load.context_tokens for state in self.replicas if state.load is not None), None) or None

    @property
    def quantization(self) -> str | None:
        """What the replicas that are ready keep weights in."""
        loads = (state.load for state in self.replicas if state.load is not None)
        return next((load.quantization for load in loads if load.context_tokens), None)

    @property
    def exact(self) -> bool:
        """Whatever replica resumes a sequence gives it the tokens of an undisturbed run."""
        loads = [state.load for state in self.replicas if state.load is not None]
        return bool(loads) and all(load.exact for load in loads)


@dataclass(slots=True, eq=False)
class Lease:
    """One attempt at one replica.  Begins with ``Replicas.lease``, ends exactly once; its pace teaches the rates.

    ``prefill``: its prompt tokens that are not cached there; ``work``: those and the ones that were queued before.
    """

    state: ReplicaState
    verdict: RouteVerdict
    tokens: int
    prefill: int
    work: int
    sent_at: float
    rows: int = 0
    first_at: float | None = None

    def first_token(self, now: float) -> None:
        """Its prefill is over, and it decodes."""
        state = self.state
        self.first_at, self.rows = now, state.decoding
        state.outstanding_prefill -= self.prefill
        state.decoding += 1
        state.worked_at = now
        self._tried()
        state.rates = after_first_token(state.rates, self.work, now - self.sent_at)

    @property
    def fruitful(self) -> bool:
        """Its replica was at work meanwhile, be it on other sequences."""
        return self.state.decoding > 0 or self.state.worked_at >= self.sent_at

    def failed(self, code: str, now: float) -> None:
        """Its engine, or its connection, answered with this."""
        self.state.health = after_failure(self.state.health, code, self.sent_at, now)

    def succeeded(self) -> None:
        """It came to its own end."""
        self.state.health = HEALTHY

    def end(self, now: float, num_tokens: int = 0) -> None:
        """It ended after so many tokens."""
        state = self.state
        self._tried()
        state.outstanding_requests -= 1
        state.outstanding_tokens -= self.tokens
        if self.first_at is None:
            state.outstanding_prefill -= self.prefill
            return
        state.decoding -= 1
        state.worked_at = now
        if num_tokens >= _TELLING_TOKENS:
            state.rates = after_stream(state.rates, self.rows, (now - self.first_at) / (num_tokens - 1))

    def _tried(self) -> None:
        if self.state.probe is self:
            self.state.probe = None
