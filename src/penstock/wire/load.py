"""What an engine says of itself: how it is doing, and how far it is with what it was asked.

In and out: msgspec structs, one JSON object each; the paths stand with the rest of the protocol in ``wire.engine``.
The controller tells from it who is ready, a gateway whom to send to and whether silence is a stall.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from penstock.wire.engine import Failed

Phase = Literal["starting", "loading", "ready", "draining", "failed"]


class Load(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an engine is doing, for routing, readiness and progress.

    ``progress`` is 0..1 within ``phase``; ``detail`` says it in words.  Times in seconds, sizes in bytes or tokens.
    ``problem`` is set in phase ``failed``: loading ended there and will not be tried again in this process.
    ``step_age_s``: how long the present step has been going, 0 between steps; ``step_limit_s``: the most that it should
    take, by what this engine has measured of its own steps.
    ``generates`` is false for an encoder, which only embeds.  ``exact``: a resumed sequence gets the very tokens of an
    undisturbed one; otherwise what was emitted stays, and what follows may be another valid continuation.
    ``quantization``: in which whole numbers weights are kept, ``none`` for as the checkpoint has them.
    ``weights`` and ``vocabulary`` tell apart what is computed and what a token id stands for; empty: it does not say.
    ``adapters``: digests of the LoRA adapters that it has.
    """

    phase: Phase
    detail: str = ""
    progress: float = 0.0
    problem: Failed | None = None
    model: str = ""
    context_tokens: int = 0
    running: int = 0
    waiting: int = 0
    queued_tokens: int = 0
    kv_blocks_total: int = 0
    kv_blocks_cached: int = 0
    kv_blocks_used: int = 0
    kv_block_tokens: int = 0
    step_time_s: float = 0.0
    step_age_s: float = 0.0
    step_limit_s: float = 0.0
    weights_bytes: int = 0
    kv_bytes: int = 0
    generates: bool = True
    exact: bool = False
    quantization: str = "none"
    weights: str = ""
    vocabulary: str = ""
    adapters: list[str] = []


class ProgressRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Asks how far these requests are; a gateway asks for those that have been silent for a while."""

    ids: list[str]


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an engine has done, so that silence can be told from a stall.

    ``steps`` grows with every step of the engine.  ``computed``: by request, the tokens that are in its KV cache where
    every step gives it one more; ``None`` while it waits or its prompt is computed, which may take many steps.
    A request that is not in it is not here, or is still being rendered and tokenised.
    ``step_limit_s``: as in :class:`Load`.
    """

    steps: int
    step_limit_s: float
    computed: dict[str, int | None] = {}


decode_load = msgspec.json.Decoder(Load).decode
