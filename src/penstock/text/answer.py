"""How a model writes an answer: thinking, then text.

In: a checkpoint's tokenizer and, per request, its rendered prompt; then text as it streams.
Out: the parts of the answer.  Everything is a function of the prompt and the text so far.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.text.reasoning import MARKS, Phase, Thinking, ThinkingMarks, ThinkingSplitter, find_marks, phase_after
from penstock.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Parts:
    """What a piece of output adds to an answer."""

    text: str = ""
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """What a checkpoint's answers consist of.  ``thinking`` is ``None`` for models that do not think aloud."""

    thinking: ThinkingMarks | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, reasoning: str) -> AnswerFormat:
        """By name (a key of ``MARKS``, "none"), or with "auto" as template and vocabulary show."""
        if reasoning != "auto":
            return cls(MARKS.get(reasoning))
        template = tokenizer.chat_template.source if tokenizer.chat_template is not None else ""
        return cls(find_marks(template, lambda text: tokenizer.id_of(text) is not None))

    def parser(self, tokenizer: Tokenizer, prompt: str, continued: str | None = None) -> AnswerParser:
        """The parser of the answer to one rendered prompt; ``continued``: the final message's text, if it goes on."""
        if self.thinking is None:
            return AnswerParser()
        splitter = ThinkingSplitter(self.thinking, phase_after(prompt, self.thinking, continued))
        marks = (self.thinking.open, self.thinking.close)
        shown = frozenset(id for mark in marks if (id := tokenizer.id_of(mark)) is not None)
        return AnswerParser(splitter, shown)


class AnswerParser:
    """One answer.  ``shown``: ids of special tokens whose text it has to see, as they are marks."""

    def __init__(self, splitter: ThinkingSplitter | None = None, shown: frozenset[int] = frozenset()) -> None:
        self._splitter = splitter
        self.shown = shown

    @property
    def thinking(self) -> Thinking | None:
        """What a grammar has to let pass before it binds: the thinking that is open or may still be opened."""
        return None if self._splitter is None else self._splitter.thinking

    @property
    def may_think(self) -> bool:
        """What comes next may be thinking, or the mark that opens or closes it."""
        return self._splitter is not None and self._splitter.phase is not Phase.ANSWER

    @property
    def has_thought(self) -> bool:
        return self._splitter is not None and self._splitter.has_thought

    def push(self, text: str) -> Parts:
        if self._splitter is None:
            return Parts(text)
        reasoning, text = self._splitter.push(text)
        return Parts(text, reasoning)

    def flush(self) -> Parts:
        """The output ended: what was held back."""
        if self._splitter is None:
            return Parts()
        reasoning, text = self._splitter.flush()
        return Parts(text, reasoning)
