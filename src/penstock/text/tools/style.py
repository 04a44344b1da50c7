"""What a style of tool calls is, and what its parser answers.

In: the functions a request offers, and text as it streams; out: text and parts of calls.
A parser reads text alone, so that the same output gives the same calls however it was cut into tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from penstock.wire.engine import ToolUse

_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Function:
    """A function that may be called.  ``parameters`` is the JSON schema of its arguments, an object."""

    name: str
    parameters: dict[str, Any]


@dataclass(slots=True)
class CallPart:
    """What is new of one call.  ``name`` is set with its first part and empty in the others."""

    index: int
    name: str = ""
    arguments: str = ""


class ToolParser(Protocol):
    """One output."""

    @property
    def num_calls(self) -> int:
        """Calls begun so far."""

    @property
    def in_call(self) -> bool:
        """The call that was begun last is not complete."""

    @property
    def is_over(self) -> bool:
        """No more of the output counts: one call was allowed, and it is complete."""

    def push(self, text: str) -> tuple[str, list[CallPart]]:
        """Take more text: what of it is text, and what is new of calls."""

    def flush(self) -> tuple[str, list[CallPart]]:
        """The output ended: what was held back, as what it then is."""


Mark = Callable[[str], str]
"""A mark's text to Lark's expression for it: a token of its own, or its characters."""


@dataclass(frozen=True, slots=True)
class ToolStyle:
    """One way to write calls.

    ``marks``: texts that a detokenizer must not hide.  ``recognises``: whether a chat template asks for this style.
    ``parser`` is given the names on offer and whether several calls are allowed.  ``grammar`` writes rules in Lark's
    notation, as llguidance reads it; its rule ``calls`` is an output with at least one valid call.
    ``call_id`` gives an id the shape that templates want.
    """

    name: str
    marks: tuple[str, ...]
    recognises: Callable[[str], bool]
    parser: Callable[[frozenset[str], bool], ToolParser]
    grammar: Callable[[Sequence[Function], bool, Mark], str]
    call_id: Callable[[str, int], str]


def functions_of(use: ToolUse) -> list[Function]:
    """The functions a request may call: all it offers, or the one it names."""
    functions = [tool["function"] for tool in use.tools]
    return [
        Function(function["name"], (function.get("parameters") or _NO_PARAMETERS) | {"type": "object"})
        for function in functions
        if use.name in (None, function["name"])
    ]


def long_id(key: str, index: int) -> str:
    """OpenAI's shape: call_ and 24 characters.  A function of both, so that a resumed stream keeps its ids."""
    return f"call_{hashlib.sha256(f'{key}:{index}'.encode()).hexdigest()[:24]}"
