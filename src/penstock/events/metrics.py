"""The metrics catalogue: every metric there is.

In: nothing; out: ``CATALOGUE`` (name, kind, unit, labels, help, buckets).
Keeps no numbers itself: that is ``observe.folds``.  Adding one: a :class:`Metric` here, its feed in ``events.feeds``.

Label values come from small closed sets: routes, served names, codes of the error table, replica ids.
Never a request id, a key or anything a caller typed: each new value is a new time series, for ever.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["counter", "gauge", "histogram"]

# Seconds.  A latency objective is exact only where it is a bucket's edge, so round targets are edges; the edges are
# taken from those that vLLM uses, so that our histograms and those of its replicas can be added.
TTFT_BUCKETS = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0)
TPOT_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
DURATION_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0),
)
STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
GAP_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0)


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One metric family.  ``unit`` ends the name (before a counter's ``_total``); empty for states and facts.

    ``buckets`` are the upper edges of a histogram in rising order, in ``unit``, without +Inf.
    """

    name: str
    kind: Kind
    help: str
    unit: str = ""
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


CATALOGUE: dict[str, Metric] = {}


def _metric(
    name: str, kind: Kind, unit: str, help: str, labels: tuple[str, ...] = (), buckets: tuple[float, ...] = ()
) -> Metric:
    assert name not in CATALOGUE, f"metric {name} is listed twice"
    metric = Metric(name=name, kind=kind, help=help, unit=unit, labels=labels, buckets=buckets)
    CATALOGUE[name] = metric
    return metric


# Facts about a process, set by the folds themselves.
BUILD_INFO = _metric(
    "penstock_build_info", "gauge", "", "Always 1; the labels say which release runs.", ("version", "python")
)
VALUES_DROPPED = _metric(
    "penstock_event_values_dropped_total",
    "counter",
    "values_dropped",
    "Values of events that were negative or not finite and therefore left out; anything but 0 is a bug of Penstock.",
    ("event",),
)

# Requests, as the gateway sees them: these are the ones to hold objectives against.
REQUESTS_RECEIVED = _metric(
    "penstock_requests_received_total",
    "counter",
    "requests_received",
    "Data requests whose head was read; minus penstock_requests_total this is the number in flight.",
    ("route",),
)
REQUESTS = _metric(
    "penstock_requests_total",
    "counter",
    "requests",
    "Data requests that ended, by their one terminal outcome, HTTP status and error code (empty when finished).",
    ("route", "model", "outcome", "status", "code"),
)
TTFT = _metric(
    "penstock_time_to_first_token_seconds",
    "histogram",
    "seconds",
    "Time from a request's head to its first token at the gateway.",
    ("model",),
    TTFT_BUCKETS,
)
TPOT = _metric(
    "penstock_time_per_output_token_seconds",
    "histogram",
    "seconds",
    "Mean time per output token after the first, once per request.",
    ("model",),
    TPOT_BUCKETS,
)
DURATION = _metric(
    "penstock_request_duration_seconds",
    "histogram",
    "seconds",
    "Time from a request's head to its terminal event.",
    ("route", "model", "outcome"),
    DURATION_BUCKETS,
)
PROMPT_TOKENS = _metric(
    "penstock_prompt_tokens_total",
    "counter",
    "prompt_tokens",
    "Prompt tokens of ended requests, cached ones included.",
    ("model",),
)
CACHED_TOKENS = _metric(
    "penstock_cached_tokens_total",
    "counter",
    "cached_tokens",
    "The part of the prompt tokens that came from a prefix cache.",
    ("model",),
)
OUTPUT_TOKENS = _metric(
    "penstock_output_tokens_total", "counter", "output_tokens", "Generated tokens of ended requests.", ("model",)
)
RESUMES = _metric(
    "penstock_stream_resumes_total",
    "counter",
    "stream_resumes",
    "Sequences that went on at another attempt after their engine was lost.",
    ("model",),
)
RESUME_GAP = _metric(
    "penstock_stream_resume_gap_seconds",
    "histogram",
    "seconds",
    "How long a resumed sequence stood still between two attempts.",
    ("model",),
    GAP_BUCKETS,
)
SHADOWS = _metric(
    "penstock_shadow_requests_total",
    "counter",
    "shadow_requests",
    "Copies of requests whose answers were discarded, by outcome and error code; in no other metric of requests.",
    ("model", "outcome", "code"),
)
SHADOW_TOKENS = _metric(
    "penstock_shadow_tokens_total",
    "counter",
    "shadow_tokens",
    "Tokens of such copies: prompt, cached (a part of prompt) and output.  No tenant pays for them.",
    ("model", "kind"),
)
SHADOW_TTFT = _metric(
    "penstock_shadow_time_to_first_token_seconds",
    "histogram",
    "seconds",
    "Time from sending a copy to its first token.",
    ("model",),
    TTFT_BUCKETS,
)
LIMITS_SHARED = _metric(
    "penstock_limits_shared",
    "gauge",
    "",
    "1 while a gateway shares its limits through Redis, 0 while Redis is away and only what is held is granted; "
    "nothing without --redis.",
)
UNUSABLE_LIMITS = _metric(
    "penstock_unusable_limits",
    "gauge",
    "limits",
    "Limits whose key in Redis somebody else has written, so that a gateway grants of them only what it holds; the log "
    "names the keys to remove.",
)

# One engine: why the gateway's numbers are what they are.
STEP = _metric(
    "penstock_engine_step_seconds",
    "histogram",
    "seconds",
    "Time to compute and commit one engine step; steps that are computed in one call are one.",
    (),
    STEP_BUCKETS,
)
STEP_TOKENS = _metric(
    "penstock_engine_step_tokens_total",
    "counter",
    "step_tokens",
    "Tokens computed in steps, by phase: prefill includes what a preemption made the engine compute again.",
    ("phase",),
)
WEIGHTS = _metric(
    "penstock_engine_weights_bytes",
    "gauge",
    "bytes",
    "Memory of the weights, by what they are kept in.",
    ("quantization",),
)
START = _metric(
    "penstock_engine_start_seconds",
    "gauge",
    "seconds",
    "What the parts of the engine's start took, one after another.",
    ("part",),
)
STEP_BUDGET = _metric(
    "penstock_engine_step_budget_tokens",
    "gauge",
    "tokens",
    "Tokens that the last step could have had: fewer than --max-step-tokens where an inter-token target is kept.",
)
STEP_ERROR = _metric(
    "penstock_engine_step_prediction_error_ratio",
    "gauge",
    "ratio",
    "By what share of its time a step is usually mispredicted, lately.",
)
PROPOSALS = _metric(
    "penstock_engine_spec_decode_num_drafts_total",
    "counter",
    "drafts",
    "Proposals of speculative decoding that were verified; mean accepted length: 1 + accepted tokens / drafts.",
)
PROPOSED_TOKENS = _metric(
    "penstock_engine_spec_decode_num_draft_tokens_total", "counter", "draft_tokens", "Tokens of these proposals."
)
ACCEPTED_TOKENS = _metric(
    "penstock_engine_spec_decode_num_accepted_tokens_total",
    "counter",
    "accepted_tokens",
    "Tokens of these proposals that were what the model then sampled.",
)
RUNNING = _metric(
    "penstock_engine_running_sequences", "gauge", "sequences", "Sequences that hold KV blocks, after the last step."
)
WAITING = _metric(
    "penstock_engine_waiting_sequences", "gauge", "sequences", "Sequences queued for KV blocks, after the last step."
)
PREEMPTIONS = _metric(
    "penstock_engine_preemptions_total",
    "counter",
    "preemptions",
    "Times a running sequence gave its KV blocks back and went to wait.",
)
KV_BLOCKS = _metric(
    "penstock_engine_kv_blocks",
    "gauge",
    "kv_blocks",
    "KV blocks by state: used by a sequence, cached (held for a prefix, given up on demand), free.  Their sum is all.",
    ("state",),
)
SEQUENCES = _metric(
    "penstock_engine_sequences_total", "counter", "sequences", "Sequences that left the engine, by reason.", ("reason",)
)
ENGINE_TOKENS = _metric(
    "penstock_engine_sequence_tokens_total",
    "counter",
    "sequence_tokens",
    "Tokens of sequences that left the engine: prompt, cached (a part of prompt) and output.",
    ("kind",),
)

# The fleet, as the controller sees it.
REPLICA_PHASE = _metric(
    "penstock_replica_phase", "gauge", "", "1 for the phase a replica is in, 0 for the others.", ("replica", "phase")
)
REPLICA_RESTARTS = _metric(
    "penstock_replica_restarts_total",
    "counter",
    "replica_restarts",
    "Times a replica's process was started again.",
    ("replica",),
)
