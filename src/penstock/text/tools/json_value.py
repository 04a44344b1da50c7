"""One JSON value, checked character by character while it streams.

In: characters; out: whether each goes on with a value, and when that is complete.  RFC 8259, but for control
characters in strings, which models write and whoever passes a value on has to escape.
"""

from __future__ import annotations

import re
from collections.abc import Callable

SPACE = " \t\r\n"
_HEX = frozenset("0123456789abcdefABCDEF")
_SCALAR_CHARS = frozenset("0123456789+-.eEtrufalsn")
_SCALAR = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null")


class JsonValue:
    """``complete`` once the last character is in; of a number or word, when a character after it shows the end.

    ``has_member``: an object's first key was read, colon included.
    """

    def __init__(self) -> None:
        self.complete = False
        self.has_member = False
        self._open: list[str] = []
        self._scalar = ""
        self._num_hex = 0
        self._in_key = False
        self._step: Callable[[str], bool] = self._value

    def feed(self, char: str) -> bool:
        """Whether ``char`` goes on with the value.  If not, it ended before where ``complete``, else never will."""
        return not self.complete and self._step(char)

    @property
    def in_string(self) -> bool:
        return self._step == self._string

    def _value(self, char: str) -> bool:
        if char == '"':
            self._in_key, self._step = False, self._string
        elif char == "{":
            self._open.append("}")
            self._step = self._first_key
        elif char == "[":
            self._open.append("]")
            self._step = self._first_item
        elif char in _SCALAR_CHARS:
            self._scalar, self._step = char, self._in_scalar
        else:
            return char in SPACE and bool(self._open)
        return True

    def _first_item(self, char: str) -> bool:
        if char == "]":
            return self._close()
        return char in SPACE or self._value(char)

    def _first_key(self, char: str) -> bool:
        if char == "}":
            return self._close()
        return self._key(char)

    def _key(self, char: str) -> bool:
        if char == '"':
            self._in_key, self._step = True, self._string
            return True
        return char in SPACE

    def _colon(self, char: str) -> bool:
        if char == ":":
            self.has_member = True
            self._step = self._value
            return True
        return char in SPACE

    def _next(self, char: str) -> bool:
        if char == ",":
            self._step = self._key if self._open[-1] == "}" else self._value
            return True
        if char == self._open[-1]:
            return self._close()
        return char in SPACE

    def _string(self, char: str) -> bool:
        if char == "\\":
            self._step = self._escape
        elif char == '"':
            if self._in_key:
                self._step = self._colon
            else:
                self._end()
        return True

    def _escape(self, char: str) -> bool:
        if char == "u":
            self._num_hex, self._step = 4, self._hex
            return True
        self._step = self._string
        return char in '"\\/bfnrt'

    def _hex(self, char: str) -> bool:
        self._num_hex -= 1
        if not self._num_hex:
            self._step = self._string
        return char in _HEX

    def _in_scalar(self, char: str) -> bool:
        if char in _SCALAR_CHARS:
            self._scalar += char
            return True
        if not _SCALAR.fullmatch(self._scalar):
            return False
        self._end()
        return self.feed(char)

    def _close(self) -> bool:
        self._open.pop()
        self._end()
        return True

    def _end(self) -> None:
        self.complete = not self._open
        self._step = self._next
