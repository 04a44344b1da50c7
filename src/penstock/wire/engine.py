"""The engine protocol: what a gateway asks of an engine, and what the engine streams back.

In and out: msgspec structs, one JSON object per line, over HTTP on a Unix socket or loopback.
One request is one sequence; resuming it is the same request plus ``emitted_token_ids``.
What is beside a sequence: ``wire.embedding``, ``wire.tokenization``, and ``wire.load``, how an engine is doing.
Argued in docs/decisions/001-engine-protocol.md.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from penstock.wire.errors import ERRORS, Problem

GENERATE = "/engine/generate"
EMBED = "/engine/embed"
ABORT = "/engine/abort"
LOAD = "/engine/load"
PROGRESS = "/engine/progress"
DRAIN = "/engine/drain"
TOKENIZE = "/engine/tokenize"
DETOKENIZE = "/engine/detokenize"
LOAD_ADAPTER = "/engine/adapters/load"
UNLOAD_ADAPTER = "/engine/adapters/unload"
METRICS = "/engine/metrics"

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the next token is drawn.  ``None`` means: as the model's generation_config says, else the neutral value.

    ``seed`` is always set by the sender: token ``i`` is drawn with the pair (seed, position) and nothing else,
    so that a resumed request draws what the undisturbed one would have drawn.
    """

    seed: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None


class Grammar(msgspec.Struct, frozen=True, kw_only=True):
    """What the output has to be.  ``value`` by kind: a JSON schema's text (``json_schema``; ``{}`` for any object
    of ``json_object``), a regular expression, or a grammar in Lark's notation as llguidance reads it.
    ``param`` is the field of the caller's request that it came from, for errors.
    ``schemas`` are JSON schemas that a Lark grammar holds, each with the name to call it by: as exact as one alone.
    """

    kind: Literal["json_object", "json_schema", "regex", "lark"]
    value: str
    param: str | None = None
    schemas: tuple[tuple[str, str], ...] = ()


class ToolUse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Functions that an answer may call.  ``tools`` as OpenAI writes them, which is how templates take them.

    ``required``: it has to be at least one call; ``name``: of this function.  ``parallel`` false: at most one call.
    ``key`` is what the calls' ids are made of: a resumed request repeats it, and so keeps them.
    """

    tools: list[dict[str, Any]]
    key: str
    required: bool = False
    name: str | None = None
    parallel: bool = True


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One sequence to generate.  Exactly one of ``messages``, ``text`` and ``token_ids`` is set.

    ``max_tokens`` counts from the prompt's end, so a resumed request repeats the original number;
    ``None`` means up to the context.  ``logprobs`` is the number of alternatives (0: the token alone).
    ``echo`` asks for the prompt's text (and, with ``logprobs``, its log-probabilities) in :class:`Accepted`.
    ``tool_use`` goes with ``messages``: only a chat's answer has parts.
    ``cache_salt`` separates tenants in the prefix cache; ``tenant``, with its ``weight``, is who has to share the
    engine with others.  All three are set by the gateway, never by its caller.
    ``priority``: the lower, the earlier, as vLLM has it; waiting makes it better.
    ``adapter``: the digest of the LoRA adapter to compute with, empty for the base model; set by the gateway from the
    model's name.  An engine that does not have it refuses with ``not_ready``: another one may.
    """

    id: str
    sampling: Sampling
    messages: list[dict[str, Any]] | None = None
    text: str | None = None
    token_ids: list[int] | None = None
    template_kwargs: dict[str, Any] = {}
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: list[str] = []
    stop_token_ids: list[int] = []
    logprobs: int | None = None
    echo: bool = False
    cache_salt: str = ""
    tenant: str = ""
    weight: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    priority: int = 0
    adapter: str = ""
    grammar: Grammar | None = None
    tool_use: ToolUse | None = None
    emitted_token_ids: list[int] = []


class TopLogprob(msgspec.Struct, frozen=True, array_like=True):
    """One alternative: its id, its text, its log-probability (natural logarithm, before temperature and masks)."""

    token_id: int
    text: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """The token that was taken, and the most probable alternatives in falling order.

    ``logprob`` is ``None`` only for a prompt's first token, which nothing precedes.
    """

    token_id: int
    text: str
    logprob: float | None
    bytes: list[int]
    top: list[TopLogprob]


NumTokens = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
"""What an engine may say it counted: it is charged, added up and written into the ledger."""


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens by kind.  ``output`` includes what an earlier attempt emitted; ``cached`` is part of ``prompt``,
    ``reasoning`` of ``output``: the tokens up to the one that closes the thinking.
    """

    prompt: NumTokens
    cached: NumTokens = 0
    output: NumTokens = 0
    reasoning: NumTokens = 0


class Accepted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="accepted"):
    """First line of a stream: the prompt was rendered, tokenised and fits.  With ``echo``, the prompt itself.

    Echoed log-probabilities are known only after prefill, so with them this line comes that late.
    ``weights`` is what the sequence begins on; set by the gateway from the engine's ``Load``.
    """

    prompt_tokens: NumTokens
    weights: str = ""
    prompt_text: str | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None


class Moved(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="moved"):
    """From here on other weights go on with the sequence.  Said by the gateway, never by an engine."""

    weights: str


class CallDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is new of one tool call.  ``id`` and ``name`` come with its first part; ``arguments`` add up to JSON."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Delta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="delta"):
    """New tokens and what they complete: the answer's ``text``, and apart from it ``reasoning`` and ``tool_calls``.

    All are empty while a character, a possible stop string or a possible mark is incomplete.
    What has been sent is a function of the token ids sent so far and of nothing else: so resume has no seam.
    ``logprobs`` has one entry per token id when they were asked for.
    """

    token_ids: list[int]
    text: str = ""
    reasoning: str = ""
    tool_calls: list[CallDelta] = []
    logprobs: list[TokenLogprob] | None = None


class Waits(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a sequence waited for inside its engine, in seconds of steps.

    ``held``: for so long whoever was first in line was held for this reason, as ``policy.batch`` names it; what is left
    of ``queued_s`` is the turns of others.  ``preemptions``: how often it gave its blocks back and waited again.
    """

    queued_s: float = 0.0
    held: dict[str, float] = {}
    preemptions: int = 0


class Finished(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="finished"):
    """Terminal.  ``text``, ``reasoning`` and ``tool_calls`` are what was held back.

    ``stop`` is the stop string or token id that matched.  ``limit``: the limit of the caller's that ended it, in words;
    set by the gateway, never by an engine.  ``tool_calls`` is the reason of an answer with calls in it
    that came to its own end.  ``waits`` is left out where it did not wait.
    """

    reason: FinishReason
    usage: Usage
    text: str = ""
    reasoning: str = ""
    tool_calls: list[CallDelta] = []
    stop: str | int | None = None
    limit: str = ""
    waits: Waits | None = None


class Failed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="failed"):
    """Terminal: a :class:`~penstock.wire.errors.Problem` after the stream had begun."""

    code: str
    message: str
    param: str | None = None


Event = Accepted | Moved | Delta | Finished | Failed


class AbortRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Cancel by id.  Unknown ids are not an error: the request may just have ended."""

    id: str


class LoadAdapter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Read the LoRA adapter in folder ``path``, an absolute path on the engine's machine.

    ``digest``: the one that it is to have; empty: whichever.  Loading what is there already changes nothing.
    """

    path: str
    digest: str = ""


class LoadedAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """What requests call it by from now on."""

    digest: str


class UnloadAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """No new request gets it; those that run with it end as they would.  Unknown digests are not an error."""

    digest: str


encode = msgspec.json.Encoder().encode
decode_events = msgspec.json.Decoder(Accepted | Delta | Finished | Failed).decode_lines
"""Any number of whole lines, as an engine may send them."""


def encode_line(event: msgspec.Struct) -> bytes:
    """One event as one line of its stream."""
    return encode(event) + b"\n"


def failed(problem: Problem) -> Failed:
    """A problem as the stream's terminal event."""
    return Failed(code=problem.code, message=problem.message, param=problem.param)


def problem_of(event: Failed) -> Problem:
    """The way back: raise this where the stream is read.  A code of another release becomes ``engine_protocol``."""
    if event.code not in ERRORS:
        return Problem("engine_protocol", f"The engine answered the unknown code {event.code!r}: {event.message}")
    return Problem(event.code, event.message, param=event.param)
