"""Which replica takes a sequence, by one of three ways to balance.

In: a view of the model's replicas and of the sequence; out: a verdict with its why.  Pure: no clock, no I/O, no chance.
*least-tokens*: the fewest outstanding tokens.  *prefix-hash*: consistent hashing on the prompt's beginning, with
bounded loads (Mirrokni et al. 2018; rendezvous hashing by Thaler and Ravishankar 1998 in place of a ring).
*marginal-time*: the least time that the sequence costs, itself and those that already run, where some of it is cached
somewhere, and the fewest tokens where nothing is; argued in docs/decisions/011-balancing.md.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from penstock.config.desired import Balance
from penstock.policy.rates import Rates

_BOUND = 1.25
"""No replica holds more than this times its share of the outstanding tokens because of a hash."""
_GUARD = 1.5
"""Nor more than this because of a prediction, beside what one sequence makes."""
_KV_BARRIER_S = 0.15
_KV_MOST = 0.99


class ReplicaView(Protocol):
    """What routing reads of a replica; live state, never a copy."""

    @property
    def id(self) -> str: ...
    @property
    def routable(self) -> bool:
        """Ready and not draining."""

    @property
    def outstanding_tokens(self) -> int: ...
    @property
    def outstanding_requests(self) -> int: ...
    @property
    def outstanding_prefill(self) -> int:
        """Prompt tokens that it was sent, had not in its cache and has not yet answered with a first token."""

    @property
    def decoding(self) -> int:
        """Sequences that have their first token."""

    @property
    def kv_use(self) -> float:
        """0 to 1."""

    @property
    def rates(self) -> Rates: ...
    @property
    def last_routed(self) -> int:
        """A count that grows with every routing decision: breaks ties in turn."""


class Asked(msgspec.Struct, frozen=True):
    """The sequence, in estimated tokens.  ``prefix`` names its prompt's beginning; ``None``: it is too short for one.

    ``overlap(id)``: how many of its prompt tokens that replica probably has in its prefix cache.
    """

    prompt_tokens: int
    output_tokens: int
    prefix: int | None = None
    overlap: Callable[[str], int] = lambda id: 0


NOTHING_KNOWN = Asked(0, 0)


class RouteVerdict(msgspec.Struct, frozen=True):
    """``replica`` is ``None`` when none can take it now.  ``scores``: what each ready one would have cost."""

    replica: str | None
    why: str
    scores: tuple[tuple[str, float], ...] = ()


def choose(
    replicas: Iterable[ReplicaView],
    avoid: frozenset[str] = frozenset(),
    balance: Balance = "least-tokens",
    asked: Asked = NOTHING_KNOWN,
) -> RouteVerdict:
    """The replica for this sequence.

    ``avoid`` (replicas that just lost this sequence) is a wish: they are taken when nothing else is routable.
    """
    known = list(replicas)
    routable = [replica for replica in known if replica.routable]
    if not routable:
        return RouteVerdict(None, f"none of {len(known)} replicas is ready")
    wanted = [replica for replica in routable if replica.id not in avoid] or routable
    if balance == "marginal-time":
        return _marginal(wanted, asked)
    if balance == "prefix-hash" and asked.prefix is not None:
        return _hashed(wanted, asked, asked.prefix)
    best = min(wanted, key=_by_tokens)
    return RouteVerdict(
        best.id,
        f"fewest outstanding tokens ({best.outstanding_tokens} in {best.outstanding_requests} requests) "
        f"of {len(routable)} ready replicas out of {len(known)}",
    )


def marginal_s(replica: ReplicaView, asked: Asked) -> float:
    """Seconds that the sequence would cost there.

    Prefill: what is queued before it and what of it is not cached.  Decoding: how much slower every running sequence
    gets by one more row, for as long as this one runs, and it by them.  And a barrier that grows as KV memory fills.
    """
    rates = replica.rates
    uncached = max(asked.prompt_tokens - asked.overlap(replica.id), 0)
    prefill_s = (replica.outstanding_prefill + uncached) / rates.prefill_tokens_per_s
    decode_s = asked.output_tokens * 2 * rates.growth_s * replica.decoding + asked.output_tokens * rates.step_s
    use = min(replica.kv_use, _KV_MOST)
    return prefill_s + decode_s + _KV_BARRIER_S * use / (1.0 - use)


def _by_tokens(replica: ReplicaView) -> tuple[int, int, int]:
    """Least outstanding tokens, then requests, then the one that waited longest."""
    return replica.outstanding_tokens, replica.outstanding_requests, replica.last_routed


def _marginal(wanted: list[ReplicaView], asked: Asked) -> RouteVerdict:
    size = asked.prompt_tokens + asked.output_tokens
    bound = _bound(wanted, size, _GUARD)
    scores = [(marginal_s(replica, asked), *_by_tokens(replica), replica.id) for replica in wanted]
    told = tuple((score[-1], score[0]) for score in scores)
    if not any(asked.overlap(replica.id) for replica in wanted):
        # Between replicas that have nothing of it, what is predicted differs by the noise of the learned rates.
        fewest = min(wanted, key=_by_tokens)
        why = f"nothing of it is cached anywhere; fewest outstanding tokens ({fewest.outstanding_tokens})"
        return RouteVerdict(fewest.id, why, told)
    # One sequence alone is never over the bound: the least loaded replica always qualifies.
    within = [
        score
        for score, replica in zip(scores, wanted, strict=True)
        if replica.outstanding_tokens + size <= bound or replica.outstanding_tokens == 0
    ]
    best = min(within or scores)
    why = f"least predicted time, {best[0]:.4f} s with {asked.overlap(best[-1])} of {asked.prompt_tokens} tokens cached"
    return RouteVerdict(best[-1], why, told)


def _hashed(wanted: list[ReplicaView], asked: Asked, prefix: int) -> RouteVerdict:
    size = asked.prompt_tokens + asked.output_tokens
    bound = _bound(wanted, size, _BOUND)
    ranked = sorted(wanted, key=lambda replica: (-_weight(replica.id, prefix), replica.id))
    for rank, replica in enumerate(ranked):
        if replica.outstanding_tokens + size <= bound or replica.outstanding_tokens == 0:
            return RouteVerdict(replica.id, f"choice {rank + 1} of prefix {prefix:08x} with room for it")
    best = min(wanted, key=_by_tokens)
    return RouteVerdict(best.id, f"every choice of prefix {prefix:08x} is full; fewest outstanding tokens")


def _bound(wanted: list[ReplicaView], size: int, factor: float) -> float:
    """The most outstanding tokens, this sequence included, that a replica may have without being the least loaded."""
    return factor * (sum(replica.outstanding_tokens for replica in wanted) + size) / len(wanted) + size


def _weight(id: str, prefix: int) -> int:
    """Which replica a prefix belongs to: the one with the most weight.  Others keep theirs when one goes or comes."""
    bits = (zlib.crc32(id.encode()) << 32 | prefix) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    bits = (bits ^ bits >> 29) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    return bits ^ bits >> 32
