"""A grammar as callers write it to one as llguidance takes it, refused where it asks for what cannot be held.

In: a :class:`~penstock.wire.engine.Grammar`; out: a matcher of llguidance's, or a ``Problem`` in a caller's words.
Not bounded in time: runs in the grammar process, under its alarm.
"""

from __future__ import annotations

import json
import time
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark

from penstock.text.inexact import JSON_ALLOWED_ESCAPES
from penstock.text.schema import check_schema, subschemas
from penstock.wire.engine import Grammar
from penstock.wire.errors import Problem

# A model that is unsure may otherwise write white space until max_tokens.  Two spaces, or a line's end and what indents
# the next one: 8 levels by four, or 16 by two.
_WHITE_SPACE = r" {1,2}|\r?\n( {0,32}|\t{0,16})"
_JSON_OPTIONS = {"whitespace_pattern": _WHITE_SPACE, "json_allowed_escapes": JSON_ALLOWED_ESCAPES}
# Large regular expressions are not run over the whole vocabulary beforehand: that is what makes a first mask slow.
# Other bounds are the library's own.  The texts of its errors would otherwise repeat the whole grammar.
_LIMITS = LLParserLimits(precompute_large_lexemes=False, verbose_errors=False)
_LOCATING_CPU_S = 0.1
_MAX_WORDS_CHARS = 300
_WHERE_IS_JSON = "at 1(8): failed to compile JSON schema: "
_TOO_COMPLEX = ("too big", "too large", "too deeply", "too many", "Too many", "exhausted", "limit exceeded", "max is")
# Without this, a text that is certain allows but one way to cut it into tokens, which takes a tokenizer to find; as it
# is, the model's own choice counts.  Comes last, so that it holds whatever a caller's grammar says.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'


def compiled(tokenizer: LLTokenizer, grammar: Grammar) -> LLMatcher:
    """A matcher at the grammar's start.  Raises ``Problem``: ``grammar_invalid`` or ``grammar_too_complex``."""
    if grammar.kind == "lark":
        for name, text in grammar.schemas:
            _check_named(name, text)
        return _matcher(tokenizer, grammar.value)
    if grammar.kind == "regex":
        return _matcher(tokenizer, f"start: /{regex_to_lark(grammar.value)}/")
    schema = _decoded(grammar.value) if grammar.kind == "json_schema" else {"type": "object"}
    check_schema(schema)
    try:
        return _matcher(tokenizer, _lark_of(schema))
    except Problem as problem:
        raise _located(tokenizer, schema, problem) from None


def problem_of(matcher: LLMatcher) -> Problem | None:
    """What ended a matcher, in its own words as far as they are for callers."""
    if not matcher.is_error():
        return None
    text = matcher.get_error().split("<non-verbose/>")[0].strip()
    if text in ("NoExtension", "NoExtensionBias"):
        return Problem("grammar_invalid", "Nothing can satisfy this: no text begins as it demands.")
    words = text.splitlines()[0].removeprefix(_WHERE_IS_JSON).rstrip(".") if text else "It cannot be followed"
    if len(words) > _MAX_WORDS_CHARS:
        words = f"{words[:_MAX_WORDS_CHARS]}..."
    if words.startswith("oneOf"):
        words = "oneOf can be enforced only where its alternatives exclude one another for certain; use anyOf"
    too_complex = any(sign in words for sign in _TOO_COMPLEX)
    return Problem("grammar_too_complex" if too_complex else "grammar_invalid", f"{words}.")


def _check_named(name: str, text: str) -> None:
    try:
        check_schema(_decoded(text))
    except Problem as problem:
        raise Problem(problem.code, f"{name}: {problem.message}") from None


def _matcher(tokenizer: LLTokenizer, lark: str) -> LLMatcher:
    source = LLMatcher.grammar_from_lark(lark + _OPTIONS)
    matcher = LLMatcher(tokenizer, source, log_level=0, limits=_LIMITS)
    if (problem := problem_of(matcher)) is not None:
        raise problem
    return matcher


def _lark_of(schema: dict[str, Any]) -> str:
    return f"start: %json {json.dumps(schema | {'x-guidance': _JSON_OPTIONS})}"


def _located(tokenizer: LLTokenizer, root: dict[str, Any], problem: Problem) -> Problem:
    """The problem with its place: the deepest schema that, alone, is refused in the same words."""
    named = {key: root[key] for key in ("$defs", "definitions") if key in root}
    place, depth, begin = "#", 0, time.process_time()
    for path, schema in subschemas(root):
        if time.process_time() - begin > _LOCATING_CPU_S:
            break
        if path.count("/") > depth and isinstance(schema, dict) and "$ref" not in schema:
            try:
                _matcher(tokenizer, _lark_of(named | schema))
            except Problem as same:
                if same.message == problem.message:
                    place, depth = path, path.count("/")
    return Problem(problem.code, f"{place}: {problem.message}")


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
