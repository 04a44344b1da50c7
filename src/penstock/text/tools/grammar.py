"""Rules in llguidance's Lark notation that calls of several styles share.

In: functions; out: lines of a grammar.  ``call`` is one call, ``args_i`` the arguments of function ``i``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from penstock.text.inexact import JSON_ALLOWED_ESCAPES
from penstock.text.tools.style import Function

# As json.dumps writes and chat templates show it; free white space would let a model go on with it for ever.
_OPTIONS = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": JSON_ALLOWED_ESCAPES,
}


def literal(text: str) -> str:
    """A text as Lark writes it."""
    return json.dumps(text)


def json_value(schema: dict[str, Any]) -> str:
    """A JSON value that a schema describes."""
    return f"%json {json.dumps(schema | {'x-guidance': _OPTIONS})}"


def calls_rule(first: str, other: str, parallel: bool) -> str:
    """The rule for all calls: ``first``, and if several are allowed any number of ``other``."""
    return f"calls: {first} ({other})*" if parallel else f"calls: {first}"


def call_rules(functions: Sequence[Function], write: Callable[[str, str], str]) -> list[str]:
    """``write`` is given a function's name and its arguments' rule, and gives the expression for a call of it."""
    rules = ["call: " + " | ".join(f"call_{i}" for i in range(len(functions)))]
    for i, function in enumerate(functions):
        rules += [f"call_{i}: {write(function.name, f'args_{i}')}", f"args_{i}: {json_value(function.parameters)}"]
    return rules


def object_call(key: str) -> Callable[[str, str], str]:
    """A call as an object of a name and, under ``key``, its arguments."""

    def write(name: str, arguments: str) -> str:
        begin = literal(f'{{"name": {json.dumps(name)}, {json.dumps(key)}: ')
        return f"{begin} {arguments} {literal('}')}"

    return write
