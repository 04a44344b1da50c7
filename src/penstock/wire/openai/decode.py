"""JSON bodies to typed requests, and every way that can fail as a ``Problem`` that names the field.

In: the bytes of a body, or of a field that its struct left undecoded; out: a typed value.
Knows no values, only types: ranges are checked beside each request.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, TypeVar

import msgspec

from penstock.wire.errors import Problem

T = TypeVar("T")

Field = msgspec.Raw | msgspec.UnsetType
"""A field that the body's struct leaves undecoded, for whoever knows what it may be."""

_PATH = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<field>[^`]+)`")
_NON_FINITE = (b"NaN", b"Infinity")
_EXPLAIN_UP_TO_BYTES = 65_536


def decode_body(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decode one body.

    Raises ``Problem``: ``invalid_json`` (not JSON, not UTF-8, nested too deeply), ``invalid_type`` (a field's type),
    ``invalid_value`` (a missing field, none of the values listed, a number that no float holds).
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _of_validation(str(error)) from None
    except UnicodeDecodeError:
        raise Problem("invalid_json", "The body is not valid UTF-8.") from None
    except RecursionError:
        raise Problem("invalid_json", "The body is nested too deeply.") from None
    except msgspec.DecodeError as error:
        field = _non_finite_field(body)
        if field is not None:
            message = f"{field} is NaN or infinite; JSON has no such number and a finite one is needed."
            raise Problem("invalid_value", message, param=field) from None
        raise Problem("invalid_json", f"The body is not valid JSON: {error}.") from None


def decode_field(raw: Field, kind: Any, param: str) -> Any:
    """Decode one field as ``kind`` or null; ``None`` if it was left out.

    Raises ``Problem`` that names it: ``invalid_type``, or ``invalid_value`` for what cannot be read at all.
    """
    if isinstance(raw, msgspec.UnsetType):
        return None
    try:
        return msgspec.json.decode(raw, type=kind | None)
    except msgspec.ValidationError as error:
        raise Problem("invalid_type", f"{param}: {error}.", param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Problem("invalid_value", f"{param} holds a value that cannot be read.", param=param) from None


def _of_validation(text: str) -> Problem:
    match = _PATH.match(text)
    what, path = (match["what"], match["path"] or "") if match else (text, "")
    path = path.replace("[...]", "")
    missing = _MISSING.match(what)
    if missing:
        param = f"{path}.{missing['field']}" if path else missing["field"]
        return Problem("invalid_value", f"{param} is required and missing.", param=param)
    if what.startswith("Invalid enum value"):
        return Problem("invalid_value", f"{path}: {what[:1].lower()}{what[1:]}.", param=path)
    if what.startswith("Number out of range"):
        return Problem("invalid_value", f"{path} is a number out of range.", param=path)
    if not path:
        return Problem("invalid_type", f"The body must be one JSON object: {what}.")
    return Problem("invalid_type", f"{path}: {what[:1].lower()}{what[1:]}.", param=path)


def _non_finite_field(body: bytes) -> str | None:
    """The first field that holds NaN or Infinity, as some encoders write them; ``None`` if that is not the trouble."""
    if len(body) > _EXPLAIN_UP_TO_BYTES or not any(word in body for word in _NON_FINITE):
        return None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return _find_non_finite(value, "")


def _find_non_finite(value: Any, path: str) -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    items: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        items = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
    elif isinstance(value, list):
        items = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    return next((found for name, item in items if (found := _find_non_finite(item, name)) is not None), None)
