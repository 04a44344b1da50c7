"""Hermes' style, which Qwen2.5 and Qwen3 write: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``.

In: text as it streams; out: text, and a call for every pair of marks with a call in it.
What stands between the marks and is no call stays text, marks included.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.text.tools.call_reader import CallReader
from penstock.text.tools.grammar import call_rules, calls_rule, object_call
from penstock.text.tools.parser import StepParser, looks_like_a_name
from penstock.text.tools.style import Function, Mark, ToolStyle, long_id

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
# Qwen3-Coder and GLM-4.5 use the same mark around something else.
_OTHERS = ("<function=", "<arg_key>")


class _Parser(StepParser):
    def __init__(self, names: frozenset[str], parallel: bool) -> None:
        super().__init__(names, parallel)
        self._reader: CallReader | None = None
        self._step = self._outside

    def _outside(self) -> bool:
        if not self._pass(_OPEN, self._out.say):
            return False
        self._lead, self._step = _OPEN, self._before_call
        return True

    def _before_call(self) -> bool:
        self._lead += self._leading()
        if self._rest:
            self._reader, self._step = CallReader(self._out, looks_like_a_name), self._in_call
        return True

    def _in_call(self) -> bool:
        assert self._reader is not None
        return self._read_call(self._reader, whole=self._after_call, broken=self._in_broken_call, none=self._outside)

    def _in_broken_call(self) -> bool:
        """Arguments that went wrong on the way go on up to the mark that ends them."""
        if not self._pass(_CLOSE, self._out.argue):
            return False
        self._out.end_call()
        self._step = self._outside
        return True

    def _after_call(self) -> bool:
        self._leading()
        if self._rest.startswith(_CLOSE):
            self._rest = self._rest[len(_CLOSE) :]
        elif _CLOSE.startswith(self._rest):
            return False
        self._step = self._outside
        return True

    def _end(self) -> None:
        if self._step == self._outside:
            self._out.say(self._rest)
        elif self._step == self._in_broken_call:
            self._out.argue(self._rest)
        elif self._step == self._before_call:
            self._out.say(self._lead)
        elif self._step == self._in_call and self._reader is not None:
            self._out.say(self._reader.left(self._lead))


def _grammar(functions: Sequence[Function], parallel: bool, mark: Mark) -> str:
    one = f'one: {mark(_OPEN)} "\\n" call "\\n" {mark(_CLOSE)}'
    return "\n".join([calls_rule("one", '"\\n" one', parallel), one, *call_rules(functions, object_call("arguments"))])


STYLE = ToolStyle(
    name="hermes",
    marks=(_OPEN, _CLOSE),
    recognises=lambda template: _OPEN in template and not any(other in template for other in _OTHERS),
    parser=_Parser,
    grammar=_grammar,
    call_id=long_id,
)
