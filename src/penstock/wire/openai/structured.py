"""What an answer has to be, in the ways clients ask for it: OpenAI's response_format and vLLM's extensions.

In: the fields as they came; out: one ``Grammar`` or ``None``, or a ``Problem`` that names the field.
Looks at no schema and no expression: the engine does, where a hostile one can be ended.
"""

from __future__ import annotations

import json
from operator import attrgetter
from typing import Any

import msgspec

from penstock.wire.engine import Grammar
from penstock.wire.errors import Problem
from penstock.wire.openai.decode import Field, decode_field
from penstock.wire.openai.fields import Shared

MAX_CHOICES_TO_TAKE = 10_000
_KINDS_OF_FORMAT = "text, json_object or json_schema"


class _JsonSchema(msgspec.Struct, frozen=True):
    """``strict`` changes nothing: a schema is always enforced, and refused where that is not possible."""

    name: str | None = None
    schema: Field = msgspec.UNSET
    strict: bool | None = None
    description: str | None = None


class _ResponseFormat(msgspec.Struct, frozen=True):
    type: str
    json_schema: _JsonSchema | None = None


class _StructuredOutputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    json: Field = msgspec.UNSET
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


_ways = attrgetter(
    "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"
)
_NO_WAY = (msgspec.UNSET,) * 6


def grammar_of(request: Shared) -> Grammar | None:
    """The one grammar that a request asks for.  Raises ``Problem`` for several, and for what no grammar comes of."""
    if _ways(request) == _NO_WAY:
        return None
    found = [
        *_of_response_format(request.response_format),
        *_of_structured_outputs(request.structured_outputs),
        *_schema(request.guided_json, "guided_json"),
        *_text("regex", decode_field(request.guided_regex, str, "guided_regex"), "guided_regex"),
        *_choice(decode_field(request.guided_choice, list[str], "guided_choice"), "guided_choice"),
        *_text("lark", decode_field(request.guided_grammar, str, "guided_grammar"), "guided_grammar"),
    ]
    if len(found) > 1:
        message = f"{found[0].param} and {found[1].param} both say what the answer has to be; give one of them."
        raise Problem("invalid_value", message, param=found[1].param)
    return found[0] if found else None


def _of_response_format(raw: Field) -> list[Grammar]:
    asked = decode_field(raw, _ResponseFormat, "response_format")
    if asked is None or asked.type == "text":
        return []
    if asked.type == "json_object":
        return [Grammar(kind="json_object", value="{}", param="response_format")]
    if asked.type != "json_schema":
        message = f"response_format.type is not one of {_KINDS_OF_FORMAT}."
        raise Problem("invalid_value", message, param="response_format.type")
    param = "response_format.json_schema"
    found = [] if asked.json_schema is None else _schema(asked.json_schema.schema, f"{param}.schema")
    if not found:
        raise Problem("invalid_value", f"{param}.schema is required and missing.", param=f"{param}.schema")
    return found


def _of_structured_outputs(raw: Field) -> list[Grammar]:
    asked = decode_field(raw, _StructuredOutputs, "structured_outputs")
    if asked is None:
        return []
    found = [
        *_schema(asked.json, "structured_outputs.json"),
        *_text("regex", asked.regex, "structured_outputs.regex"),
        *_choice(asked.choice, "structured_outputs.choice"),
        *_text("lark", asked.grammar, "structured_outputs.grammar"),
    ]
    if asked.json_object:
        found.append(Grammar(kind="json_object", value="{}", param="structured_outputs.json_object"))
    if not found:
        message = "structured_outputs asks for nothing; set one of json, regex, choice, grammar and json_object."
        raise Problem("invalid_value", message, param="structured_outputs")
    return found


def _schema(raw: Field, param: str) -> list[Grammar]:
    """A schema as JSON, or as a string that holds JSON, as some clients send it."""
    if isinstance(raw, msgspec.UnsetType):
        return []
    written = bytes(raw)
    if written == b"null":
        return []
    text = decode_field(raw, str, param) if written.startswith(b'"') else written.decode()
    return _text("json_schema", text, param)


def _choice(choices: list[str] | None, param: str) -> list[Grammar]:
    if choices is None:
        return []
    if not 1 <= len(choices) <= MAX_CHOICES_TO_TAKE:
        message = f"{param} has {len(choices)} texts; 1 to {MAX_CHOICES_TO_TAKE} are allowed."
        raise Problem("invalid_value", message, param=param)
    alternatives = " | ".join(json.dumps(text, ensure_ascii=False) for text in dict.fromkeys(choices))
    return [Grammar(kind="lark", value=f"start: {alternatives}", param=param)]


def _text(kind: Any, value: str | None, param: str) -> list[Grammar]:
    return [] if value is None else [Grammar(kind=kind, value=value, param=param)]
