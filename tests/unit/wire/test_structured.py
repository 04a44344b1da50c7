"""What clients ask an answer to be, in every form they have for it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.wire.engine import Grammar
from penstock.wire.errors import Problem
from penstock.wire.openai import chat, completions

SCHEMA = {"type": "object", "properties": {"größe": {"type": "integer"}}}


def chat_grammar(**fields: Any) -> Grammar | None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return chat.engine_requests(chat.decode(json.dumps(body).encode()), "id", 1)[0].grammar


def text_grammar(**fields: Any) -> Grammar | None:
    body = {"model": "m", "prompt": "hi", **fields}
    return completions.engine_requests(completions.decode(json.dumps(body).encode()), "id", 1)[0].grammar


def format_of(schema: Any, **more: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, **more}}}


@pytest.mark.parametrize("read", [chat_grammar, text_grammar])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (format_of(SCHEMA, strict=True, description="d"), "response_format.json_schema.schema"),
        (format_of(SCHEMA), "response_format.json_schema.schema"),
        ({"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "structured_outputs.json"),
        ({"guided_json": SCHEMA}, "guided_json"),
        ({"guided_json": json.dumps(SCHEMA)}, "guided_json"),
    ],
)
def test_every_form_of_a_schema_is_that_schema(read: Any, fields: dict[str, Any], param: str) -> None:
    """Chat and text completions hand a schema on as it was written, with the field that it came from."""
    grammar = read(**fields)
    assert (grammar.kind, json.loads(grammar.value), grammar.param) == ("json_schema", SCHEMA, param)


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": None, "guided_json": None, "structured_outputs": None}, None),
        (
            {"response_format": {"type": "json_object"}},
            Grammar(kind="json_object", value="{}", param="response_format"),
        ),
        (
            {"structured_outputs": {"json_object": True}},
            Grammar(kind="json_object", value="{}", param="structured_outputs.json_object"),
        ),
        ({"guided_regex": "a+"}, Grammar(kind="regex", value="a+", param="guided_regex")),
        ({"guided_grammar": 'start: "a"'}, Grammar(kind="lark", value='start: "a"', param="guided_grammar")),
        ({"guided_choice": ["a", 'b"', "a"]}, Grammar(kind="lark", value='start: "a" | "b\\""', param="guided_choice")),
    ],
)
def test_the_other_forms(fields: dict[str, Any], grammar: Grammar | None) -> None:
    """Text asks for nothing; objects, expressions, choices and grammars become the engine's kinds."""
    assert chat_grammar(**fields) == grammar


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"response_format": {"type": "xml"}}, "invalid_value", "response_format.type"),
        ({"response_format": "json"}, "invalid_type", "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "invalid_value", None),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": None}}}, "invalid_value", None),
        ({"structured_outputs": {}}, "invalid_value", "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "x"}}, "invalid_type", "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "invalid_value", "structured_outputs.choice"),
        ({"guided_choice": []}, "invalid_value", "guided_choice"),
        ({"guided_choice": "a"}, "invalid_type", "guided_choice"),
        ({"guided_regex": 5}, "invalid_type", "guided_regex"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "invalid_value", "guided_regex"),
    ],
)
def test_what_makes_no_grammar_is_refused_by_name(fields: dict[str, Any], code: str, param: str | None) -> None:
    """Wrong types, unknown forms and several forms at once are a 400 that names the field."""
    with pytest.raises(Problem) as caught:
        chat_grammar(**fields)
    assert (caught.value.code, caught.value.spec.status) == (code, 400)
    assert param is None or caught.value.param == param
