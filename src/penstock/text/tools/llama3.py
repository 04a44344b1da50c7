"""Llama 3's style: ``{"name": ..., "parameters": {...}}`` as the whole output or behind ``<|python_tag|>``.

In: text as it streams; out: text, and a call for every such object whose name is on offer; several follow one another,
with semicolons between them.  Without a mark that says so, any other JSON is an answer in JSON.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.text.tools.call_reader import CallReader
from penstock.text.tools.grammar import call_rules, calls_rule, object_call
from penstock.text.tools.parser import StepParser
from penstock.text.tools.style import Function, Mark, ToolStyle, long_id

_TAG = "<|python_tag|>"
_SEPARATORS = " \t\r\n;,"
_KEYS = frozenset({"name", "parameters", "arguments", "type", "id"})


class _Parser(StepParser):
    def __init__(self, names: frozenset[str], parallel: bool) -> None:
        super().__init__(names, parallel)
        self._reader: CallReader | None = None
        self._step = self._before_call

    def _before_call(self) -> bool:
        """At the beginning, or behind a call: another one, or text."""
        rest = self._rest.lstrip(_SEPARATORS if self.num_calls else None)
        if not rest or (_TAG.startswith(rest) and rest != _TAG):
            return False
        self._lead = self._rest[: len(self._rest) - len(rest)]
        if rest.startswith(_TAG):
            self._lead += _TAG
            self._rest, self._step = rest[len(_TAG) :], self._behind_tag
        elif rest.startswith("{"):
            self._rest, self._step = rest, self._in_call
            self._reader = CallReader(self._out, self._names.__contains__, _KEYS)
        else:
            self._step = self._in_text
        return True

    def _behind_tag(self) -> bool:
        self._lead += self._leading()
        if not self._rest:
            return False
        self._reader = CallReader(self._out, self._names.__contains__, _KEYS)
        self._step = self._in_call
        return True

    def _in_text(self) -> bool:
        if not self._pass(_TAG, self._out.say):
            return False
        self._lead, self._step = _TAG, self._behind_tag
        return True

    def _in_call(self) -> bool:
        assert self._reader is not None
        return self._read_call(self._reader, whole=self._before_call, broken=self._in_broken_call, none=self._in_text)

    def _in_broken_call(self) -> bool:
        """Arguments that went wrong on the way: nothing but the end of the output ends them."""
        self._out.argue(self._rest)
        self._rest = ""
        return False

    def _end(self) -> None:
        if self._step == self._behind_tag:
            self._out.say(self._lead)
        elif self._step == self._in_call and self._reader is not None:
            self._out.say(self._reader.left(self._lead))
        elif self._step == self._before_call and self.num_calls:
            self._out.say(self._rest.lstrip(_SEPARATORS))
        else:
            self._out.say(self._rest)


def _recognises(template: str) -> bool:
    return _TAG in template or ("<|start_header_id|>" in template and '"parameters"' in template)


def _grammar(functions: Sequence[Function], parallel: bool, mark: Mark) -> str:
    return "\n".join([calls_rule("call", '"; " call', parallel), *call_rules(functions, object_call("parameters"))])


STYLE = ToolStyle(
    name="llama3", marks=(_TAG,), recognises=_recognises, parser=_Parser, grammar=_grammar, call_id=long_id
)
