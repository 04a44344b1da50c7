"""A JSON object from a checkpoint, read field by field.

In: a file's name and its object; out: values of the asked type and range.
A missing, mistyped or absurd field raises ``checkpoint_invalid`` with the file, the field and the value.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penstock.wire.errors import Problem


class Fields:
    """Typed access to ``data``, which came from ``file``; ``prefix`` is put before field names in messages."""

    def __init__(self, file: Path, data: dict[str, Any], prefix: str = "") -> None:
        self.file = file
        self.data = data
        self._prefix = prefix

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, "must be an integer")
        if not low <= value <= high:
            raise self.wrong(name, f"must lie between {low} and {high}")
        return value

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float:
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise self.wrong(name, "must be a finite number")
        if not low <= value <= high:
            raise self.wrong(name, f"must lie between {low:g} and {high:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "must be true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, "must be a string")
        return value

    def optional_number(self, name: str, low: float, high: float) -> float | None:
        """``None`` where the field is absent or null."""
        return None if self.data.get(name) is None else self.number(name, low, high)

    def integers(self, name: str, low: int, high: int) -> tuple[int, ...]:
        """A list of integers; empty where the field is absent or null."""
        values = self._get(name, [])
        if not isinstance(values, list) or not all(type(value) is int and low <= value <= high for value in values):
            raise self.wrong(name, f"must be a list of integers between {low} and {high}")
        return tuple(values)

    def numbers(self, name: str, count: int, low: float, high: float) -> tuple[float, ...]:
        """A list of exactly ``count`` numbers."""
        values = self._get(name, None)
        if not isinstance(values, list) or len(values) != count:
            raise self.wrong(name, f"must be a list of {count} numbers")
        if not all(type(value) in (int, float) and low <= value <= high for value in values):
            raise self.wrong(name, f"must hold numbers between {low:g} and {high:g}")
        return tuple(float(value) for value in values)

    def object(self, name: str) -> Fields | None:
        """The nested object ``name``, or ``None`` where it is absent or null."""
        value = self.data.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "must be an object")
        return Fields(self.file, value, f"{self._prefix}{name}.")

    def over(self, defaults: Mapping[str, Any]) -> Fields:
        """These fields, with ``defaults`` for those that the object does not have; null counts as having."""
        return Fields(self.file, {**defaults, **self.data}, self._prefix)

    def but(self, **changes: Any) -> Fields:
        """These fields with other values."""
        return Fields(self.file, {**self.data, **changes}, self._prefix)

    def wrong(self, name: str, expectation: str) -> Problem:
        """``checkpoint_invalid`` for a field whose value breaks ``expectation``."""
        field = self._prefix + name
        shown = json.dumps(self.data.get(name))[:80]
        return Problem("checkpoint_invalid", f"{self.file}: {field} is {shown}; it {expectation}.", param=field)

    def unsupported(self, name: str, explanation: str) -> Problem:
        """``checkpoint_unsupported`` for a field whose value asks for what is not implemented."""
        field = self._prefix + name
        shown = json.dumps(self.data.get(name))[:80]
        return Problem("checkpoint_unsupported", f"{self.file}: {field} is {shown}. {explanation}", param=field)

    def _get(self, name: str, default: Any) -> Any:
        value = self.data.get(name)
        if value is not None:
            return value
        if default is None:
            field = self._prefix + name
            raise Problem("checkpoint_invalid", f"{self.file}: the field {field} is missing.", param=field)
        return default


def read_object(file: Path) -> Fields:
    """The JSON object in ``file``; raises ``checkpoint_invalid`` when there is none."""
    data = _read(file)
    if not isinstance(data, dict):
        raise Problem("checkpoint_invalid", f"{file} must hold a JSON object, but holds a {type(data).__name__}.")
    return Fields(file, data)


def read_list(file: Path) -> list[Fields]:
    """The JSON objects of the list in ``file``; raises ``checkpoint_invalid`` when there is none."""
    data = _read(file)
    if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
        raise Problem("checkpoint_invalid", f"{file} must hold a JSON list of objects.")
    return [Fields(file, entry, f"[{index}].") for index, entry in enumerate(data)]


def _read(file: Path) -> Any:
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # a pipe would be waited for without end
            raise Problem("checkpoint_invalid", f"{file} is not a file.")
        data = json.loads(file.read_bytes())
        json.dumps(data, ensure_ascii=False).encode()  # an escaped lone surrogate is JSON, but no text
        return data
    except FileNotFoundError:
        raise Problem("checkpoint_invalid", f"{file} is missing.") from None
    except OSError as error:
        raise Problem("checkpoint_invalid", f"{file} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise Problem("checkpoint_invalid", f"{file} is not valid JSON: {error}.") from None


def refuse_quantised(fields: Fields) -> None:
    """Raise ``checkpoint_unsupported``, with the method's name, for a config.json of quantised weights."""
    for name in ("quantization_config", "compression_config"):
        stated = fields.data.get(name)
        if stated is not None:
            settings = stated if isinstance(stated, dict) else {}
            method = settings.get("quant_method") or settings.get("quant_algo") or "unnamed"
            raise fields.unsupported(
                name,
                f"The weights are quantised (method: {method}), which this release does not read. Take the release "
                "that they were made from, in bfloat16 or float16: mostly its name is this one's without the suffix.",
            )
