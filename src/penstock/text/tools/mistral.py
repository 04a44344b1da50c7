"""Mistral's style: ``[TOOL_CALLS]`` and a JSON list of calls, or since 2025 ``[TOOL_CALLS]name[ARGS]{...}`` each.

In: text as it streams; out: text, and calls behind the mark.  Ids have nine letters and digits, which the templates of
these models insist on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from penstock.text.tools.call_reader import ArgumentsReader, ListReader
from penstock.text.tools.grammar import call_rules, literal, object_call
from penstock.text.tools.parser import StepParser, looks_like_a_name
from penstock.text.tools.style import Function, Mark, ToolStyle

_MARK, _ID, _ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_HEADER_CHARS = re.compile(r"[\w.\-\[\]\s]*", re.ASCII)
_HEADER = re.compile(r"\s*([A-Za-z0-9_.-]{1,128})\s*(?:\[CALL_ID\]\s*\w*\s*)?(?:\[ARGS\]\s*)?", re.ASCII)
_LONGEST_HEADER = 256
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class _Parser(StepParser):
    def __init__(self, names: frozenset[str], parallel: bool) -> None:
        super().__init__(names, parallel)
        self._reader: ArgumentsReader | ListReader | None = None
        self._step = self._outside

    def _outside(self) -> bool:
        if not self._pass(_MARK, self._out.say):
            return False
        self._lead, self._step = _MARK, self._before_call
        return True

    def _before_call(self) -> bool:
        self._lead += self._leading()
        if self._rest.startswith("["):
            self._reader, self._step = ListReader(self._out, looks_like_a_name), self._in_call
        elif self._rest:
            self._step = self._in_header
        return True

    def _in_header(self) -> bool:
        match = _HEADER_CHARS.match(self._rest)
        assert match is not None
        header = match[0]
        if len(header) == len(self._rest) and len(header) <= _LONGEST_HEADER:
            return False
        named = _HEADER.fullmatch(header) if len(header) <= _LONGEST_HEADER else None
        if named is None or self._rest[len(header)] != "{":
            # Only the mark is text for certain: behind it another one may follow.
            self._out.say(self._lead)
            self._step = self._outside
            return True
        self._lead += header
        self._rest = self._rest[len(header) :]
        self._reader, self._step = ArgumentsReader(self._out, named[1]), self._in_call
        return True

    def _in_call(self) -> bool:
        reader = self._reader
        assert reader is not None
        self._rest = self._rest[reader.feed(self._rest) :]
        if isinstance(reader, ArgumentsReader) and reader.complete:
            self._out.end_call()
        elif not reader.ended:
            return False
        elif reader.is_open:
            self._step = self._in_broken_call
            return True
        elif not reader.complete:
            self._out.say(reader.left(self._lead))
        self._step = self._outside
        return True

    def _in_broken_call(self) -> bool:
        """Arguments that went wrong on the way go on up to the next mark."""
        if not self._pass(_MARK, self._out.argue):
            return False
        self._out.end_call()
        self._lead, self._step = _MARK, self._before_call
        return True

    def _end(self) -> None:
        if self._step == self._in_broken_call:
            self._out.argue(self._rest)
        elif self._step == self._in_call and self._reader is not None:
            self._out.say(self._reader.left(self._lead))
        elif self._step == self._outside:
            self._out.say(self._rest)
        else:
            self._out.say(self._lead + self._rest)


def _grammar(functions: Sequence[Function], parallel: bool, mark: Mark, *, newer: bool) -> str:
    if newer:
        rules = call_rules(functions, lambda name, args: f"{mark(_MARK)} {literal(name)} {mark(_ARGS)} {args}")
        return "\n".join(["calls: call+" if parallel else "calls: call", *rules])
    others = '(", " call)* ' if parallel else ""
    rules = call_rules(functions, object_call("arguments"))
    return "\n".join([f'calls: {mark(_MARK)} "[" call {others}"]"', *rules])


def _nine(key: str, index: int) -> str:
    number = int.from_bytes(hashlib.sha256(f"{key}:{index}".encode()).digest()[:8], "big")
    return "".join(_ALPHABET[number // len(_ALPHABET) ** place % len(_ALPHABET)] for place in range(9))


def _style(name: str, *, newer: bool) -> ToolStyle:
    return ToolStyle(
        name=name,
        marks=(_MARK, _ID, _ARGS),
        recognises=lambda template: _MARK in template and (_ARGS in template) == newer,
        parser=_Parser,
        grammar=lambda functions, parallel, mark: _grammar(functions, parallel, mark, newer=newer),
        call_id=_nine,
    )


STYLE, NEWER_STYLE = _style("mistral", newer=False), _style("mistral-args", newer=True)
