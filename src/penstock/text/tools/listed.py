"""Calls as nothing but a JSON list: what models without a style of their own are made to write.

In: text as it streams; out: the calls of a list that is the whole output.  Only a grammar makes a model write so, since
nothing has told it to.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.text.tools.call_reader import ListReader
from penstock.text.tools.grammar import call_rules, object_call
from penstock.text.tools.parser import StepParser
from penstock.text.tools.style import Function, Mark, ToolStyle, long_id


class _Parser(StepParser):
    def __init__(self, names: frozenset[str], parallel: bool) -> None:
        super().__init__(names, parallel)
        self._reader = ListReader(self._out, names.__contains__)
        self._step = self._before_list

    def _before_list(self) -> bool:
        self._lead += self._leading()
        if self._rest:
            self._step = self._in_list
        return True

    def _in_list(self) -> bool:
        self._rest = self._rest[self._reader.feed(self._rest) :]
        if not self._reader.ended:
            return False
        if not self._reader.is_open and not self._reader.complete:
            self._out.say(self._reader.left(self._lead))
        self._step = self._behind
        return True

    def _behind(self) -> bool:
        (self._out.argue if self._reader.is_open else self._out.say)(self._rest)
        self._rest = ""
        return False

    def _end(self) -> None:
        if not self._reader.ended:
            self._out.say(self._reader.left(self._lead))


def _grammar(functions: Sequence[Function], parallel: bool, mark: Mark) -> str:
    others = '(", " call)* ' if parallel else ""
    return "\n".join([f'calls: "[" call {others}"]"', *call_rules(functions, object_call("parameters"))])


STYLE = ToolStyle(
    name="listed", marks=(), recognises=lambda template: False, parser=_Parser, grammar=_grammar, call_id=long_id
)
