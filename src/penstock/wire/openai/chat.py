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
from penstock.wire.openai.decode import decode_body
from penstock.wire.openai.fields import UNSET, Absent
from penstock.wire.openai.structured import grammar_of

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_UNSUPPORTED = (
    *fields.SHARED_UNSUPPORTED,
    "tools",
    "tool_choice",
    "functions",
    "function_call",
    "audio",
    "modalities",
    "prediction",
    "web_search_options",
    "verbosity",
    "store",
)


ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class ContentPart(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True):
    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: Absent = UNSET
    function_call: Absent = UNSET
    audio: Absent = UNSET
    reasoning_content: str | None = None
    reasoning: str | None = None


class Thinking(msgspec.Struct, frozen=True):
    """The switch as DeepSeek's and GLM's APIs spell it."""

    type: Literal["enabled", "disabled", "adaptive"]


class ChatRequest(fields.Shared, kw_only=True, frozen=True):
    """``max_completion_tokens`` wins over ``max_tokens``.  From ``enable_thinking`` on: others' extensions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: Absent = UNSET
    tool_choice: Absent = UNSET
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


_decoder = msgspec.json.Decoder(ChatRequest)


def decode(body: bytes) -> ChatRequest:
    """Decode and check one request body.  Raises ``Problem``."""
    request = decode_body(_decoder, body)
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


def engine_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates take them.  Raises ``Problem`` for what no text model can read."""
    if not messages:
        raise Problem("invalid_value", "messages is empty; at least one message is needed.", param="messages")
    return [_engine_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _engine_message(message: Message, where: str) -> dict[str, Any]:
    if message.role not in _ROLES:
        text = f"{where}.role is not one of {', '.join(_ROLES)}."
        raise Problem("invalid_value", text, param=f"{where}.role")
    if message.role in ("tool", "function"):
        text = f"{where}.role {message.role!r} is not supported by this release."
        raise Problem("unsupported_parameter", text, param=f"{where}.role")
    fields.refuse_unsupported(message, ("tool_calls", "function_call", "audio"), prefix=f"{where}.")
    # "developer" is OpenAI's newer word for "system"; templates of open models know only the latter.
    role = "system" if message.role == "developer" else message.role
    result: dict[str, Any] = {"role": role, "content": _text(message, where)}
    if message.name is not None:
        result["name"] = message.name
    reasoning = message.reasoning_content if message.reasoning_content is not None else message.reasoning
    if role == "assistant" and reasoning is not None:
        result["reasoning_content"] = reasoning
    return result


def _text(message: Message, where: str) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        if message.role == "assistant":
            return ""
        raise Problem("invalid_value", f"{where}.content is required and missing.", param=f"{where}.content")
    texts = []
    for index, part in enumerate(content):
        param = f"{where}.content[{index}]"
        if part.type != "text":
            raise Problem("unsupported_parameter", f"{param} is not a text part; only text is supported.", param=param)
        if part.text is None:
            raise Problem("invalid_value", f"{param}.text is required and missing.", param=f"{param}.text")
        texts.append(part.text)
    return "\n".join(texts)


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
        )
        for choice, sampling in enumerate(fields.samplings(request, drawn_seed, request.num_choices))
    ]
