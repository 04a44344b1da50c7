"""What one rendering of a template may use, and the operations that could use too much in a single step.

In: operands; out: the result, or :class:`BoundError` *before* the memory or the time is spent.
Two invariants carry the proof: every value a template builds was weighed, deeply, when it was built (so comparing or
printing it is bounded), and everything it ever allocated is charged to one account (so keeping it all is bounded).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

MAX_ITEMS = 131_072
MAX_INT_BITS = 4096
_MAX_FORMAT_CHARS = 512
_SMALL_BYTES = 64
_REMEMBERED_BYTES = 256
_LONG_NUMBER = re.compile(r"\d{4,}|\*")
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "**": operator.pow,
    "%": operator.mod,
}


class BoundError(Exception):
    """A template asked for more than it may use; the message continues "the chat template ..."."""


class Meter:
    """The account of one rendering: a deadline by ``clock`` (monotonic seconds) and bytes allocated.

    ``value_limit`` bounds one value with all it contains, ``total_limit`` all allocations together; both in bytes.
    """

    def __init__(self, clock: Callable[[], float], time_limit_s: float, value_limit: int, total_limit: int) -> None:
        self._clock = clock
        self._time_limit_s = time_limit_s
        self._deadline = clock() + time_limit_s
        self._value_limit = value_limit
        self._left = total_limit
        # Weights by identity, with the container itself so that its id is not used again.
        self._weights: dict[int, tuple[Any, int]] = {}

    def tick(self) -> None:
        """Called at least once between any two steps that can cost noticeable time."""
        if self._clock() > self._deadline:
            raise BoundError(f"ran for more than {self._time_limit_s:g} s")

    def allow(self, num_bytes: int) -> None:
        """Refuse a value of this size before it is made."""
        if num_bytes > self._value_limit:
            raise BoundError(f"builds a value of more than {self._value_limit} bytes")

    def charge(self, num_bytes: int) -> None:
        self._left -= num_bytes
        if self._left < 0:
            raise BoundError("uses too much memory")

    def items(self, count: int) -> None:
        if count > MAX_ITEMS:
            raise BoundError(f"works on {count} items at once; at most {MAX_ITEMS} are allowed")

    def hold(self, value: Any) -> Any:
        """Account for a value that an expression just made; gives it back."""
        self.tick()
        if isinstance(value, str | bytes):
            self.allow(len(value))
            self.charge(value.__sizeof__())
        elif isinstance(value, int):
            _small_int(value)
            self.charge(value.__sizeof__())
        elif isinstance(value, list | tuple | dict | set):
            self.items(len(value))
            self.weigh(value)
            self.charge(value.__sizeof__())
        return value

    def weigh(self, value: Any) -> int:
        """Bytes of a value with everything in it, shared parts counted as often as they are reached."""
        if isinstance(value, str | bytes):
            return value.__sizeof__()
        if not isinstance(value, list | tuple | dict | set):
            return _SMALL_BYTES
        if (known := self._weights.get(id(value))) is not None:
            return known[1]
        self.tick()
        weight = value.__sizeof__()
        for child in value:
            weight += self.weigh(child)
            if isinstance(value, dict):
                weight += self.weigh(value[child])
            self.allow(weight)
        self._weights[id(value)] = (value, weight)
        self.charge(_REMEMBERED_BYTES)
        return weight

    def binary(self, symbol: str, left: Any, right: Any) -> Any:
        """``left symbol right``, refused where the result would be too large."""
        self.tick()
        for number in (left, right):
            if isinstance(number, int):
                _small_int(number)
        if symbol == "*":
            self._repetition(left, right)
        elif symbol == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            self.allow(_length(left) + _length(right))
        elif symbol == "%" and isinstance(left, str):
            self._percent(left, right)
        elif symbol == "**" and isinstance(left, int) and isinstance(right, int):
            _small_power(left, right)
        return self.hold(_OPERATORS[symbol](left, right))

    def concat(self, parts: list[str]) -> str:
        """The parts joined; each is at most ``value_limit`` long already, their sum may not be."""
        self.allow(sum(map(len, parts)))
        joined: str = self.hold("".join(parts))
        return joined

    def join(self, separator: str, parts: list[str]) -> str:
        self.allow(sum(map(len, parts)) + len(separator) * max(len(parts) - 1, 0))
        joined: str = self.hold(separator.join(parts))
        return joined

    def replace(self, text: str, old: str, new: str, count: int = -1) -> str:
        found = text.count(old) if count < 0 else min(count, text.count(old))
        self.allow(len(text) + found * (len(new) - len(old)))
        replaced: str = self.hold(text.replace(old, new, count))
        return replaced

    def format_spec(self, spec: str) -> None:
        """Refuse widths and precisions of four digits and more, and any that come from an argument."""
        if _LONG_NUMBER.search(spec):
            raise BoundError("formats with a width or precision of more than 999")

    def _repetition(self, left: Any, right: Any) -> None:
        if isinstance(left, int):
            left, right = right, left
        if isinstance(right, int) and isinstance(left, str | list | tuple):
            self.allow(_length(left) * max(right, 0))

    def _percent(self, template: str, values: Any) -> None:
        conversions = template.count("%")
        if not conversions:
            return
        self.format_spec(template[template.index("%") :])
        # Printing may lengthen what it prints (escapes in repr): four times covers Latin, the charge covers the rest.
        longest = max(map(self.weigh, values), default=0) if isinstance(values, tuple) else self.weigh(values)
        self.allow(len(template) + conversions * (4 * longest + _MAX_FORMAT_CHARS))


def _small_int(value: int) -> None:
    if value.bit_length() > MAX_INT_BITS:
        raise BoundError(f"computes a number of more than {MAX_INT_BITS} bits")


def _small_power(base: int, exponent: int) -> None:
    if base.bit_length() * abs(exponent) > MAX_INT_BITS:
        raise BoundError(f"computes a number of more than {MAX_INT_BITS} bits")


def _length(value: str | list[Any] | tuple[Any, ...]) -> int:
    """A lower bound of the value's bytes: one per character, one pointer per item."""
    return len(value) * (1 if isinstance(value, str) else 8)
