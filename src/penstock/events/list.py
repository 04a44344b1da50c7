"""The one list of events.  Every metric is derived from these and from nothing else.

Times are durations in seconds, sizes in tokens or bytes, as the names say.  Adding one: docs/architecture.md.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Outcome = Literal["finished", "failed", "cancelled", "rejected"]


class RequestReceived(msgspec.Struct, frozen=True, kw_only=True):
    """Gateway: a data request's head was read."""

    route: str


class RequestEnded(msgspec.Struct, frozen=True, kw_only=True):
    """Gateway: the one terminal event of a data request.  ``code`` is the error's, empty when finished.

    ``ttft_s`` and ``tpot_s`` are ``None`` where no first or no second token was seen.
    Tokens are those that an engine reported or streamed; ``reasoning_tokens`` are part of ``output_tokens``.
    ``scopes``: the key and the tenants that it counts for; ``replicas``: who worked on it, in order.
    ``cost_nusd``: nano-dollars, by the price when it began.
    """

    id: str
    route: str
    model: str
    outcome: Outcome
    status: int
    code: str = ""
    streamed: bool = False
    duration_s: float
    ttft_s: float | None = None
    tpot_s: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    tenant: str = ""
    key_id: str = ""
    scopes: tuple[str, ...] = ()
    replicas: tuple[str, ...] = ()
    cost_nusd: int = 0


class StreamResumed(msgspec.Struct, frozen=True, kw_only=True):
    """Gateway: a sequence went on at another attempt after its engine was lost, with what it had emitted."""

    id: str
    model: str
    replica: str
    emitted_tokens: int
    gap_s: float


class ShadowEnded(msgspec.Struct, frozen=True, kw_only=True):
    """Gateway: the copy of a request at ``model`` ended, whose answer nobody got; counted here and nowhere else.

    ``ttft_s`` is ``None`` where there was no first token.
    """

    model: str
    outcome: Outcome
    code: str = ""
    ttft_s: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


class SharingChanged(msgspec.Struct, frozen=True, kw_only=True):
    """Gateway: limits are shared with others from now on, or, while the store of their slices is away, no more."""

    shared: bool


class UnusableLimitsChanged(msgspec.Struct, frozen=True, kw_only=True):
    """Gateway: so many limits cannot be shared from now on, because what the store has of them is not ours."""

    num_limits: int


class SequenceEnded(msgspec.Struct, frozen=True, kw_only=True):
    """Engine: a sequence left the engine."""

    reason: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


class StartPartDone(msgspec.Struct, frozen=True, kw_only=True):
    """Engine: a part of its start is over, and took so long since the part before, the first since its process began.

    ``settings``: until it knows what to serve; ``imports``: what was then still to be imported; ``tokenizer``;
    ``weights``: with the kernels; ``memory``: that of keys and values, and all else.
    """

    part: Literal["settings", "imports", "tokenizer", "weights", "memory"]
    seconds: float


class WeightsLoaded(msgspec.Struct, frozen=True, kw_only=True):
    """A model's weights are in memory.  ``quantization``: what they are kept in, ``none`` for as released."""

    num_bytes: int
    quantization: str


class StepDone(msgspec.Struct, frozen=True, kw_only=True):
    """Engine: one step was computed and committed; with no tokens, only the state changed (an abort while idle).

    Of ``proposals`` with ``proposed_tokens`` so many were right; ``decode_tokens`` counts these and not the rest.
    ``token_budget``: the most tokens that it could have had; ``spread``: by what share of their time steps are usually
    mispredicted.
    """

    seconds: float
    decode_tokens: int
    prefill_tokens: int
    running: int
    waiting: int
    preempted: int
    kv_blocks_used: int
    kv_blocks_cached: int
    kv_blocks_total: int
    proposals: int = 0
    proposed_tokens: int = 0
    accepted_tokens: int = 0
    token_budget: int | None = None
    spread: float = 0.0


class ReplicaChanged(msgspec.Struct, frozen=True, kw_only=True):
    """Controller: a replica entered another phase (starting, loading, ready, draining, failed, exited)."""

    replica: str
    phase: str
    restarts: int


Event = (
    RequestReceived
    | RequestEnded
    | StreamResumed
    | ShadowEnded
    | SharingChanged
    | UnusableLimitsChanged
    | SequenceEnded
    | StartPartDone
    | WeightsLoaded
    | StepDone
    | ReplicaChanged
)
