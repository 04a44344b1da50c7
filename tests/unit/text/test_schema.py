"""Which schemas are refused before they are compiled, and how the refusal names word and place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.text.schema import ANNOTATIONS, ENFORCED, check_schema
from penstock.wire.errors import Problem


def refusal(schema: dict[str, Any]) -> str:
    with pytest.raises(Problem) as caught:
        check_schema(schema)
    assert caught.value.code in ("grammar_invalid", "grammar_too_complex")
    return caught.value.message


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"not": {}}, ("#", "not")),
        ({"properties": {"a/b": {"minLenght": 3}}}, ("#/properties/a~1b", "minLenght")),
        ({"items": {"uniqueItems": True, "contains": {}}}, ("#/items", "contains, uniqueItems")),
        ({"x-guidance": {"lenient": True}}, ("#", "x-guidance")),
        ({"anyOf": [{}, {"$id": "http://other"}]}, ("#/anyOf/1", "$id")),
        ({"items": {"$ref": "https://example.com/a.json"}}, ("#/items", "nothing is fetched")),
        ({"$ref": "#/$defs/none"}, ("#", "points to no schema")),
        ({"$ref": 5}, ("#", "5")),
        ({"properties": 3}, ("#", "properties must be an object")),
        ({"anyOf": {}}, ("#", "anyOf must be a list")),
        ({"items": [{}]}, ("#/items", "object or a boolean")),
        ({"prefixItems": [{"minItems": 1e9}]}, ("#/prefixItems/0", "minItems")),
        ({"minProperties": 3, "required": ["a"]}, ("#", "minProperties is 3 and 1 are required")),
        ({"const": ["\x00"]}, ("#/const", "escape")),
        ({"properties": {"\x7f": {}}}, ("#/properties", "escape")),
        ({"enum": [2**53 + 1]}, ("#/enum", "2**53")),
        ({"maximum": json.loads("1e999")}, ("#/maximum", "too large")),
        ({"type": "number", "exclusiveMinimum": 22, "maximum": 22.5}, ("#", "exclusive")),
        ({"exclusiveMaximum": -1, "allOf": [{"minimum": -1.5}]}, ("#", "exclusive")),
        ({"minimum": 0.5, "anyOf": [{"exclusiveMaximum": 1}]}, ("#", "exclusive")),
    ],
)
def test_a_refusal_names_the_word_and_the_place(schema: dict[str, Any], words: tuple[str, str]) -> None:
    """What cannot be enforced is named, with a JSON pointer to where it stands."""
    message = refusal(schema)
    assert message.startswith((f"{words[0]}:", f"{words[0]}/"))
    assert words[1] in message


ENDLESS: list[dict[str, Any]] = [
    {"$ref": "#"},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    {"type": "array", "prefixItems": [{}, {"$ref": "#"}], "minItems": 2},
    {"anyOf": [{"$ref": "#"}, False]},
    {"type": "object", "required": ["a"], "additionalProperties": {"$ref": "#"}},
]


@pytest.mark.parametrize("schema", ENDLESS)
def test_a_schema_without_a_finite_value_is_refused(schema: dict[str, Any]) -> None:
    """Recursion without a way out cannot be satisfied."""
    assert "finite" in refusal(schema)


def test_recursion_with_a_way_out_is_accepted() -> None:
    """Optional properties, empty lists and alternatives end a recursion."""
    check_schema({"type": "object", "properties": {"a": {"$ref": "#"}}})
    check_schema({"type": "array", "items": {"$ref": "#"}})
    check_schema({"anyOf": [{"type": "array", "items": {"$ref": "#"}, "minItems": 1}, {"type": "null"}]})
    check_schema({"type": ["object", "null"], "properties": {"a": {"$ref": "#"}}, "required": ["a"]})


def test_annotations_and_extensions_ask_for_nothing() -> None:
    """Words that say nothing about values are accepted, as are names that begin with x-."""
    check_schema(dict.fromkeys(ANNOTATIONS, "anything") | {"x-own": {"not": 1}, "uniqueItems": False})
    assert not ANNOTATIONS & ENFORCED


def test_names_and_values_are_not_read_as_keywords() -> None:
    """Properties may be called like keywords, and values may look like schemas."""
    check_schema({"properties": {"not": {}, "if": True}, "const": {"not": {"$ref": "http://x"}}, "default": {"if": 1}})
