"""Calls as JSON, read while they stream: one call's arguments, one call as an object, a list of calls.

In: text from a call's first character on; out: pieces of calls, to an ``Output``.
A reader stops before the first character that cannot belong to it.  Broken before it announced a call, it gives back
what it read; a call that was announced stays one, as nothing that was streamed can be taken back.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from penstock.text.tools.json_value import SPACE, JsonValue
from penstock.text.tools.output import Output

ARGUMENT_KEYS = frozenset({"arguments", "parameters"})


class Reader:
    """``complete``: whole.  ``announced``: a call was begun; what was read before that is ``raw``."""

    def __init__(self) -> None:
        self.ended = False
        self.announced = False
        self.complete = False
        self._raw: list[str] = []

    @property
    def raw(self) -> str:
        return "".join(self._raw)

    @property
    def is_open(self) -> bool:
        """A call was announced and its arguments are not whole: whatever comes belongs to them."""
        return self.announced and not self.complete

    def left(self, lead: str) -> str:
        """What is text after all, behind ``lead``: nothing once a call came of it."""
        return "" if self.announced else lead + self.raw

    def feed(self, text: str) -> int:
        """Read on; how many characters were taken: all, unless the reader ended."""
        for position, char in enumerate(text):
            if self.ended or not self._take(char):
                self.ended = True
                return position
            if not self.announced:
                self._raw.append(char)
        return len(text)

    def _take(self, char: str) -> bool:
        raise NotImplementedError

    def _note_announced(self) -> None:
        self.announced = True
        self._raw.clear()


class ArgumentsReader(Reader):
    """The arguments of the function ``name``: an object, announced with its first key."""

    def __init__(self, output: Output, name: str | None) -> None:
        super().__init__()
        self.name = name
        self._output = output
        self._value = JsonValue()
        self._held: list[str] = []

    def announce(self) -> None:
        """Begin the call as soon as there is a name and arguments that look like some."""
        if self.announced or self.name is None or not (self._value.has_member or self._value.complete):
            return
        self._note_announced()
        self._output.begin(self.name)
        self._output.argue("".join(self._held))

    def _take(self, char: str) -> bool:
        # Models write line breaks into strings as they are, which JSON does not allow.
        escaped = json.dumps(char)[1:-1] if char < " " and self._value.in_string else char
        if (not self._held and char != "{") or not self._value.feed(char):
            return False
        self.complete = self._value.complete
        if self.announced:
            self._output.argue(escaped)
        else:
            self._held.append(escaped)
            self.announce()
        return True


class CallReader(Reader):
    """One call as an object with a name and arguments, in either order; other members are passed over.

    ``accepts`` tells whether a name is taken; ``keys``, where given, which members there may be.
    """

    def __init__(self, output: Output, accepts: Callable[[str], bool], keys: frozenset[str] | None = None) -> None:
        super().__init__()
        self._output = output
        self._accepts = accepts
        self._keys = keys
        self._name: str | None = None
        self._arguments: ArgumentsReader | None = None
        self._value: JsonValue | None = None
        self._key = ""
        self._text: list[str] = []
        self._step: Callable[[str], bool] = self._open

    def _take(self, char: str) -> bool:
        taken = self._step(char)
        arguments = self._arguments
        if not self.announced and arguments is not None and arguments.announced:
            self._note_announced()
        if not taken and arguments is not None and arguments.complete and self.announced:
            self._finish()  # something is wrong behind the arguments, which takes nothing from the call
        return taken

    def _finish(self) -> None:
        self._output.end_call()
        self.complete = self.ended = True

    def _open(self, char: str) -> bool:
        self._step = self._before_key
        return char == "{"

    def _before_key(self, char: str) -> bool:
        return char in SPACE or (char == '"' and self._start(char, self._in_key))

    def _in_key(self, char: str) -> bool:
        assert self._value is not None
        self._text.append(char)
        if not self._value.feed(char):
            return False
        if self._value.complete:
            self._key, self._step = _string("".join(self._text)) or "", self._colon
            return self._keys is None or self._key in self._keys
        return True

    def _colon(self, char: str) -> bool:
        if char == ":":
            self._step = self._before_value
            return True
        return char in SPACE

    def _before_value(self, char: str) -> bool:
        if char in SPACE:
            return True
        if self._key in ARGUMENT_KEYS and self._arguments is None and char == "{":
            self._arguments = ArgumentsReader(self._output, self._name)
            self._step = self._in_arguments
            return self._in_arguments(char)
        return self._start(char, self._in_value)

    def _in_arguments(self, char: str) -> bool:
        assert self._arguments is not None
        if not self._arguments.feed(char):
            return False
        if self._arguments.complete:
            self._step = self._next
        return True

    def _in_value(self, char: str) -> bool:
        assert self._value is not None
        if self._value.feed(char):
            self._text.append(char)
            return not self._value.complete or self._member()
        # A number or a word ends before the character that shows it.
        return self._value.complete and self._member() and self._next(char)

    def _start(self, char: str, step: Callable[[str], bool]) -> bool:
        self._value, self._text, self._step = JsonValue(), [], step
        return step(char)

    def _member(self) -> bool:
        """A member other than an object of arguments is complete: whether the call may go on."""
        self._step = self._next
        text = "".join(self._text)
        if self._key == "name" and self._name is None:
            value = _string(text)
            if value is None or not self._accepts(value):
                return False
            self._name = value
            if self._arguments is not None:
                self._arguments.name = value
                self._arguments.announce()
        elif self._key in ARGUMENT_KEYS and self._arguments is None:
            # Some models write the arguments as a JSON text within the JSON, or null for none.
            inner = "{}" if text == "null" else _string(text)
            reader = ArgumentsReader(self._output, self._name)
            if inner is None or reader.feed(inner) < len(inner) or not reader.complete:
                return False
            self._arguments = reader
        return True

    def _next(self, char: str) -> bool:
        if char == ",":
            self._step = self._before_key
            return True
        if char == "}":
            return self._close()
        return char in SPACE

    def _close(self) -> bool:
        if self._name is None:
            return False
        if self._arguments is None:
            self._output.begin(self._name)
            self._output.argue("{}")
        self._finish()
        return True


class ListReader(Reader):
    """A list of calls in brackets.  ``announced`` and ``raw`` are those of the call it is in."""

    def __init__(self, output: Output, accepts: Callable[[str], bool]) -> None:
        super().__init__()
        self._output, self._accepts = output, accepts
        self._call: CallReader | None = None
        self._num_complete = 0
        self._step: Callable[[str], bool] = self._open

    @property
    def is_open(self) -> bool:
        return self._call is not None and self._call.is_open

    def left(self, lead: str) -> str:
        return super().left("" if self._num_complete else lead)

    def _take(self, char: str) -> bool:
        return self._step(char)

    def _open(self, char: str) -> bool:
        self._step = self._before_call
        return char == "["

    def _before_call(self, char: str) -> bool:
        if char in SPACE:
            return True
        self.announced = False
        self._call = CallReader(self._output, self._accepts)
        self._step = self._in_call
        return self._in_call(char)

    def _in_call(self, char: str) -> bool:
        assert self._call is not None
        taken = self._call.feed(char) == 1
        if self._call.announced or self._call.complete:
            # Brackets and commas around calls are nobody's text.
            self._note_announced()
        if self._call.complete:
            self._num_complete += 1
            self._step = self._after_call
            return taken or self._after_call(char)
        return taken

    def _after_call(self, char: str) -> bool:
        if char == ",":
            self._step = self._before_call
            return True
        if char == "]":
            self.complete = self.ended = True
            return True
        return char in SPACE


def _string(text: str) -> str | None:
    """What a JSON string says; ``None`` for other values and for half a character, which no text can carry."""
    if not text.startswith('"'):
        return None
    value: str = json.loads(text, strict=False)
    return value if value.isascii() or value == value.encode("utf-8", "ignore").decode() else None
