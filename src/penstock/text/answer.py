"""How a model writes an answer: thinking, then text and tool calls.

In: a checkpoint's tokenizer and, per request, its rendered prompt and the tools on offer; then text as it streams.
Out: the parts of the answer.  Everything is a function of the prompt and the text so far.
Argued in docs/decisions/006-parts-of-an-answer.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from penstock.text.reasoning import MARKS, Passage, Thinking, ThinkingMarks, ThinkingSplitter, find_marks, passage_after
from penstock.text.tokenizer import Tokenizer
from penstock.text.tools.grammar import json_value
from penstock.text.tools.registry import LISTED, STYLES, find_style
from penstock.text.tools.style import CallPart, ToolParser, ToolStyle, functions_of
from penstock.wire.engine import Grammar, ToolUse
from penstock.wire.errors import Problem


@dataclass(slots=True)
class Parts:
    """What a piece of output adds to an answer."""

    text: str = ""
    reasoning: str = ""
    calls: list[CallPart] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """What a checkpoint's answers consist of.

    ``thinking`` is ``None`` for models that do not think aloud, ``style`` for those that know no calls.
    ``reads_calls`` false: calls are left in the text, for whoever reads them himself.
    """

    thinking: ThinkingMarks | None = None
    style: ToolStyle | None = None
    reads_calls: bool = True

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, reasoning: str, tools: str) -> AnswerFormat:
        """By name (a key of ``MARKS``, of ``STYLES``, "none"), or with "auto" as template and vocabulary show."""
        template = tokenizer.chat_template.source if tokenizer.chat_template is not None else ""
        thinking = MARKS.get(reasoning)
        if reasoning == "auto":
            thinking = find_marks(template, lambda text: tokenizer.id_of(text) is not None)
        style = find_style(template) if tools == "auto" else STYLES.get(tools)
        return cls(thinking, style, reads_calls=tools != "none")

    def parser(
        self, tokenizer: Tokenizer, prompt: str, *, continued: str | None = None, use: ToolUse | None = None
    ) -> AnswerParser:
        """The parser of the answer to one rendered prompt; ``continued``: the final message's text, if it goes on.

        Raises ``unsupported_parameter`` for tools that the model has no style to call in, unless a call is required.
        """
        splitter = calls = None
        marks: list[str] = []
        if self.thinking is not None:
            splitter = ThinkingSplitter(self.thinking, passage_after(prompt, self.thinking, continued))
            marks += (self.thinking.open, self.thinking.close)
        if use is not None and (style := self._style_for(use)) is not None:
            names = frozenset(function.name for function in functions_of(use))
            calls = style.parser(names, use.parallel)
            marks += style.marks
        shown = frozenset(token_id for mark in marks if (token_id := tokenizer.id_of(mark)) is not None)
        return AnswerParser(splitter, calls, shown)

    def call_id(self, use: ToolUse, index: int) -> str:
        """The id of the call with this index."""
        return (self._style_for(use) or LISTED).call_id(use.key, index)

    def grammar(self, tokenizer: Tokenizer, use: ToolUse, answer: Grammar | None) -> Grammar | None:
        """What an output has to be: calls where they are required, else what ``answer`` asks for, or calls instead.

        Raises ``invalid_value`` for an ``answer`` that leaves no room for calls.
        """
        style = self._style_for(use)
        if style is None or (answer is None and not use.required):
            return answer
        functions = functions_of(use)
        rules = style.grammar(functions, use.parallel, partial(_mark, tokenizer))
        schemas = tuple((function.name, json.dumps(function.parameters)) for function in functions)
        if answer is None:
            return Grammar(kind="lark", value=f"start: calls\n{rules}", param="tools", schemas=schemas)
        if use.required or answer.kind not in ("json_schema", "json_object"):
            message = f"{answer.param} and tools exclude each other here: an answer cannot be both."
            raise Problem("invalid_value", message, param=answer.param)
        schema = _schema(answer)
        if schema is None:
            return answer
        value = f"start: calls | answer\nanswer: {json_value(schema)}\n{rules}"
        named = (f"{answer.param}", json.dumps(schema))
        return Grammar(kind="lark", value=value, param=answer.param, schemas=(named, *schemas))

    def _style_for(self, use: ToolUse) -> ToolStyle | None:
        if self.style is not None or not self.reads_calls:
            return self.style or (LISTED if use.required else None)
        if not use.required:
            message = (
                "This model's chat template has no style of tool calls that is known here; set tool_choice to required "
                "or to a function, or start the server with --tool-parser."
            )
            raise Problem("unsupported_parameter", message, param="tools")
        return LISTED


def _mark(tokenizer: Tokenizer, text: str) -> str:
    token_id = tokenizer.id_of(text)
    return f"<[{token_id}]>" if token_id in tokenizer.special_token_ids else json.dumps(text)


def _schema(answer: Grammar) -> dict[str, Any] | None:
    """The schema of a JSON answer; ``None`` where it is none, which whoever compiles it will say."""
    if answer.kind == "json_object":
        return {"type": "object"}
    try:
        schema = json.loads(answer.value)
    except (ValueError, RecursionError):
        return None
    return schema if isinstance(schema, dict) else None


class AnswerParser:
    """One answer.  ``shown``: ids of special tokens whose text it has to see, as they are marks."""

    def __init__(
        self,
        splitter: ThinkingSplitter | None = None,
        calls: ToolParser | None = None,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        self._splitter = splitter
        self._calls = calls
        self.shown = shown

    @property
    def thinking(self) -> Thinking | None:
        """What a grammar has to let pass before it binds: the thinking that is open or may still be opened."""
        return None if self._splitter is None else self._splitter.thinking

    @property
    def may_think(self) -> bool:
        """What comes next may be thinking, or the mark that opens or closes it."""
        return self._splitter is not None and self._splitter.passage is not Passage.ANSWER

    @property
    def has_thought(self) -> bool:
        return self._splitter is not None and self._splitter.has_thought

    @property
    def is_calls(self) -> bool:
        """What came so far ends in a whole call, or in text behind one: somebody can act on it."""
        return self._calls is not None and self._calls.num_calls > 0 and not self._calls.in_call

    @property
    def is_over(self) -> bool:
        """Nothing more can belong to the answer: one call was allowed, and it is complete."""
        return self._calls is not None and self._calls.is_over

    def push(self, text: str) -> Parts:
        """Take more text: what of it is certain."""
        reasoning = ""
        if self._splitter is not None:
            reasoning, text = self._splitter.push(text)
        if self._calls is None:
            return Parts(text, reasoning)
        text, calls = self._calls.push(text)
        return Parts(text, reasoning, calls)

    def flush(self) -> Parts:
        """The output ended: what was held back."""
        reasoning = text = ""
        if self._splitter is not None:
            reasoning, text = self._splitter.flush()
        if self._calls is None:
            return Parts(text, reasoning)
        before, first = self._calls.push(text)
        after, last = self._calls.flush()
        return Parts(before + after, reasoning, [*first, *last])
