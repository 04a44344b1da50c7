"""How each event of the list feeds the metrics of the catalogue.

In: nothing; out: ``FEEDS`` (event type -> feeds), each saying what one event adds to one metric.
Pure functions of the event alone; ``observe.folds`` calls them and keeps the numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from penstock.events.list import (
    ReplicaChanged,
    RequestEnded,
    RequestReceived,
    SequenceEnded,
    ShadowEnded,
    SharingChanged,
    StartPartDone,
    StepDone,
    StreamResumed,
    UnusableLimitsChanged,
    WeightsLoaded,
)
from penstock.events.metrics import (
    ACCEPTED_TOKENS,
    CACHED_TOKENS,
    DURATION,
    ENGINE_TOKENS,
    KV_BLOCKS,
    LIMITS_SHARED,
    OUTPUT_TOKENS,
    PREEMPTIONS,
    PROMPT_TOKENS,
    PROPOSALS,
    PROPOSED_TOKENS,
    REPLICA_PHASE,
    REPLICA_RESTARTS,
    REQUESTS,
    REQUESTS_RECEIVED,
    RESUME_GAP,
    RESUMES,
    RUNNING,
    SEQUENCES,
    SHADOW_TOKENS,
    SHADOW_TTFT,
    SHADOWS,
    START,
    STEP,
    STEP_BUDGET,
    STEP_ERROR,
    STEP_TOKENS,
    TPOT,
    TTFT,
    UNUSABLE_LIMITS,
    WAITING,
    WEIGHTS,
    Metric,
)

REPLICA_PHASES = ("starting", "loading", "ready", "draining", "failed", "exited")

E = TypeVar("E")


class Feed(msgspec.Struct, frozen=True, kw_only=True):
    """What one event adds to one metric.

    ``labels(event)`` is aligned with ``metric.labels``; ``value(event)`` of ``None`` means: nothing to say.
    Counters add the value (``absolute``: take it as the new count), gauges are set to it, histograms observe it.
    """

    metric: Metric
    labels: Callable[[Any], tuple[str, ...]]
    value: Callable[[Any], float | None]
    absolute: bool = False


FEEDS: dict[type[Any], tuple[Feed, ...]] = {}


def _feed(
    event: type[E],
    metric: Metric,
    value: Callable[[E], float | None],
    labels: Callable[[E], tuple[str, ...]] = lambda event: (),
    *,
    absolute: bool = False,
) -> None:
    feed = Feed(metric=metric, labels=labels, value=value, absolute=absolute)
    FEEDS[event] = (*FEEDS.get(event, ()), feed)


_feed(RequestReceived, REQUESTS_RECEIVED, lambda e: 1, lambda e: (e.route,))

_feed(RequestEnded, REQUESTS, lambda e: 1, lambda e: (e.route, e.model, e.outcome, str(e.status), e.code))
_feed(RequestEnded, DURATION, lambda e: e.duration_s, lambda e: (e.route, e.model, e.outcome))
_feed(RequestEnded, TTFT, lambda e: e.ttft_s, lambda e: (e.model,))
_feed(RequestEnded, TPOT, lambda e: e.tpot_s, lambda e: (e.model,))
# No tokens, no series: a request that was rejected has no model to count them for.
_feed(RequestEnded, PROMPT_TOKENS, lambda e: e.prompt_tokens or None, lambda e: (e.model,))
_feed(RequestEnded, CACHED_TOKENS, lambda e: e.cached_tokens or None, lambda e: (e.model,))
_feed(RequestEnded, OUTPUT_TOKENS, lambda e: e.output_tokens or None, lambda e: (e.model,))

_feed(StreamResumed, RESUMES, lambda e: 1, lambda e: (e.model,))
_feed(StreamResumed, RESUME_GAP, lambda e: e.gap_s, lambda e: (e.model,))

_feed(ShadowEnded, SHADOWS, lambda e: 1, lambda e: (e.model, e.outcome, e.code))
_feed(ShadowEnded, SHADOW_TOKENS, lambda e: e.prompt_tokens or None, lambda e: (e.model, "prompt"))
_feed(ShadowEnded, SHADOW_TOKENS, lambda e: e.cached_tokens or None, lambda e: (e.model, "cached"))
_feed(ShadowEnded, SHADOW_TOKENS, lambda e: e.output_tokens or None, lambda e: (e.model, "output"))
_feed(ShadowEnded, SHADOW_TTFT, lambda e: e.ttft_s, lambda e: (e.model,))

_feed(SharingChanged, LIMITS_SHARED, lambda e: float(e.shared))
_feed(UnusableLimitsChanged, UNUSABLE_LIMITS, lambda e: e.num_limits)

_feed(SequenceEnded, SEQUENCES, lambda e: 1, lambda e: (e.reason,))
_feed(SequenceEnded, ENGINE_TOKENS, lambda e: e.prompt_tokens, lambda e: ("prompt",))
_feed(SequenceEnded, ENGINE_TOKENS, lambda e: e.cached_tokens, lambda e: ("cached",))
_feed(SequenceEnded, ENGINE_TOKENS, lambda e: e.output_tokens, lambda e: ("output",))

_feed(StartPartDone, START, lambda e: e.seconds, lambda e: (e.part,))
_feed(WeightsLoaded, WEIGHTS, lambda e: e.num_bytes, lambda e: (e.quantization,))

_feed(StepDone, STEP, lambda e: e.seconds if e.decode_tokens + e.prefill_tokens else None)
_feed(StepDone, STEP_TOKENS, lambda e: e.decode_tokens, lambda e: ("decode",))
_feed(StepDone, STEP_TOKENS, lambda e: e.prefill_tokens, lambda e: ("prefill",))
# Without speculation, no series.
_feed(StepDone, PROPOSALS, lambda e: e.proposals or None)
_feed(StepDone, PROPOSED_TOKENS, lambda e: e.proposed_tokens or None)
_feed(StepDone, ACCEPTED_TOKENS, lambda e: e.accepted_tokens if e.proposals else None)
_feed(StepDone, STEP_BUDGET, lambda e: e.token_budget)
_feed(StepDone, STEP_ERROR, lambda e: e.spread)
_feed(StepDone, RUNNING, lambda e: e.running)
_feed(StepDone, WAITING, lambda e: e.waiting)
_feed(StepDone, PREEMPTIONS, lambda e: e.preempted)
_feed(StepDone, KV_BLOCKS, lambda e: e.kv_blocks_used, lambda e: ("used",))
_feed(StepDone, KV_BLOCKS, lambda e: e.kv_blocks_cached, lambda e: ("cached",))
_feed(StepDone, KV_BLOCKS, lambda e: e.kv_blocks_total - e.kv_blocks_used - e.kv_blocks_cached, lambda e: ("free",))

_feed(ReplicaChanged, REPLICA_RESTARTS, lambda e: e.restarts, lambda e: (e.replica,), absolute=True)


def _in_phase(phase: str) -> Callable[[ReplicaChanged], float]:
    return lambda e: float(e.phase == phase)


def _phase_labels(phase: str) -> Callable[[ReplicaChanged], tuple[str, ...]]:
    return lambda e: (e.replica, phase)


for _phase in REPLICA_PHASES:
    _feed(ReplicaChanged, REPLICA_PHASE, _in_phase(_phase), _phase_labels(_phase))
