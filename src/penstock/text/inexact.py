"""What llguidance would take and hold only nearly, so that an output could break the schema it was given.

In: one schema and its place; out: nothing, or ``Problem("grammar_invalid")``.
Each case was found by trials of random schemas against jsonschema, with llguidance 1.9.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from penstock.wire.errors import Problem

JSON_ALLOWED_ESCAPES = r"nrbtf\""
"""The escapes a string may have.  No \\u: names of properties could be spelled with them to evade those listed."""
_LARGEST_EXACT = 2**53
"""llguidance reads numbers as doubles."""
_NUMERIC = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_NAMED_ESCAPES = "\b\f\n\r\t"

Bounds = dict[str, float]


def check_exact(path: str, schema: dict[str, Any]) -> None:
    """Raise for values that cannot be written or compared exactly, and for bounds that would not exclude."""
    for key in ("const", "enum", "properties", *_NUMERIC):
        if key in schema:
            value = list(schema[key]) if key == "properties" else schema[key]
            for reason in _reasons(value):
                raise Problem("grammar_invalid", f"{path}/{key}: {reason}.")
    if schema.get("type") != "integer":
        for bounds in _bounds(schema, {}):
            if _would_include(bounds):
                words = "an exclusive bound at a whole number, less than 1 from the other bound, cannot be enforced"
                raise Problem("grammar_invalid", f"{path}: {words}.")


def _reasons(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        # Names of properties that are not listed could be spelled with \u escapes to evade those that are: so no
        # text may have any, and what only they can spell cannot be written.
        if any((c < " " and c not in _NAMED_ESCAPES) or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in value):
            yield f"{value[:40]!a} has a character that only a \\u escape could write"
    elif isinstance(value, float) and not math.isfinite(value):
        yield "the number is too large"
    elif isinstance(value, int) and abs(value) > _LARGEST_EXACT:
        yield f"{value} is beyond 2**53, where whole numbers are no longer told apart"
    elif isinstance(value, list):
        for item in value:
            yield from _reasons(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _reasons(name)
            yield from _reasons(item)


def _bounds(schema: dict[str, Any], outer: Bounds) -> Iterator[Bounds]:
    """The numeric bounds that hold together: a schema's own, with those of its allOf and of each alternative."""
    own = outer | _own_bounds(schema)
    yield own
    for key in ("anyOf", "oneOf"):
        for part in schema.get(key, ()):
            if isinstance(part, dict):
                yield from _bounds(part, own)


def _own_bounds(schema: dict[str, Any]) -> Bounds:
    own = {key: schema[key] for key in _NUMERIC if isinstance(schema.get(key), int | float)}
    for part in schema.get("allOf", ()):
        if isinstance(part, dict):
            own |= _own_bounds(part)
    return own


def _would_include(bounds: Bounds) -> bool:
    low, high = bounds.get("exclusiveMinimum"), bounds.get("exclusiveMaximum")
    least, most = bounds.get("minimum", low), bounds.get("maximum", high)
    if least is None or most is None or not math.isfinite(least) or not math.isfinite(most) or most - least >= 1:
        return False
    return (low is not None and low == math.floor(low)) or (high is not None and high == math.floor(high))
