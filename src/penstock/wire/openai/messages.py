"""Chat messages, the way in: as OpenAI writes them to what chat templates take.

In: decoded messages; out: dictionaries with text, reasoning and calls, or a ``Problem`` that names the field.
A call's arguments become the object that templates expect, https://huggingface.co/docs/transformers/chat_extras.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from penstock.wire.errors import Problem
from penstock.wire.openai import fields
from penstock.wire.openai.fields import UNSET, Absent

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class ContentPart(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None


class FunctionCall(msgspec.Struct, frozen=True):
    """``arguments`` is JSON as the model wrote it, which need not be valid."""

    name: str
    arguments: str = "{}"


class ToolCall(msgspec.Struct, frozen=True):
    function: FunctionCall
    id: str = ""
    type: str = "function"


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """``reasoning_content``, by some called ``reasoning``, is an assistant's earlier thinking."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: Absent = UNSET
    audio: Absent = UNSET
    reasoning_content: str | None = None
    reasoning: str | None = None


def engine_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates take them.  Raises ``Problem`` for what no text model can read."""
    if not messages:
        raise Problem("invalid_value", "messages is empty; at least one message is needed.", param="messages")
    return [_engine_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _engine_message(message: Message, where: str) -> dict[str, Any]:
    if message.role not in _ROLES:
        text = f"{where}.role is not one of {', '.join(_ROLES)}."
        raise Problem("invalid_value", text, param=f"{where}.role")
    if message.role == "function":
        text = f"{where}.role 'function' is not supported; functions are tools now, and their results have role 'tool'."
        raise Problem("unsupported_parameter", text, param=f"{where}.role")
    fields.refuse_unsupported(message, ("function_call", "audio"), prefix=f"{where}.")
    # "developer" is OpenAI's newer word for "system"; templates of open models know only the latter.
    role = "system" if message.role == "developer" else message.role
    result: dict[str, Any] = {"role": role, "content": _text(message, where)}
    if message.name is not None:
        result["name"] = message.name
    if role == "assistant":
        return result | _own_parts(message, where)
    if message.tool_calls:
        text = f"{where}.tool_calls belongs to an assistant's message, not to one of role {message.role!r}."
        raise Problem("invalid_value", text, param=f"{where}.tool_calls")
    if role == "tool":
        if message.tool_call_id is None:
            param = f"{where}.tool_call_id"
            raise Problem("invalid_value", f"{param} is required and missing.", param=param)
        result["tool_call_id"] = message.tool_call_id
    return result


def _own_parts(message: Message, where: str) -> dict[str, Any]:
    """What only an assistant's message has: its reasoning and its calls."""
    parts: dict[str, Any] = {}
    reasoning = message.reasoning_content if message.reasoning_content is not None else message.reasoning
    if reasoning is not None:
        parts["reasoning_content"] = reasoning
    for index, call in enumerate(message.tool_calls or []):
        if call.type != "function":
            param = f"{where}.tool_calls[{index}].type"
            raise Problem("unsupported_parameter", f"{param} is not 'function', the one there is.", param=param)
        parts.setdefault("tool_calls", []).append(
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
        )
    return parts


def _arguments(text: str) -> dict[str, Any] | str:
    """The object that the arguments say; the text itself where they say none, as it then is what the model wrote."""
    try:
        value = json.loads(text or "{}", strict=False)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


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
            raise Problem("invalid_value", f"{param}.text is required and missing.", param=param)
        texts.append(part.text)
    return "\n".join(texts)
