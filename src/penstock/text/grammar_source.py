"""A grammar as callers write it to one as llguidance takes it, refused where it asks for what cannot be held.

In: a :class:`~penstock.wire.engine.Grammar`; out: llguidance's own JSON, or ``Problem("grammar_invalid")``.
Not bounded in time: runs in the grammar process, under its alarm.
"""

from __future__ import annotations

import json
from typing import Any

from llguidance import LLMatcher, regex_to_lark

from penstock.wire.engine import Grammar
from penstock.wire.errors import Problem

# A model that is unsure may otherwise write white space until max_tokens.  64 characters indent 16 levels by four.
_JSON_OPTIONS = {"whitespace_pattern": r"[ \n\r\t]{1,64}"}
# Without this, a text that is certain allows but one way to cut it into tokens, which takes a tokenizer to find; as it
# is, the model's own choice counts.  Comes last, so that it holds whatever a caller's grammar says.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'


def llguidance_source(grammar: Grammar) -> str:
    """The grammar in llguidance's own format.  Raises ``Problem("grammar_invalid")``."""
    return LLMatcher.grammar_from_lark(_lark(grammar) + _OPTIONS)


def _lark(grammar: Grammar) -> str:
    if grammar.kind == "lark":
        return grammar.value
    if grammar.kind == "regex":
        return f"start: /{regex_to_lark(grammar.value)}/"
    schema = _decoded(grammar.value) if grammar.kind == "json_schema" else {"type": "object"}
    return f"start: %json {json.dumps(schema | {'x-guidance': _JSON_OPTIONS})}"


def _decoded(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise Problem("grammar_invalid", f"The schema is not JSON: {error}.") from None
    except RecursionError:
        raise Problem("grammar_too_complex", "The schema is nested too deeply.") from None
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise Problem("grammar_invalid", f"The schema is {text[:40]}; it must be an object.")
    return schema
