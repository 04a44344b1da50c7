"""JSON schemas that can be enforced, told from those that cannot.

In: a decoded schema; out: nothing, or a ``Problem`` that names the keyword and, as a JSON pointer, the place.
llguidance ignores words it does not know, as JSON Schema 2020-12 has it; here every word is either enforced by it, an
annotation, or refused.  What llguidance refuses by itself (unsatisfiable bounds, unknown formats) is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from penstock.text.inexact import check_exact
from penstock.wire.errors import Problem

MAX_DEPTH = 50
MAX_LEAST_COUNT = 1_000_000
"""The highest minItems or minLength: no context holds more."""

_SCHEMA_KEYS = ("items", "additionalProperties")
_LIST_KEYS = ("prefixItems", "anyOf", "oneOf", "allOf")
_MAP_KEYS = ("properties", "patternProperties", "$defs", "definitions")
_VALUE_KEYS = (
    *("type", "enum", "const", "$ref", "required", "minProperties", "maxProperties", "minItems", "maxItems"),
    *("minLength", "maxLength", "pattern", "format"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
)
ENFORCED = frozenset((*_SCHEMA_KEYS, *_LIST_KEYS, *_MAP_KEYS, *_VALUE_KEYS))
ANNOTATIONS = frozenset(
    (
        *("$schema", "$comment", "title", "description", "default", "examples", "example"),
        *("deprecated", "readOnly", "writeOnly", "discriminator"),
        *("contentEncoding", "contentMediaType", "contentSchema"),
    )
)
"""Words that say nothing about which values are valid; ``discriminator`` and ``example`` are OpenAPI's."""


def check_schema(root: dict[str, Any]) -> None:
    """Raise ``grammar_invalid`` for what cannot be enforced or satisfied, ``grammar_too_complex`` for deep nesting."""
    places = dict(subschemas(root))
    targets: dict[str, Any] = {}
    for path, schema in places.items():
        if isinstance(schema, dict):
            _check_words(path, schema)
            _check_counts(path, schema)
            check_exact(path, schema)
            if "$ref" in schema:
                place = _place(path, schema["$ref"])
                if place not in places:
                    raise _invalid(path, f"$ref {_shown(schema['$ref'])} points to no schema")
                targets[schema["$ref"]] = places[place]
    _check_finite(root, targets)


def subschemas(root: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any] | bool]]:
    """Every schema in ``root``, itself first, with its place as a JSON pointer."""
    waiting: list[tuple[str, Any, int]] = [("#", root, 0)]
    while waiting:
        path, schema, depth = waiting.pop()
        if not isinstance(schema, dict | bool):
            raise _invalid(path, f"a schema is an object or a boolean, not {_shown(schema)}")
        if depth > MAX_DEPTH:
            raise Problem("grammar_too_complex", f"Schemas are nested more than {MAX_DEPTH} deep.")
        yield path, schema
        if isinstance(schema, dict):
            waiting += [(f"{path}/{key}", part, depth + 1) for key, part in _parts(path, schema)]


def _parts(path: str, schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in _SCHEMA_KEYS:
        if key in schema:
            yield key, schema[key]
    for key in _LIST_KEYS:
        if not isinstance(parts := schema.get(key, []), list):
            raise _invalid(path, f"{key} must be a list of schemas")
        yield from ((f"{key}/{index}", part) for index, part in enumerate(parts))
    for key in _MAP_KEYS:
        if not isinstance(named := schema.get(key, {}), dict):
            raise _invalid(path, f"{key} must be an object of schemas")
        yield from ((f"{key}/{_escaped(name)}", part) for name, part in named.items())


def _check_words(path: str, schema: dict[str, Any]) -> None:
    unknown = schema.keys() - ENFORCED - ANNOTATIONS - ({"$id"} if path == "#" else set())
    # uniqueItems: false and nullable: false ask for nothing.
    refused = sorted(word for word in unknown if not word.startswith("x-") and schema[word] is not False)
    if refused or "x-guidance" in unknown:
        raise _invalid(path, f"{', '.join(refused) or 'x-guidance'} cannot be enforced")


def _check_counts(path: str, schema: dict[str, Any]) -> None:
    for key in ("minItems", "minLength", "minProperties"):
        if isinstance(count := schema.get(key), int | float) and count > MAX_LEAST_COUNT:
            raise _invalid(path, f"{key} is {count}; at most {MAX_LEAST_COUNT} can be satisfied")
    # Keys that additionalProperties or patternProperties let in may repeat: they count once and were written twice.
    required = schema.get("required")
    if isinstance(least := schema.get("minProperties"), int) and least > 1:
        named = len(set(map(str, required))) if isinstance(required, list) else 0
        if least > named:
            raise _invalid(path, f"minProperties is {least} and {named} are required; more than 1 cannot be enforced")


def _place(path: str, reference: Any) -> str:
    """Where a reference points, spelled as :func:`subschemas` spells it."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        raise _invalid(path, f"$ref {_shown(reference)} does not point into this schema, and nothing is fetched")
    return unquote(reference)


def _check_finite(root: dict[str, Any], targets: dict[str, Any]) -> None:
    """Refuse schemas whose every instance would contain another, for ever: a least fixed point over the references."""
    finite: set[str] = set()
    growing = True
    while growing:
        found = {reference for reference in targets.keys() - finite if _is_finite(targets[reference], finite)}
        finite |= found
        growing = bool(found)
    if not _is_finite(root, finite):
        endless = ", ".join(sorted(targets.keys() - finite)[:3])
        raise Problem("grammar_invalid", f"Nothing finite satisfies this schema: {endless or 'false'} never ends.")


def _is_finite(schema: Any, finite: set[str]) -> bool:
    if not isinstance(schema, dict):
        return schema is not False
    if "$ref" in schema and schema["$ref"] not in finite:
        return False
    if not all(_is_finite(part, finite) for part in schema.get("allOf", ())):
        return False
    for key in ("anyOf", "oneOf"):
        if key in schema and not any(_is_finite(part, finite) for part in schema[key]):
            return False
    kinds = schema.get("type")
    if kinds in ("object", ["object"]):
        return all(_is_finite(part, finite) for part in _required_parts(schema))
    if kinds in ("array", ["array"]):
        return all(_is_finite(part, finite) for part in _least_items(schema))
    return True


def _required_parts(schema: dict[str, Any]) -> Iterator[Any]:
    named, required = schema.get("properties", {}), schema.get("required")
    for name in required if isinstance(required, list) else ():
        yield named.get(name, schema.get("additionalProperties", True)) if isinstance(name, str) else True


def _least_items(schema: dict[str, Any]) -> list[Any]:
    least = schema.get("minItems", 0)
    first = schema.get("prefixItems", [])
    if not isinstance(least, int):
        return []
    return [*first[:least], *([schema.get("items", True)] if least > len(first) else [])]


def _invalid(path: str, words: str) -> Problem:
    return Problem("grammar_invalid", f"{path}: {words}.")


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
