"""Tools, the way in: the functions a request offers, and whether and how many calls its answer has.

In: the fields as they came; out: the engine's ``ToolUse``, or a ``Problem`` that names the field.
Looks at no schema: the engine does, where a hostile one can be ended.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from penstock.wire.engine import ToolUse
from penstock.wire.errors import Problem
from penstock.wire.openai.decode import Field, decode_field

MAX_TOOLS = 512
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


class Function(msgspec.Struct, frozen=True):
    """``strict`` changes nothing: arguments of a required call are always held to the schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True):
    type: str
    function: Function | None = None


class _Named(msgspec.Struct, frozen=True):
    name: str


class _Choice(msgspec.Struct, frozen=True):
    type: str
    function: _Named


def tools_of(raw: Field) -> list[dict[str, Any]]:
    """The tools as templates take them, member for member as they came.  Raises ``Problem``."""
    tools: list[Tool] = decode_field(raw, list[Tool], "tools") or []
    if len(tools) > MAX_TOOLS:
        message = f"tools has {len(tools)} entries; at most {MAX_TOOLS} are allowed."
        raise Problem("invalid_value", message, param="tools")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        param = f"tools[{index}]"
        if tool.type != "function":
            message = f"{param}.type is not 'function', the one kind of tool that is supported."
            raise Problem("unsupported_parameter", message, param=f"{param}.type")
        if tool.function is None:
            raise Problem("invalid_value", f"{param}.function is required and missing.", param=f"{param}.function")
        name = tool.function.name
        if not _NAME.fullmatch(name):
            message = f"{param}.function.name is not 1 to 128 letters, digits, underscores, dots and hyphens."
            raise Problem("invalid_value", message, param=f"{param}.function.name")
        if name in names:
            message = f"{param}.function.name is {name!r}, like that of an earlier tool."
            raise Problem("invalid_value", message, param=f"{param}.function.name")
        names.add(name)
    return decode_field(raw, list[dict[str, Any]], "tools") or [] if tools else []


def tool_use_of(tools: Field, tool_choice: Field, parallel: bool | None) -> ToolUse | None:
    """What the engine is to do about tools; ``None``: nothing.  ``key`` is left for each choice to set."""
    offered = tools_of(tools)
    mode, name = _choice_of(tool_choice)
    if not offered:
        if mode == "required":
            raise Problem("invalid_value", "tool_choice asks for a call, and there are no tools.", param="tool_choice")
        return None
    if mode == "none":
        return None
    if name is not None and name not in {tool["function"]["name"] for tool in offered}:
        message = f"tool_choice names {name!r}, which is not among the tools."
        raise Problem("invalid_value", message, param="tool_choice")
    return ToolUse(tools=offered, key="", required=mode == "required", name=name, parallel=parallel is not False)


def _choice_of(raw: Field) -> tuple[Literal["none", "auto", "required"], str | None]:
    word = decode_field(raw, str | _Choice, "tool_choice")
    if isinstance(word, _Choice):
        if word.type != "function":
            message = "tool_choice.type is not 'function', the one that is supported."
            raise Problem("unsupported_parameter", message, param="tool_choice.type")
        return "required", word.function.name
    if word is None or word == "auto":
        return "auto", None
    if word == "none":
        return "none", None
    if word == "required":
        return "required", None
    message = "tool_choice is not none, auto, required or {type: function, function: {name}}."
    raise Problem("invalid_value", message, param="tool_choice")
