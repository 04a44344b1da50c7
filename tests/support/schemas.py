"""Random JSON schemas that can be enforced and satisfied, from a seeded source."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

_NAMES = ["a", "b", "name", "größe", "x y", 'q"uote', "$id", "日本", ""]
_PATTERNS = ["^[a-c]{2,5}$", "[0-9]", "^(foo|bar)+", "x?y$", r"^\d{3}-\w+$", "^[^aeiou]*$"]
_FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "email", "hostname", "duration", "ipv6"]
_VALUES = [None, True, False, 0, -7, 2.5, "", "word", 'ü\n"\\', [1, "a"], {"k": [None]}, [], {}]


def random_schema(dice: random.Random) -> Schema:
    """A schema with references into itself; each has a finite instance."""
    tree: Schema = {
        "type": "object",
        "properties": {"value": _schema(dice, 2), "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]}},
        "required": ["value", "next"],
        "additionalProperties": False,
    }
    forest = {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}
    return _schema(dice, 0) | {"$defs": {"tree": tree, "forest": forest, "plain": _schema(dice, 2)}}


def _schema(dice: random.Random, depth: int) -> Schema:
    kinds: list[Callable[[random.Random, int], Schema]] = [_scalar, _scalar, _named]
    if depth < 3:
        kinds += [_array, _tuple, _object, _object, _either, _all]
    return dice.choice(kinds)(dice, depth + 1)


def _scalar(dice: random.Random, depth: int) -> Schema:
    makers: list[Callable[[random.Random], Schema]] = [_string, _string, _integer, _number, _listed, _plain]
    return dice.choice(makers)(dice)


def _plain(dice: random.Random) -> Schema:
    return dice.choice([{"type": "null"}, {"type": "boolean"}, {"type": ["string", "null"]}, {"type": "number"}])


def _listed(dice: random.Random) -> Schema:
    if dice.random() < 0.3:
        return {"const": dice.choice(_VALUES)}
    return {"enum": dice.sample(_VALUES, dice.randint(1, 4))}


def _string(dice: random.Random) -> Schema:
    schema: Schema = {"type": "string"}
    choice = dice.random()
    if choice < 0.3:
        schema["pattern"] = dice.choice(_PATTERNS)
    elif choice < 0.5:
        schema["format"] = dice.choice(_FORMATS)
    elif choice < 0.9:
        schema["minLength"] = dice.randint(0, 3)
        schema["maxLength"] = schema["minLength"] + dice.randint(0, 8)
    return schema


def _integer(dice: random.Random) -> Schema:
    low = dice.randint(-1000, 1000)
    schema: Schema = {"type": "integer"}
    if dice.random() < 0.7:
        schema[dice.choice(["minimum", "exclusiveMinimum"])] = low
    if dice.random() < 0.7:
        schema[dice.choice(["maximum", "exclusiveMaximum"])] = low + dice.randint(20, 500)
    if dice.random() < 0.2:
        schema["multipleOf"] = dice.choice([2, 5, 7])
    return schema


def _number(dice: random.Random) -> Schema:
    low = dice.randint(-100, 100) / 4
    schema: Schema = {"type": "number"}
    if dice.random() < 0.7:
        schema[dice.choice(["minimum", "exclusiveMinimum"])] = low
    if dice.random() < 0.7:
        schema[dice.choice(["maximum", "exclusiveMaximum"])] = low + dice.choice([0.5, 1, 33.25])
    return schema


def _named(dice: random.Random, depth: int) -> Schema:
    # A definition may hold a reference only behind a choice or in a list that may stay empty.
    return {"$ref": dice.choice(["#/$defs/tree", "#/$defs/forest"])} if depth == 1 else _scalar(dice, depth)


def _array(dice: random.Random, depth: int) -> Schema:
    least = dice.randint(0, 2)
    return {"type": "array", "items": _schema(dice, depth), "minItems": least, "maxItems": least + dice.randint(0, 2)}


def _tuple(dice: random.Random, depth: int) -> Schema:
    first = [_schema(dice, depth) for _ in range(dice.randint(1, 3))]
    rest: Any = dice.choice([False, {"type": "integer"}])
    return {"type": "array", "prefixItems": first, "items": rest, "minItems": len(first), "maxItems": len(first) + 1}


def _object(dice: random.Random, depth: int) -> Schema:
    names = dice.sample(_NAMES, dice.randint(0, 4))
    schema: Schema = {"type": "object", "properties": {name: _schema(dice, depth) for name in names}}
    schema["required"] = [name for name in names if dice.random() < 0.6]
    others = dice.random()
    if others < 0.6:
        schema["additionalProperties"] = False
    elif others < 0.8:
        schema["additionalProperties"] = _scalar(dice, depth)
    elif others < 0.9:
        schema["patternProperties"] = {"^p_[a-z]{1,3}$": _scalar(dice, depth)}
        schema["additionalProperties"] = False
    return schema


def _either(dice: random.Random, depth: int) -> Schema:
    return {"anyOf": [_schema(dice, depth) for _ in range(dice.randint(1, 3))]}


def _all(dice: random.Random, depth: int) -> Schema:
    low = dice.randint(0, 50)
    return {"allOf": [{"type": "integer", "minimum": low}, {"maximum": low + dice.randint(0, 99)}]}
