"""Chat completions, the way in: OpenAI's request to one engine request per choice.

In: a body; out: ``ChatRequest`` and its ``GenerateRequest`` list, or a ``Problem`` that names the field.
Renders no template: messages go to the engine as they came, their text parts joined.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from penstock.wire.engine import GenerateRequest
from penstock.wire.errors import Problem
from penstock.wire.openai import fields
from penstock.wire.openai.decode import Field, decode_body
from penstock.wire.openai.fields import UNSET, Absent
from penstock.wire.openai.messages import Message, engine_messages
from penstock.wire.openai.structured import grammar_of
from penstock.wire.openai.tools import tool_use_of

_LEGACY = ("functions", "function_call")
_UNSUPPORTED = (
    *fields.SHARED_UNSUPPORTED,
    "audio",
    "modalities",
    "prediction",
    "web_search_options",
    "verbosity",
    "store",
)

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class Thinking(msgspec.Struct, frozen=True):
    """The switch as DeepSeek's and GLM's APIs spell it."""

    type: Literal["enabled", "disabled", "adaptive"]


class ChatRequest(fields.Shared, kw_only=True, frozen=True):
    """``max_completion_tokens`` wins over ``max_tokens``.  From ``enable_thinking`` on: others' extensions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: Field = UNSET
    tool_choice: Field = UNSET
    parallel_tool_calls: bool | None = None
    functions: Absent = UNSET
    function_call: Absent = UNSET
    audio: Absent = UNSET
    modalities: Absent = UNSET
    prediction: Absent = UNSET
    web_search_options: Absent = UNSET
    verbosity: Absent = UNSET
    store: Absent = UNSET
    reasoning_effort: ReasoningEffort | None = None
    enable_thinking: bool | None = None
    thinking: Thinking | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    @property
    def num_choices(self) -> int:
        return self.choices_per_prompt

    def beginning(self) -> bytes:
        """What all requests of one conversation share: everything up to the first message of a user."""
        first = next((i for i, message in enumerate(self.messages) if message.role == "user"), 0)
        return _encode(self.messages[: first + 1])


_decoder = msgspec.json.Decoder(ChatRequest)
_encode = msgspec.json.Encoder().encode


def decode(body: bytes) -> ChatRequest:
    """Decode and check one request body.  Raises ``Problem``."""
    request = decode_body(_decoder, body)
    fields.refuse_unsupported(request, _LEGACY, instead="tools and tool_choice")
    fields.refuse_unsupported(request, _UNSUPPORTED)
    fields.check_shared(request)
    bound = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    fields.check_max_tokens(tokens_bound(request), bound, least=1, min_tokens=request.min_tokens)
    if request.top_logprobs is not None:
        if not 0 <= request.top_logprobs <= fields.MAX_TOP_LOGPROBS:
            raise fields.out_of_range("top_logprobs", request.top_logprobs, 0, fields.MAX_TOP_LOGPROBS)
        if not request.logprobs:
            raise Problem("invalid_value", "top_logprobs needs logprobs: true.", param="top_logprobs")
    if request.continue_final_message and request.add_generation_prompt:
        message = "continue_final_message and add_generation_prompt exclude each other."
        raise Problem("invalid_value", message, param="continue_final_message")
    return request


def tokens_bound(request: ChatRequest) -> int | None:
    """The most tokens one choice may have; ``None``: up to the context."""
    return request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens


def template_kwargs(request: ChatRequest) -> dict[str, Any]:
    """Variables of the template: how much to think, in the words templates know, and what the caller sets himself.

    The nearer word wins: ``chat_template_kwargs``, ``enable_thinking``, ``thinking``, ``reasoning_effort``.
    """
    given, kwargs = request.chat_template_kwargs or {}, dict[str, Any]()
    thinks = request.enable_thinking
    if thinks is None and request.thinking is not None:
        thinks = None if request.thinking.type == "adaptive" else request.thinking.type == "enabled"
    if request.reasoning_effort is not None:
        kwargs["reasoning_effort"] = request.reasoning_effort
        thinks = request.reasoning_effort != "none" if thinks is None else thinks
    # Qwen3, GLM and SmolLM3 read the first name, DeepSeek-V3.1 and Granite the second.
    names = ("enable_thinking", "thinking")
    if thinks is not None and not given.keys() & names:
        kwargs |= dict.fromkeys(names, thinks)
    return kwargs | given


def engine_requests(request: ChatRequest, id: str, drawn_seed: int) -> list[GenerateRequest]:
    """One engine request per choice, ids ``{id}-{choice}``."""
    messages = engine_messages(request.messages)
    grammar = grammar_of(request)
    use = tool_use_of(request.tools, request.tool_choice, request.parallel_tool_calls)
    continues = bool(request.continue_final_message)
    generates = not continues if request.add_generation_prompt is None else request.add_generation_prompt
    return [
        GenerateRequest(
            id=f"{id}-{choice}",
            sampling=sampling,
            messages=messages,
            template_kwargs=template_kwargs(request),
            add_generation_prompt=generates,
            continue_final_message=continues,
            max_tokens=tokens_bound(request),
            min_tokens=request.min_tokens or 0,
            ignore_eos=bool(request.ignore_eos),
            stop=fields.stops_of(request),
            stop_token_ids=request.stop_token_ids or [],
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            grammar=grammar,
            tool_use=None if use is None else msgspec.structs.replace(use, key=f"{id}-{choice}"),
        )
        for choice, sampling in enumerate(fields.samplings(request, drawn_seed, request.num_choices))
    ]
